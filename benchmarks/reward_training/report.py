"""Tables and plots of the runs, between markers in docs/reward-training.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from otter_gguf.gguf.atomic import atomic_path

from .arms import SUITES, Arm
from .runs import Record, key

DOCUMENT = "reward-training.md"
_BOOTSTRAP_DRAWS = 2_000
HEAD, FULL = SUITES["methods"][0], SUITES["methods"][-1]

Floats = npt.NDArray[np.float64]


def records_of(records: Sequence[Record], domain: str, arm: Arm) -> list[Record]:
    """All seeds of an arm."""
    return [record for record in records if record.domain == domain and record.arm == key(arm)]


def correct(records: Sequence[Record]) -> Floats:
    """(seeds, held-out pairs): 1 where the chosen whole response is ahead."""
    return (np.array([record.margins for record in records]) > 0.0).astype(float) if records else np.zeros((0, 0))


def prefix_accuracy(records: Sequence[Record]) -> Floats:
    """(seeds, held-out pairs): share of response lengths at which the chosen response is ahead."""
    return np.array([record.prefix_accuracy for record in records]) if records else np.zeros((0, 0))


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean of (seeds, pairs) and its standard error over both: which pairs were held out, which seeds were drawn."""
    seeds, pairs = values.shape
    between_pairs = values.mean(axis=0).var(ddof=1) / pairs
    between_seeds = values.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(values.mean()), float(np.sqrt(between_pairs + between_seeds))


def difference(first: Floats, second: Floats) -> tuple[float, float]:
    """Mean difference on the same pairs, seeds averaged, and its standard error by bootstrap over seeds and pairs."""
    generator = np.random.default_rng(0)
    draws = np.empty(_BOOTSTRAP_DRAWS)
    for index in range(_BOOTSTRAP_DRAWS):
        pairs = generator.integers(first.shape[1], size=first.shape[1])
        a = first[generator.integers(len(first), size=len(first))].mean(axis=0)
        b = second[generator.integers(len(second), size=len(second))].mean(axis=0)
        draws[index] = (a - b)[pairs].mean()
    return float(first.mean() - second.mean()), float(draws.std())


def table(records: Sequence[Record], domain: str, suite: str) -> str:
    """A Markdown table of a suite, or nothing if no arm of it was run in the domain."""
    head = records_of(records, domain, HEAD)
    lines = []
    for arm in SUITES[suite]:
        found = records_of(records, domain, arm)
        if found:
            reference = [] if key(arm) == key(HEAD) else head
            cells = [
                arm.name,
                f"{found[0].parameters:,}",
                *_cells(correct(found), correct(reference)),
                *_cells(prefix_accuracy(found), prefix_accuracy(reference)),
                str(len(found)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    titles = ["", "trained parameters", "accuracy, %", "over the head", "over prefixes, %", "over the head", "seeds"]
    return "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *lines])


def _cells(values: Floats, head: Floats) -> list[str]:
    """Mean, and difference to Task-Head-Only where there is one; in percent with standard errors."""
    mean, error = mean_and_error(values)
    cells = [f"{100 * mean:.1f} ± {100 * error:.1f}", ""]
    if head.size:
        mean, error = difference(values, head)
        cells[1] = f"{100 * mean:+.1f} ± {100 * error:.1f}"
    return cells


def steps_to_loss(records: Sequence[Record], domain: str) -> str:
    """Steps until the held-out loss first is as low as the worst initialisation's best; a table."""
    arms = [arm for arm in SUITES["methods"] if arm.kind == "insertion"]
    curves = {arm.name: mean_curve(records_of(records, domain, arm)) for arm in arms}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if len(curves) < 2:
        return ""
    goal = max(curve[:, 1].min() for curve in curves.values())
    lines = [f"| | steps to a held-out loss of {goal:.3f} | lowest loss |", "|---|---|---|"]
    for name, curve in curves.items():
        reached = curve[curve[:, 1] <= goal + 1e-9, 0]
        lines.append(f"| {name} | {reached[0]:.0f} | {curve[:, 1].min():.3f} |")
    return "\n".join(lines)


def mean_curve(records: Sequence[Record]) -> Floats:
    """(points, 3): step, held-out loss, accuracy, averaged over seeds."""
    curves = [[[p["step"], p["loss"], p["accuracy"]] for p in record.curve] for record in records]
    return np.array(curves).mean(axis=0) if curves else np.zeros((0, 3))


def plot_curves(records: Sequence[Record], domain: str, path: Path) -> None:
    """Held-out loss and accuracy against steps, one line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for arm in SUITES["methods"]:
        curve = mean_curve(records_of(records, domain, arm))
        if len(curve):
            axes[0].plot(curve[:, 0], curve[:, 1], marker=".", label=arm.name)
            axes[1].plot(curve[:, 0], 100 * curve[:, 2], marker=".", label=arm.name)
    axes[0].set(xlabel="optimizer step", ylabel="held-out loss, nats")
    axes[1].set(xlabel="optimizer step", ylabel="held-out accuracy, %")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def plot_arms(records: Sequence[Record], domain: str, path: Path) -> None:
    """Accuracy of every arm of every suite, of whole responses and over prefixes, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SUITES), sharey=True)
    for axis, (suite, arms) in zip(axes, SUITES.items(), strict=True):
        present = [arm for arm in arms if records_of(records, domain, arm)]
        for label, measure, shift in (("whole responses", correct, -0.1), ("over prefixes", prefix_accuracy, 0.1)):
            measured = [mean_and_error(measure(records_of(records, domain, arm))) for arm in present]
            positions = [index + shift for index in range(len(present))]
            means, errors = [100 * mean for mean, _ in measured], [100 * error for _, error in measured]
            axis.errorbar(positions, means, errors, fmt="o", markersize=4, capsize=3, label=label)
        axis.set_xticks(range(len(present)), [arm.name for arm in present], rotation=35, ha="right", fontsize=7)
        axis.set_title(suite, fontsize=9)
    axes[0].set_ylabel("held-out accuracy, %")
    axes[0].legend(fontsize=7)
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    import matplotlib

    # Without a date and with fixed ids, equal figures are equal files.
    with matplotlib.rc_context({"svg.hashsalt": "otter"}), atomic_path(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})  # type: ignore[attr-defined]


def write(records: Sequence[Record], folder: Path) -> None:
    """Fill the marked blocks of the document with tables, and draw its plots."""
    document = folder / DOCUMENT
    text = document.read_text(encoding="utf-8")
    for domain in sorted({record.domain for record in records}):
        slug = domain.replace(" ", "-")
        blocks = {f"{slug}-{suite}": table(records, domain, suite) for suite in SUITES}
        blocks[f"{slug}-steps"] = steps_to_loss(records, domain)
        for name, block in blocks.items():
            text = replace_block(text, name, block)
        plot_curves(records, domain, folder / "images" / f"reward-training-{slug}-curves.svg")
        plot_arms(records, domain, folder / "images" / f"reward-training-{slug}-arms.svg")
    with atomic_path(document, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_block(text: str, name: str, block: str) -> str:
    """The text with what stands between the markers of ``name`` replaced; a text without them stays as it is."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{block}\n{end}", text)
