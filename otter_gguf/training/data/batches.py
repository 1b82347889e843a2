"""Batches: all texts of all rows in one rectangle, for one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rows import KINDS, Classed, Graded, Pair, Row, Stepped


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch of B rows with N texts: the first text of every row, then the rejected ones of the pairs in row order.

    Padded on the right with token 0: causal attention never looks there, so no mask is needed.

    Returns:
        ``input_ids`` (N, T), ``length`` (N) without padding, ``row`` (N): which row a text belongs to.
        ``kind`` (B): index in :data:`~.rows.KINDS`; ``start`` (B): index of the first response token.
        ``rewards`` (B, 2): first column that the row trains, and the one behind the last.
        ``label`` (B): the margin of a pair, the grade of a text, the column of its class; 0 for steps.
        ``step_end`` (B, S): index of each step's last token, -1 = no step; ``step_label`` (B, S).
    """
    pairs = [(index, row) for index, row in enumerate(rows) if isinstance(row, Pair)]
    sequences = [row.sequences[0] for row in rows] + [row.rejected for _, row in pairs]
    steps = [row if isinstance(row, Stepped) else None for row in rows]
    return {
        "input_ids": _padded(sequences, 0, torch.long),
        "length": torch.tensor([len(tokens) for tokens in sequences]),
        "row": torch.tensor([*range(len(rows)), *(index for index, _ in pairs)]),
        "kind": torch.tensor([KINDS.index(type(row)) for row in rows]),
        "start": torch.tensor([row.start for row in rows]),
        "rewards": torch.tensor([(row.rewards[0], row.rewards[-1] + 1) for row in rows]),
        "label": torch.tensor([_label(row) for row in rows], dtype=torch.float32),
        "step_end": _padded([row.ends if row else [] for row in steps], -1, torch.long),
        "step_label": _padded([row.labels if row else [] for row in steps], 0.0, torch.float32),
    }


def _padded(values: Sequence[Sequence[float]], filler: float, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths as one rectangle (rows, longest)."""
    padded = torch.full((len(values), max(map(len, values))), filler, dtype=dtype)
    for row, entries in enumerate(values):
        padded[row, : len(entries)] = torch.tensor(entries, dtype=dtype)
    return padded


def _label(row: Row) -> float:
    if isinstance(row, Pair):
        return row.margin
    return float(row.label) if isinstance(row, Graded | Classed) else 0.0
