"""ARGS: alignment as reward-guided search (arXiv 2402.01694, ICLR 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .base import Candidates, Float32, Policy, Signal, reward_index


@dataclass(frozen=True)
class ARGS(Policy):
    """``score(v) = logit(v) + weight * reward(text v)`` over the base's best ``n_candidates`` tokens.

    With temperature 0 the best score wins (ARGS greedy); else the token is drawn from softmax(score / T), where T
    divides the whole sum, reward included (ARGS stochastic). Raw logits are used; log-probabilities would differ by a
    constant within a step. With ``weight=0`` nothing is fed but the winner, as in plain decoding.
    """

    weight: float = 1.0
    """In logits per unit of reward; the paper uses 1.0 to 1.5. Negative steers away."""
    n_candidates: int = 10
    """Tokens considered in a step; the paper uses 10."""
    label: str | None = None
    """Which reward guides; needed if the model predicts several."""
    center: bool = False
    """Subtract the candidates' mean reward first. Changes nothing here but how the scores read."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ConfigError(f"ARGS: weight is {self.weight}, expected a finite number")
        if self.n_candidates < 1:
            raise ConfigError(f"ARGS: n_candidates is {self.n_candidates}, expected at least 1")

    def check(self, labels: Sequence[str]) -> None:
        """The label must be known."""
        reward_index(labels, self.label)

    def signal(self) -> Signal:
        """Rewards, unless they would count nothing."""
        return Signal.VALUE if self.weight != 0 else Signal.NONE

    def scores(self, candidates: Candidates, labels: Sequence[str]) -> Float32:
        """(k,) logit + weight * reward."""
        if self.weight == 0:
            return candidates.logits
        rewards: Float32 = candidates.rewards[:, reward_index(labels, self.label)]
        if self.center:
            rewards = rewards - rewards.mean()
        scores: Float32 = candidates.logits + np.float32(self.weight) * rewards
        return scores
