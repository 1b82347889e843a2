"""Whether a run learnt anything: what it got right, beside what rewards that know nothing get right.

Each kind of row has its own yardstick, row by row, so that its error is known as well:

- pairs: a coin toss, of accuracy one half, and the loss of rewards that are all the same, ln 2 without margins. Where
  the accuracy alone beats it, the line says so: rewards that are surer than right do harm in guidance;
- grades and steps: the mean label. The share of the labels' variance that the rewards explain must be above 0;
- classes: the most frequent one, by accuracy, and the frequencies of all, by cross-entropy. One of both must be beaten.

"Above" means by more than :data:`ERRORS` standard errors: of rows that nothing can be learnt from, one set in twenty
looks learnt. Sets are judged by reward and kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from .objectives import METRICS

ERRORS = 1.64
"""Standard errors above chance that count as learnt: one-sided, 5%."""

_ADVICE = "try more rows, another learning rate, or fewer steps (docs/training.md#no-better-than-chance)"

Row = dict[str, Tensor]
"""Columns of the table of metrics, for the rows of one kind."""


class Failure(NamedTuple):
    """What is no better than chance."""

    facts: str
    subject: str = ""
    """What of it, if not all."""
    meaning: str = "such rewards neither rank nor guide"


def no_better_than_chance(metrics: Tensor, labels: tuple[str, ...], rows: str) -> list[str]:
    """One line for each reward and kind of row of which nothing, or nothing that shows, was learnt.

    Args:
        metrics: (rows, len(METRICS)), of :class:`.objectives.Objective`.
        labels: ``InsertionConfig.reward_labels``.
        rows: which rows these are, such as ``held-out``.
    """
    found, columns = [], metrics[:, METRICS.index("reward_column")]
    for column in columns.unique().tolist():
        for count, kind, failure in _failures(metrics[columns == column]):
            reward = labels[int(column)].partition(".")[0] if "class" in kind else labels[int(column)]
            where = f" ({reward})" if len(labels) > 1 else ""
            what = f"{failure.subject}no better than chance on {count} {rows} {kind}{where}: {failure.facts}"
            found.append(f"{what}; {failure.meaning}; {_ADVICE}")
    return found


def _failures(metrics: Tensor) -> Iterator[tuple[int, str, Failure]]:
    """How many rows there are of each kind that failed, the kind, and the failure."""
    for kind, name, judge in (
        ("pairs", "accuracy", _pairs),
        ("graded texts", "squared_error", _graded),
        ("classed texts", "class_accuracy", _classed),
        ("texts in steps", "step_accuracy", _steps),
    ):
        own = metrics[~metrics[:, METRICS.index(name)].isnan()].double()
        if len(own) and (failure := judge(dict(zip(METRICS, own.unbind(dim=1), strict=True)))):
            yield len(own), kind, failure


def _pairs(row: Row) -> Failure | None:
    accuracy, loss, coin = (float(row[name].mean()) for name in ("accuracy", "pair_loss", "pair_coin_loss"))
    error = ERRORS * 0.5 / len(row["accuracy"]) ** 0.5
    facts = f"accuracy {accuracy:.3f} (a coin toss: 0.5 ± {error:.3f}), loss {loss:.3f} (a coin toss: {coin:.3f})"
    if accuracy <= 0.5 + error:
        return Failure(facts)
    return None if loss < coin else Failure(facts, "loss ", "such rewards rank, but are surer than they are right")


def _graded(row: Row) -> Failure | None:
    label = row["graded_label"]
    return _unexplained(row["squared_error"], (label - label.mean()).square())


def _steps(row: Row) -> Failure | None:
    """Labels differ within a text: E (y - m)^2 = E y^2 - 2 m E y + m^2."""
    label, mean = row["step_label"], row["step_label"].mean()
    return _unexplained(row["step_squared_error"], row["step_squared_label"] - 2 * mean * label + mean**2)


def _unexplained(error: Tensor, variance: Tensor) -> Failure | None:
    """What is wrong with squared errors, beside those of the mean label."""
    if _above(variance - error):
        return None
    if not variance.any():
        return Failure("all labels are the same")
    explained = 1 - float(error.mean() / variance.mean())
    return Failure(f"the rewards explain {explained:.1%} of the variance of the labels (their mean: 0%)")


def _classed(row: Row) -> Failure | None:
    label, right = row["class_label"].long(), row["class_accuracy"]
    share = label.bincount() / len(label)
    usual = (label == share.argmax()).double()
    if _above(right - usual) or _above(-share[label].log() - row["class_loss"]):
        return None
    return Failure(f"accuracy {float(right.mean()):.3f} (always the most frequent class: {float(usual.mean()):.3f})")


def _above(gain: Tensor) -> bool:
    """Whether a mean is above 0 by more than its error."""
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
    return float(gain.mean()) > ERRORS * error
