"""The loss and the metrics of a batch: each row by what it holds, all rows with the same weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..config import HeadConfig, InsertionConfig
from .data.rows import KINDS, Classed, Graded, Pair, Stepped
from .losses import (
    LOSSES,
    WEIGHTS,
    align_pairs,
    centering_loss,
    class_loss,
    final_weights,
    graded_loss,
    pair_metrics,
    step_loss,
    within,
)
from .model import OtterOutput
from .modules import parameter_dtype

Metrics = dict[str, Tensor]

METRICS = (
    *("accuracy", "margin", "min_reward", "mean_reward", "max_reward", "prefix_accuracy"),
    *("squared_error", "graded_reward", "graded_label"),
    "class_accuracy",
    "step_accuracy",
    *("reward_column", "pair_loss", "pair_coin_loss", "class_label", "class_loss"),
    *("step_label", "step_squared_label", "step_squared_error"),
)
"""Columns of the table of metrics. ``accuracy`` is that of pairs, as in TRL's ``RewardTrainer``."""

_CORRELATED = ("graded_reward", "graded_label")
NOT_LOGGED = (*_CORRELATED, *METRICS[METRICS.index("reward_column") :])
"""Columns that are not logged as they are: for ``correlation``, and for :mod:`.chance`."""


@dataclass(frozen=True)
class Objective:
    """What is computed from the rewards of a batch."""

    insertion: InsertionConfig
    loss: str = "prefix"
    """``prefix``: every response token is trained; ``final``: the last alone. Steps are trained at their ends."""
    center: float = 0.0
    """Weight of :func:`~otter_gguf.training.losses.centering_loss` for pairs."""

    def __call__(self, output: OtterOutput, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Losses (B) and metrics (B, len(METRICS)) of a batch of :func:`~otter_gguf.training.data.collate`.

        The metrics have the same shape whatever a batch holds, NaN where a row has none, so that processes whose
        batches hold rows of different kinds can gather them.
        """
        assert output.rewards is not None
        assert output.raw_rewards is not None
        dtype = parameter_dtype(output.rewards.dtype)  # mixed precision would round losses to 8 bits
        rewards, scores = output.rewards.to(dtype), output.raw_rewards.to(dtype)
        losses = rewards.new_zeros(len(batch["kind"]))
        metrics = rewards.new_full((len(losses), len(METRICS)), torch.nan)
        metrics[:, METRICS.index("reward_column")] = batch["rewards"][:, 0].to(dtype)
        for kind, compute in (
            (Pair, self._pairs),
            (Graded, self._graded),
            (Classed, self._classed),
            (Stepped, self._steps),
        ):
            rows = (batch["kind"] == KINDS.index(kind)).nonzero().squeeze(1)
            if len(rows):
                values, found = compute(rewards, scores, batch, rows)
                losses = losses.index_copy(0, rows, values)
                for name, value in found.items():
                    metrics[rows, METRICS.index(name)] = value.detach().to(dtype)
        return losses, metrics

    def _pairs(self, rewards: Tensor, _: Tensor, batch: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Metrics]:
        rejected = torch.arange(len(batch["kind"]), len(rewards), device=rows.device)
        texts = torch.cat([rows, rejected])
        column = batch["rewards"][batch["row"][texts], 0]
        pairs = align_pairs(_select(rewards[texts], column), batch["start"][rows], batch["length"][texts])
        margin = batch["label"][rows].to(rewards.dtype)
        losses = LOSSES[self.loss](pairs, margin)
        same = torch.zeros_like(pairs.chosen)
        coin = LOSSES[self.loss](replace(pairs, chosen=same, rejected=same), margin)
        found = {**pair_metrics(pairs), "pair_loss": losses, "pair_coin_loss": coin}
        if self.center:
            losses = losses + self.center * centering_loss(pairs)
        return losses, found

    def _graded(self, rewards: Tensor, _: Tensor, batch: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Metrics]:
        own, label = _select(rewards[rows], batch["rewards"][rows, 0]), batch["label"][rows].to(rewards.dtype)
        losses = graded_loss(own, label, self._weights(own, batch, rows))
        final = _at(own, batch["length"][rows] - 1)
        return losses, {"squared_error": (final - label).square(), "graded_reward": final, "graded_label": label}

    def _classed(self, _: Tensor, scores: Tensor, batch: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Metrics]:
        own, columns, label = scores[rows], batch["rewards"][rows], batch["label"][rows].long()
        losses = class_loss(own, columns, label, self._weights(own, batch, rows))
        at_end = final_weights(batch["start"][rows], batch["length"][rows], own)
        last = class_loss(own.detach(), columns, label, at_end)
        right = predicted_class(own, columns, batch["length"][rows]) == label
        return losses, {"class_accuracy": right, "class_label": label, "class_loss": last}

    def _steps(self, rewards: Tensor, scores: Tensor, batch: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Metrics]:
        column, end, label = batch["rewards"][rows, 0], batch["step_end"][rows], batch["step_label"][rows]
        mask, label = end >= 0, label.to(rewards.dtype)
        own, raw = (_at(_select(values[rows], column), end.clamp(min=0)) for values in (rewards, scores))
        heads = head_columns(self.insertion).items()
        sigmoid = torch.tensor([head.activation == "sigmoid" for columns, head in heads for _ in columns])
        sigmoid = sigmoid.to(column.device)[column]
        losses = step_loss(own, raw, label, mask, sigmoid)
        above = torch.where(sigmoid[:, None], raw > 0, own > 0.5)
        right = (above == (label > 0.5)) & mask
        predicted = torch.where(sigmoid[:, None], raw.sigmoid(), own)
        measured = {
            "step_accuracy": right,
            "step_label": label,
            "step_squared_label": label.square(),
            "step_squared_error": (predicted - label).square(),
        }
        return losses, {name: (value * mask).sum(dim=1) / mask.sum(dim=1) for name, value in measured.items()}

    def _weights(self, own: Tensor, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        return WEIGHTS[self.loss](batch["start"][rows], batch["length"][rows], own)


def head_columns(insertion: InsertionConfig) -> dict[range, HeadConfig]:
    """The value heads by their columns among ``reward_labels``."""
    ends = list(accumulate((len(head.labels) for head in insertion.value_heads), initial=0))
    return {range(*columns): head for columns, head in zip(pairwise(ends), insertion.value_heads, strict=True)}


@torch.no_grad()
def predicted_class(scores: Tensor, columns: Tensor, length: Tensor) -> Tensor:
    """Column of the highest raw score of the row's head at the last token, (B). Arguments as of ``class_loss``."""
    last = scores[torch.arange(len(scores), device=scores.device), length - 1]
    return last.masked_fill(~within(columns, scores.shape[2]), -torch.inf).argmax(dim=1)


def summary(metrics: Tensor) -> dict[str, float]:
    """What is logged of a table (rows, len(METRICS)): nothing for kinds of which there was no row.

    Means, but for ``min_reward`` and ``max_reward``; of graded texts also ``correlation``, Pearson's, between the
    reward of the whole text and its label.
    """
    logged = {}
    for name, column in zip(METRICS, metrics.unbind(dim=1), strict=True):
        values = column[~column.isnan()]
        if len(values) and name not in NOT_LOGGED:
            logged[name] = float({"min_reward": values.min(), "max_reward": values.max()}.get(name, values.mean()))
    graded = metrics[:, [METRICS.index(name) for name in _CORRELATED]]
    graded = graded[~graded.isnan().any(dim=1)]
    correlation = torch.corrcoef(graded.T)[0, 1] if len(graded) > 1 else torch.tensor(torch.nan)
    return logged if correlation.isnan() else {**logged, "correlation": float(correlation)}


def _select(values: Tensor, column: Tensor) -> Tensor:
    """(N, T, n_rewards), one column a text -> (N, T)."""
    return values.gather(2, column[:, None, None].expand(-1, values.shape[1], 1)).squeeze(2)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Entries of (B, T) at index (B) or (B, S)."""
    return values.gather(1, index.view(len(values), -1)).view(index.shape)
