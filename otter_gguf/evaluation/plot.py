"""The figure of an evaluation: what guidance brings against what it costs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..gguf.atomic import atomic_path
from .results import ArmResult, Results
from .runner import PLAIN

_INK, _GRID, _GREY = "#2b2d42", "#e6e8ee", "#9aa3b5"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
_MARKERS = ("o", "s", "^", "D", "v")
_BINS = 40

Panel = Callable[[Any], None]


def check_matplotlib() -> None:
    """``UnsupportedError`` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("the plots need matplotlib: pip install 'otter-gguf[plot]', or --no-plot")


def save_plot(results: Results, path: Path) -> None:
    """Write the figure as PNG. ``UnsupportedError`` without matplotlib.

    Judge and reward against cost; against the weight where a policy appears with several; rewards by token.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = panels(results)
    rows = len(drawn) // 2 + 1  # with a place for the key
    figure = Figure(figsize=(12, 4.4 * rows), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, panel in zip(grid, drawn, strict=False):
        _style(axes)
        panel(axes)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    _key(grid[len(drawn)], results)
    with atomic_path(path, force=True) as temporary:
        figure.savefig(temporary, format="png")


def panels(results: Results) -> list[Panel]:
    """What there is to draw."""
    metrics = [name for name in ("judge", "reward") if name in results.arms[0].metrics]
    drawn: list[Panel] = [_against_cost(results, name) for name in metrics]
    families = weight_families(results.arms)
    if families:
        drawn += [_against_weight(results, families, name) for name in metrics]
    if any(arm.token_rewards for arm in results.arms):
        drawn.append(lambda axes: _histogram(axes, results))
    return drawn


def weight_families(arms: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Arms that differ in their weight alone, by their common name, lowest weight first."""
    families: dict[str, list[ArmResult]] = {}
    for arm in arms:
        if arm.weight is not None:
            families.setdefault(arm.family, []).append(arm)
    return {
        name: sorted(members, key=lambda arm: arm.weight or 0.0)
        for name, members in families.items()
        if len(members) > 1
    }


def _against_cost(results: Results, metric: str) -> Panel:
    def draw(axes: Any) -> None:
        for arm, colour, marker in zip(results.arms, _colours(results.arms), _markers(results.arms), strict=True):
            estimate = arm.metrics[metric]
            place = (arm.cost.time_ratio, estimate.mean)
            axes.errorbar(*place, yerr=estimate.error, fmt=marker, color=colour, capsize=3)
        _label(
            axes, f"{metric.capitalize()} against cost", "time a token, times plain decoding", f"mean {metric} ± s.e."
        )

    return draw


def _against_weight(results: Results, families: dict[str, list[ArmResult]], metric: str) -> Panel:
    def draw(axes: Any) -> None:
        axes.axhline(results.arms[0].metrics[metric].mean, color=_GREY, linestyle=(0, (4, 2)), label=PLAIN)
        for (family, members), colour in zip(families.items(), _cycle(len(families)), strict=True):
            means = [arm.metrics[metric].mean for arm in members]
            errors = [arm.metrics[metric].error for arm in members]
            weights = [arm.weight for arm in members]
            axes.errorbar(weights, means, yerr=errors, fmt="o-", color=colour, capsize=3, label=family)
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
        _label(axes, f"{metric.capitalize()} against weight", "weight", f"mean {metric} ± s.e.")

    return draw


def _histogram(axes: Any, results: Results) -> None:
    """Rewards behind every token, every arm's share of its tokens."""
    rewards = [arm.token_rewards for arm in results.arms if arm.token_rewards]
    low, high = min(map(min, rewards)), max(map(max, rewards))
    for arm, colour in zip(results.arms, _colours(results.arms), strict=True):
        if arm.token_rewards:
            weights = [1 / len(arm.token_rewards)] * len(arm.token_rewards)
            style = {"bins": _BINS, "range": (low, high), "histtype": "step", "linewidth": 1.6}
            axes.hist(arm.token_rewards, weights=weights, color=colour, **style)
    _label(axes, "Rewards by token", "the guide's reward behind a token", "share of tokens")


def _key(axes: Any, results: Results) -> None:
    """What the colours and marks of the other panels stand for, in a place of its own: there may be many."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, label=arm.name)
        for arm, colour, marker in zip(results.arms, _colours(results.arms), _markers(results.arms), strict=True)
    ]
    axes.legend(handles=handles, loc="center left", frameon=False, labelcolor=_INK, fontsize=8)


def _markers(arms: Sequence[ArmResult]) -> list[str]:
    """Another one with each round of the colours."""
    return ["o", *(_MARKERS[index // len(_COLOURS) % len(_MARKERS)] for index in range(len(arms) - 1))]


def _colours(arms: Sequence[ArmResult]) -> list[str]:
    """Plain decoding in grey, the others each in its own."""
    return [_GREY, *_cycle(len(arms) - 1)]


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _style(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_INK)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=_INK, fontsize=10.5, loc="left", pad=8)
    axes.set_xlabel(x, color=_INK, fontsize=9)
    axes.set_ylabel(y, color=_INK, fontsize=9)
