"""What takes turns: plain decoding without Otter, and Otter's step loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from otter_gguf import Otter, _native
from otter_gguf.guidance.base import Policy
from otter_gguf.options import SamplingOptions
from otter_gguf.steps import Step


class Side(Protocol):
    """Something that makes one token after the other."""

    def begin(self, prompt: list[int]) -> None:
        """Start a text."""

    def step(self) -> bool:
        """One token; False where the text has ended instead."""


class Stock:
    """llama.cpp without Otter: its model class, one decode and its sampler chain a token."""

    def __init__(self, model: _native.Model, context: _native.Context, sampling: SamplingOptions) -> None:
        self.model, self.context = model, context
        options = vars(sampling) | {"seed": sampling.seed or 0, "logit_bias": ()}
        del options["json_schema"]
        self.sampler = _native.Sampler(model, **options)

    def begin(self, prompt: list[int]) -> None:
        """Feed the prompt."""
        self.context.sequence_keep(0)
        self.context.sequence_remove(0)
        self.position = 0
        self._feed(prompt)

    def step(self) -> bool:
        """Draw a token and feed it."""
        self._feed([self.sampler.sample(self.context.logits()[0])])
        return True

    def _feed(self, tokens: Sequence[int]) -> None:
        end = self.position + len(tokens)
        outputs = np.zeros(len(tokens), np.bool_)
        outputs[-1] = True
        positions = np.arange(self.position, end, dtype=np.int32)
        self.context.decode(np.asarray(tokens, np.int32), positions, np.zeros_like(positions), outputs)
        self.position = end


class Guided:
    """Otter's step loop, as its users call it."""

    def __init__(
        self, llm: Otter, guidance: Policy | None, sampling: dict[str, Any], reward_model: Otter | None = None
    ) -> None:
        self.llm, self.guidance, self.sampling, self.reward_model = llm, guidance, sampling, reward_model
        self.steps: Iterator[Step] = iter(())

    def begin(self, prompt: list[int]) -> None:
        """Feed the prompt."""
        self.steps = self.llm.generate(prompt, guidance=self.guidance, reward_model=self.reward_model, **self.sampling)

    def step(self) -> bool:
        """One token."""
        return next(self.steps, None) is not None
