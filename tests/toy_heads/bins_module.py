"""The torch module of the toy kind ``bins``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from otter_gguf.training.modules import Head, Table, ValueHead


class BinsHead(Head):
    """Probabilities of bins."""

    centres: Table

    def forward(self, state: Tensor) -> Tensor:
        """Final normed state (..., d + e) -> probabilities (..., n_bins)."""
        return torch.softmax(self.project(state), dim=-1)

    def initialise(
        self, generator: torch.Generator, value_heads: Mapping[str, ValueHead], output_embedding: Callable[[], Tensor]
    ) -> None:
        """Drawn as any head; centres evenly from -1 to 1."""
        super().initialise(generator, value_heads, output_embedding)
        centres = self.centres.otter.weight
        centres.copy_(torch.linspace(-1, 1, centres.shape[1]).expand_as(centres))
