"""ARGS: alignment as reward-guided search (arXiv 2402.01694, ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..steps import Float32
from .base import Candidates, Capabilities, Policy, check_at_least, check_finite, check_reward
from .ensemble import Ensemble


@dataclass(frozen=True)
class ARGS(Policy):
    """``score(v) = logit(v) + weight * reward(text v)`` over the base's best ``n_candidates`` tokens.

    With temperature 0 the best score wins (ARGS greedy); else the token is drawn from softmax(score / T), where T
    divides the whole sum, reward included (ARGS stochastic). The paper's scores are raw logits. Log-probabilities and
    centred rewards differ from them by one number a step, the same for all candidates: no choice changes, only how
    scores read.
    """

    weight: float = 1.0
    """In logits per unit of reward; the paper uses 1.0 to 1.5. Negative steers away, 0 is plain decoding."""
    n_candidates: int = 10
    """Tokens considered in a step; the paper uses 10."""
    label: str | Ensemble | None = None
    """Which reward guides; needed if there are several."""
    center: bool = False
    """Subtract the candidates' mean reward first."""
    log_probabilities: bool = False
    """Score by log-probabilities over the whole vocabulary, in nats, in the place of logits."""

    def __post_init__(self) -> None:
        check_finite(self, weight=self.weight)
        check_at_least(self, 1, n_candidates=self.n_candidates)

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there."""
        check_reward(capabilities, self.label)

    @property
    def is_noop(self) -> bool:
        """With weight 0."""
        return self.weight == 0

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) logit or log-probability + weight * reward."""
        rewards = candidates.reward(self.label)
        if self.center:
            rewards = rewards - rewards.mean()
        scores: Float32 = candidates.logits + np.float32(self.weight) * rewards
        if self.log_probabilities:
            assert candidates.state is not None
            scores = scores - np.float32(candidates.state.log_sum_exp)
        return scores
