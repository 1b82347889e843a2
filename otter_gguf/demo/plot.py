"""The demo's figure: what the judge says, what the reward does token by token, what guidance costs."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..gguf.atomic import atomic_path
from .experiment import Experiment, Side, standard_error

INK, GRID = "#2b2d42", "#e6e8ee"
COLORS = {"plain": "#9aa3b5", "guided": "#14af82"}
_BINS = 9
_MIN_TEXTS = 8  # a mean over fewer texts at the end of the longest ones would only be noise
_CI95 = 1.96


def check_matplotlib() -> None:
    """``UnsupportedError`` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("the plot needs matplotlib: pip install 'otter-gguf[plot]', or --no-plot")


def save_plot(experiment: Experiment, path: Path) -> None:
    """Write the figure as PNG. ``UnsupportedError`` without matplotlib."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.35, 1))
    sides = {"plain": experiment.plain, "guided": experiment.guided}
    for axes in (left, middle, right):
        _style(axes)
    _draw_scores(left, sides)
    _draw_rewards(middle, sides)
    _draw_means(right, sides)
    figure.suptitle(_title(experiment), color=INK, fontsize=11.5)
    with atomic_path(path, force=True) as temporary:
        figure.savefig(temporary, format="png")


def _title(experiment: Experiment) -> str:
    difference = experiment.difference
    return (
        f"{len(experiment.prompts)} stories continued plainly and guided by the reward (ARGS, weight "
        f"{experiment.settings.weight:g}, {experiment.settings.n_candidates} candidates): "
        f"{difference.mean:+.2f} ± {difference.error:.2f} by an independent judge"
    )


def _style(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(INK)


def _draw_scores(axes: Any, sides: dict[str, Side]) -> None:
    """Histogram of the judge's scores, both sides beside each other."""
    scores = [side.scores for side in sides.values()]
    axes.hist(scores, bins=_BINS, range=(-1, 1), color=list(COLORS.values()), label=list(sides), rwidth=0.85)
    for name, side in sides.items():
        axes.axvline(statistics.fmean(side.scores), color=COLORS[name], linestyle=(0, (4, 2)), linewidth=1.4)
    _label(axes, "The judge's score of each story", "-1 unkind … +1 kind (dashed: means)", "stories")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _draw_rewards(axes: Any, sides: dict[str, Side]) -> None:
    """Mean reward after each token with its standard error, as long as enough texts go on."""
    for name, side in sides.items():
        columns = _columns(side)
        means = [statistics.fmean(column) for column in columns]
        errors = [standard_error(column) for column in columns]
        places = range(1, len(columns) + 1)
        low, high = zip(*((mean - error, mean + error) for mean, error in zip(means, errors, strict=True)), strict=True)
        axes.fill_between(places, low, high, color=COLORS[name], alpha=0.25, linewidth=0)
        axes.plot(places, means, color=COLORS[name], linewidth=2, label=name)
    _label(axes, "The model's own reward, token by token", "tokens of the continuation", "mean reward ± standard error")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="center right")


def _columns(side: Side) -> list[list[float]]:
    """Rewards after the first token, after the second, and so on."""
    longest = max(len(continuation.rewards) for continuation in side.continuations)
    columns = [
        [continuation.rewards[place] for continuation in side.continuations if len(continuation.rewards) > place]
        for place in range(longest)
    ]
    enough = min(_MIN_TEXTS, len(side.continuations))
    return [column for column in columns if len(column) >= enough]


def _draw_means(axes: Any, sides: dict[str, Side]) -> None:
    """The judge's means by all of its words, and by the words that the reward was never taught."""
    for offset, (name, side) in zip((-0.2, 0.2), sides.items(), strict=True):
        values = [side.scores, side.unseen_scores]
        means = [statistics.fmean(scores) for scores in values]
        errors = [_CI95 * standard_error(scores) for scores in values]
        label = f"{name}, {side.ms_per_token:.1f} ms a token"
        axes.bar([offset, 1 + offset], means, 0.36, yerr=errors, color=COLORS[name], ecolor=INK, capsize=3, label=label)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks([0, 1], ["all words", "words unseen\nin training"])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    _label(axes, "The judge's mean, 95% interval", "", "mean score")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left")


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=10.5, loc="left", pad=8)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
