"""RAD: reward-augmented decoding (arXiv 2310.09520, EMNLP 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..steps import Float32
from .base import Candidates, Capabilities, Policy, check_at_least, check_finite, check_reward
from .ensemble import Ensemble


@dataclass(frozen=True)
class RAD(Policy):
    """``score(v) = logit(v) + beta * rho(text v)`` over the base's best ``n_candidates`` tokens.

    rho is the reward clipped to [``low``, ``high``], so that no single candidate outweighs the base by more than
    ``beta * (high - low)`` logits; ``inverse`` takes 1 - rho, to steer away from what a classifier predicts (a
    toxicity between 0 and 1). The paper clips to [0, 1]: a reward of another scale needs bounds of its own.
    """

    beta: float = 10.0
    """In logits per unit of reward; the paper uses 10 to 50. 0 is plain decoding."""
    n_candidates: int = 20
    """Tokens considered in a step; the paper uses 20."""
    label: str | Ensemble | None = None
    """Which reward guides; needed if there are several."""
    low: float = 0.0
    """Lower rewards count as this one."""
    high: float = 1.0
    """Higher rewards count as this one."""
    inverse: bool = False
    """Steer away from the reward."""

    def __post_init__(self) -> None:
        check_finite(self, beta=self.beta, low=self.low, high=self.high)
        check_at_least(self, 1, n_candidates=self.n_candidates)
        if self.low >= self.high:
            raise ConfigError(f"RAD: low is {self.low} and high {self.high}, expected low below high")

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there."""
        check_reward(capabilities, self.label)

    @property
    def is_noop(self) -> bool:
        """With beta 0."""
        return self.beta == 0

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) logit + beta * rho."""
        rho = candidates.reward(self.label).clip(self.low, self.high)
        if self.inverse:
            rho = 1 - rho
        scores: Float32 = candidates.logits + np.float32(self.beta) * rho
        return scores
