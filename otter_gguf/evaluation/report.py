"""An evaluation for readers: a Markdown page with its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .results import ArmResult, Estimate, Results

_TEXT_METRICS = ("judge", "reward", "diversity", "coherence", "distinct_2", "distinct_3")
_MIB = 2**20


def markdown(results: Results, plot: str | None = None) -> str:
    """The page; ``plot``: the figure's address, if there is one."""
    parts = [
        "# Evaluation",
        _introduction(results),
        "## Texts",
        table(_text_head(results), [_text_row(arm, results) for arm in results.arms]),
        "## Differences from plain decoding",
        table(_difference_head(results), [_difference_row(arm, results) for arm in results.arms[1:]]),
        "## Cost",
        table(_COST_HEAD, [_cost_row(arm, results) for arm in results.arms]),
    ]
    if plot:
        parts += ["## Figures", f"![judge, reward and cost]({plot})"]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; all columns but the first to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *others])} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _introduction(results: Results) -> str:
    run = results.header
    files = [f"`{run[name]['name']}`" for name in ("model", "otter") if run[name]]
    second = f"; second model `{run['second_model']['name']}`" if run["second_model"] else ""
    length = f"{run['max_tokens']} tokens{'' if run['ignore_eos'] else ' at most'}"
    return "\n".join(
        [
            f"Model {' with '.join(files)}{second}. {len(run['prompts'])} prompts, {run['seeds']} seeds, {length}, "
            f"temperature {run['temperature']:g}; plain decoding draws from {run['top_k']} candidates.",
            f"Judge: {results.judge}. Coherence by: {results.embedder}. Means ± standard errors over prompts, "
            "after the mean over seeds.",
        ]
    )


def _known(results: Results, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in results.arms[0].metrics]


def _text_head(results: Results) -> list[str]:
    titles = [name.replace("_", "-") for name in _known(results, _TEXT_METRICS)]
    return ["policy", *titles, "perplexity", "tokens a text", "ended"]


def _text_row(arm: ArmResult, results: Results) -> list[str]:
    figures = [_pair(arm.metrics[name]) for name in _known(results, _TEXT_METRICS)]
    return [_name(arm), *figures, _decimal(arm.perplexity), _decimal(arm.lengths.mean, 1), f"{arm.ended:.0%}"]


def _difference_head(results: Results) -> list[str]:
    titles = [name.replace("_", "-") for name in _known(results, _TEXT_METRICS)]
    return ["policy", *titles, "perplexity, times"]


def _difference_row(arm: ArmResult, results: Results) -> list[str]:
    figures = [_pair(arm.differences[name], signed=True) for name in _known(results, _TEXT_METRICS)]
    factor = math.exp(arm.differences["cross_entropy"].mean) if "cross_entropy" in arm.differences else math.nan
    return [_name(arm), *figures, _decimal(factor)]


_COST_HEAD = (
    "policy",
    "ms a token",
    "tokens a second",
    "time, times plain",
    "passes a token",
    "tokens fed a token",
    "guided steps",
    "changed of them",
    "memory, MiB",
    "extra, MiB",
    "extra time saved",
    "extra memory saved",
)


def _cost_row(arm: ArmResult, results: Results) -> list[str]:
    cost = arm.cost
    return [
        _name(arm),
        _decimal(cost.ms_per_token),
        _decimal(cost.tokens_per_second, 1),
        _decimal(cost.time_ratio),
        _decimal(cost.passes_per_token),
        _decimal(cost.fed_per_token),
        _share(cost.guided_share),
        _share(cost.changed_share),
        _decimal(results.memory[arm.name].total / _MIB, 1),
        _decimal(cost.extra_memory / _MIB, 1),
        _share(cost.extra_time_saved, 1),
        _share(cost.extra_memory_saved, 1),
    ]


def _name(arm: ArmResult) -> str:
    return f"`{arm.name}`"


def _pair(estimate: Estimate, signed: bool = False) -> str:
    if math.isnan(estimate.mean):
        return "-"
    mean = f"{estimate.mean:+.3f}" if signed else f"{estimate.mean:.3f}"
    return mean if math.isnan(estimate.error) else f"{mean} ± {estimate.error:.3f}"


def _decimal(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _share(value: float | None, digits: int = 0) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}%}"
