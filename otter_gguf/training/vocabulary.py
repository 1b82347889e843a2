"""The torch module of vocabulary heads, their first values, and the unit that they share with the reward they predict.

A score is <W s + c, t(v)> + <w, s> + b. The table t starts as what the base itself knows about its tokens, the
principal directions of its output embedding; W and c start at zero, so that every score starts as a reward of the
prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ..heads import rewards_of
from .modules import Head, Table, ValueHead

_CHUNK = 8192  # rows of the output embedding that are F64 at a time


class VocabularyHead(Head):
    """A score for every possible next token v from the state s before it, at rank r.

    raw(v) = <W s + c, t(v)> + <w, s> + b;  score(v) = scale * activation(raw(v)) + shift

    Rows 0 to r - 1 of ``otter.weight`` are W, row r is w; ``otter.bias`` is c, then b. Splitting a baseline <w, s> off
    the part that depends on the token follows arXiv 2407.04615.
    """

    table: Table
    """The rows t(v), (V, r)."""

    def forward(self, state: Tensor) -> Tensor:
        """Final normed state (..., d + e) -> query (..., r + 1): W s + c, then <w, s> + b."""
        # The table is read behind the forward pass, but distributed training looks for used parameters inside it.
        return self.project(state) + 0.0 * self.table.otter.weight[0, 0]

    def raw(self, query: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Scores before activation and calibration.

        Args:
            query: (..., r + 1), from :meth:`forward`.
            tokens: (..., k) candidates for each query; ``None`` = the whole vocabulary.

        Returns:
            (..., k) or (..., V).
        """
        direction, baseline = query[..., :-1], query[..., -1:]  # (..., r), (..., 1)
        if tokens is None:
            return functional.linear(direction, self.table.otter.weight) + baseline
        rows = functional.embedding(tokens, self.table.otter.weight)  # (..., k, r)
        return (rows @ direction[..., None]).squeeze(-1) + baseline

    def scores(self, query: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Calibrated scores, in the unit of the reward that the head predicts; arguments as of :meth:`raw`."""
        return self.calibrated(self.raw(query, tokens))

    def initialise(
        self, generator: torch.Generator, value_heads: Mapping[str, ValueHead], output_embedding: Callable[[], Tensor]
    ) -> None:
        """The table from the base's output embedding, W and c with 0, w and b from the value head, where both read the
        same state or the vocabulary head reads more. Nothing is drawn."""
        self.table.otter.weight.copy_(principal_table(output_embedding(), self.config.rank))
        weight, bias = self.otter.weight, cast(Tensor, self.otter.bias)
        weight.zero_()
        bias.zero_()
        source, index = self.teacher(value_heads)
        columns = source.otter.weight.shape[1]
        if self.config.input in (source.config.input, "both"):
            first = weight.shape[1] - columns if source.config.input == "inserted" else 0
            weight[-1, first : first + columns].copy_(source.otter.weight[index])
            bias[-1].copy_(cast(Tensor, source.otter.bias)[index])

    def teacher(self, value_heads: Mapping[str, ValueHead]) -> tuple[ValueHead, int]:
        """The value head whose reward it predicts, and the index of the label in it."""
        config, index = rewards_of(head.config for head in value_heads.values())[self.config.labels[0]]
        return value_heads[config.name], index

    @torch.no_grad()
    def follow(self, label: str, mean: float, deviation: float) -> None:
        """Scores keep the unit of their reward."""
        if self.config.labels[0] != label:
            return
        bias = cast(Tensor, self.otter.bias)
        self.otter.weight.div_(deviation)
        bias.div_(deviation)
        bias[-1:] += ((self.shift - mean) / deviation - self.shift) / self.scale


def principal_table(embedding: Tensor, rank: int) -> Tensor:
    """The projection of each token's embedding on the leading principal directions of all of them.

    The directions are eigenvectors of the covariance of the rows, exact in F64; each one's largest entry is positive,
    so that the table depends on nothing but the embedding.

    Args:
        embedding: (V, d).
        rank: at most d.

    Returns:
        (V, rank) in F32 on the CPU: columns with mean 0 and mean square 1, uncorrelated, leading direction first. A
        direction in which the embedding does not vary is 0.
    """
    rows = embedding.detach().cpu()
    mean = torch.cat([part.double().sum(0, keepdim=True) for part in rows.split(_CHUNK)]).sum(0) / len(rows)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(_CHUNK):
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / len(rows))
    variance, directions = torch.linalg.eigh(covariance)
    variance, directions = variance.flip(0)[:rank], directions.flip(1)[:, :rank]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scale = torch.where(variance > 1e-12 * variance[0], variance.clamp_min(1e-300).rsqrt(), 0.0)
    directions = directions * largest.sign() * scale
    return torch.cat([((part.double() - mean) @ directions).float() for part in rows.split(_CHUNK)])
