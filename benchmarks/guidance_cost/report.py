"""The section of docs/benchmarks.md and its figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otter_gguf.demo.plot import check_matplotlib
from otter_gguf.errors import ConfigError
from otter_gguf.gguf.atomic import atomic_path

from .settings import CANDIDATES, RANK, SIDECAR_TYPES

PARTS = ("time", "batch", "memory")
HEADING = "## Guided decoding"


def section(result: dict[str, Any], image: str) -> str:
    """The section of docs/benchmarks.md, with its heading."""
    settings = result["settings"]
    first = SIDECAR_TYPES[0]
    args = result["time"][first]["args"]
    count = "once" if settings["rounds"] == 1 else f"{settings['rounds']} times"
    return TEMPLATE.format(
        heading=HEADING,
        image=image,
        rank=RANK,
        loads=count,
        tokens=settings["steps"],
        context=settings["context"],
        candidates=CANDIDATES,
        alone=args["ms"] / result["time"][first]["plain"]["ms"],
        time="\n".join(time_table(result)),
        batch="\n".join(batch_table(result)),
        memory="\n".join(memory_table(result)),
        **{name: result[name] for name in ("date", "processor", "cores", "llama_cpp")},
    )


TEMPLATE = """{heading}

Written by `python -m benchmarks.guidance_cost --geometry 1b --work DIR --document docs/benchmarks.md`; do not edit by
hand. {date}, {processor}, {cores} cores; llama.cpp {llama_cpp}.

![What a token costs, plain and guided]({image})

The models of the first section, all with a Q4_0 base; the insertion has a vocabulary head of rank {rank} on [h, h']
besides. The second model has the base's size and type, weights of its own, and a reward head on its final state; it
keeps its KV cache and reads all candidates in one batch.

**Ratio**: time of a token over that of llama.cpp's own loop on the base alone (its model class, one decode and one call
of its sampler chain, nothing of Otter): neighbours in one process, everything loaded {loads}, in alternating
order, {tokens} tokens each. Tokens: computed for each token of text, by all models together. Python: share of a step
outside the native layer, by a timer around every native function; the timer itself and numpy count as Python. Saved: of
the second model's extra time.

{time}

ARGS by the insertion's own value head computes every candidate, and on two cores {candidates} tokens in a batch take
about as long as {alone:.1f} alone: a single token waits for memory, a few already for arithmetic. The output projection
of every candidate is in it, of which the winner's alone is used; the second model leaves it out, since nobody reads its
logits, and is the faster guide for that where the vocabulary is large.

Several prompts in one call against single calls with the same prompts, tokens a second with prompts included. Bound:
the same ratio of llama.cpp's decode calls alone, without Otter. A batch reads the weights once for all, and is then
bound by arithmetic: how fast that is depends on llama.cpp's kernels, whose fastest on this CPU take 16 tokens at once.

{batch}

Memory beyond plain decoding, MiB: contexts of {context} tokens with room for {candidates} candidates, weights read and
not mapped. Parts by llama.cpp's log; resident: of a process of its own that has read a prompt of 512 tokens and then
decoded by ARGS, less that of plain decoding.

{memory}
"""


def time_table(result: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    yield "| | sidecar | drawn | ratio | quartiles | ms | tokens | Python | saved |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for type, rows in result["time"].items():
        for name, row in rows.items():
            low, high = row["ratio_quartiles"]
            own = name != "second"
            cells = [row["title"], type if own else "", "greedily" if row["greedy"] else "at 0.8"]
            cells += [f"**{row['ratio']:.3f}**", f"{low:.3f} to {high:.3f}", f"{row['ms']:.1f}"]
            cells += [f"{row['tokens_computed']:g}", f"{100 * row['python_share']:.1f}%"]
            cells += [f"{100 * result['time_saved'][type][name]:.1f}%" if own else ""]
            yield f"| {' | '.join(cells)} |"


def batch_table(result: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    yield "| prompts | | one call, tokens/s | single calls, tokens/s | ratio | range | bound |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["batch"]:
        low, high = row["ratio_range"]
        rates = [f"{row[f'{side}_tokens_per_second']:.1f}" for side in ("batch", "single")]
        cells = [str(row["texts"]), row["title"], *rates, f"**{row['ratio']:.2f}**", f"{low:.2f} to {high:.2f}"]
        cells.append(f"{row['bound']:.2f}")
        yield f"| {' | '.join(cells)} |"


def memory_table(result: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    columns = {"second": "second model", **{type: f"insertion, {type}" for type in SIDECAR_TYPES}}
    yield f"| | {' | '.join(columns.values())} |"
    yield "|---" * (1 + len(columns)) + "|"
    memory, less = result["memory"], result["memory_saved"]
    for name in ("weights", "KV cache", "compute", "counted", "resident"):
        cells = [f"{memory[kind][name]:.1f}" for kind in columns]
        if name in ("counted", "resident"):
            cells[1:] = [
                f"{memory[type][name]:.1f} (saved: **{100 * less[type][name]:.1f}%**)" for type in SIDECAR_TYPES
            ]
        yield f"| {LABELS.get(name, name)} | {' | '.join(cells)} |"


LABELS = {"compute": "compute and output buffers", "counted": "together"}


def with_section(document: str, text: str) -> str:
    """The document with its section of the same heading replaced, or put at the end."""
    heading = text.partition("\n")[0]
    before, found, after = document.partition(heading + "\n")
    if not found:
        return f"{document.rstrip()}\n\n{text}"
    rest = re.search(r"^## ", after, re.MULTILINE)
    return before + text + (f"\n{after[rest.start() :]}" if rest else "")


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Bars of the ratios, greedy and gated, with the first sidecar."""
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    rows = {name: row for name, row in result["time"][SIDECAR_TYPES[0]].items() if not name.endswith("sampled")}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [row["title"] for row in rows.values()],
        [row["ratio"] for row in rows.values()],
        color=["#9aa3b5" if name == "second" else "#14af82" for name in rows],
    )
    axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows.values()], padding=3)
    axes.axvline(1, color="#2b2d42", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time of a token, plain decoding without Otter = 1")
    # Without a date and with fixed ids, equal figures are equal files.
    with matplotlib.rc_context({"svg.hashsalt": "otter"}), atomic_path(path, force=True) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def write_document(result: dict[str, Any], document: Path) -> None:
    """Replace the section, and draw its figure beside the document."""
    missing = [part for part in PARTS if part not in result]
    if missing:
        raise ConfigError(f"the document needs all parts; not measured: {', '.join(missing)}")
    image = Path("images") / "guidance-cost.svg"
    save_plot(result, document.parent / image)
    text = with_section(document.read_text(encoding="utf-8"), section(result, image.as_posix()))
    with atomic_path(document, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
