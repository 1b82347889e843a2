"""A gate around any policy: guide where the base is unsure, and decode plainly, at a plain step's cost, elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .. import _native
from .._numbers import shown
from ..errors import ConfigError
from ..steps import Float32
from .base import AuxiliaryStream, Candidates, Capabilities, Policy, Signal, State, check_at_least, check_finite

Support = Literal["vocabulary", "candidates"]


@dataclass(frozen=True)
class Gated(Policy):
    """``policy`` guides the steps in which the next token is uncertain under the base; all other steps are plain.

    A step is guided if the entropy of the base's next-token distribution is at least ``entropy`` (SIA, arXiv
    2602.21215) and its most likely token has a probability below ``probability`` (as in nudging, arXiv 2410.09300). One
    of the two must be given; with both, both must hold. Distributions are the base's own, at temperature 1, before
    logit bias and penalties.
    """

    policy: Policy
    """What guides the steps behind the gate."""
    entropy: float | None = None
    """In nats; SIA's threshold is 1.0."""
    probability: float | None = None
    """Of the most likely token; 0.3 to 0.5 is usual."""
    support: Support = "vocabulary"
    """What the entropy is taken over: the whole vocabulary, or the softmax of the policy's ``n_candidates`` best logits
    alone, as in implementations that see no more. The latter is lower and never above ln(n_candidates): thresholds for
    one are none for the other."""
    n_candidates: int = field(init=False, repr=False)
    """Those of the policy."""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise ConfigError(f"Gated: policy is {shown(self.policy)}, expected a token-level policy such as ARGS()")
        if self.entropy is None and self.probability is None:
            raise ConfigError("Gated: neither entropy nor probability is given: nothing tells when to guide")
        if self.entropy is not None:
            check_finite(self, entropy=self.entropy)
        if self.probability is not None:
            check_finite(self, probability=self.probability)
        if self.support not in get_args(Support):
            known = ", ".join(get_args(Support))
            raise ConfigError(f"Gated: support is {shown(self.support)}, expected one of {known}")
        if self.support == "candidates" and self.entropy is None:
            raise ConfigError("Gated: support='candidates' is for the entropy, which is not given")
        check_at_least(self, 1, n_candidates=self.policy.n_candidates)
        object.__setattr__(self, "n_candidates", self.policy.n_candidates)

    def applies_to(self, state: State) -> bool:
        """Whether the base is unsure enough (and the policy itself wants to guide)."""
        if self.entropy is not None and not self._entropy(state) >= self.entropy:
            return False
        if self.probability is not None and not state.top_probability < self.probability:
            return False
        return self.policy.applies_to(state)

    def _entropy(self, state: State) -> float:
        """In nats."""
        if self.support == "vocabulary":
            return state.entropy
        _, best = _native.top_k(state.logits, min(self.n_candidates, len(state.logits)))
        return _native.entropy(best)

    def check(self, capabilities: Capabilities) -> None:
        """What the policy needs."""
        self.policy.check(capabilities)

    @property
    def is_noop(self) -> bool:
        """Whether the policy has no effect."""
        return self.policy.is_noop

    def signal(self) -> Signal:
        """The policy's."""
        return self.policy.signal()

    def reads(self, labels: Sequence[str]) -> tuple[str, ...]:
        """What the policy reads."""
        return self.policy.reads(labels)

    def vocabulary_head(self) -> str | None:
        """The policy's."""
        return self.policy.vocabulary_head()

    def with_tokens(self, tokenize: Callable[[str], list[int]]) -> Policy:
        """The gate around the policy with its texts in tokens."""
        return replace(self, policy=self.policy.with_tokens(tokenize))

    def auxiliary_streams(self) -> Sequence[AuxiliaryStream]:
        """The policy's."""
        return self.policy.auxiliary_streams()

    def bonus(self, state: State) -> Float32 | None:
        """The policy's."""
        return self.policy.bonus(state)

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) by the policy."""
        return self.policy.scores(candidates)

    def note(self, candidates: Candidates) -> dict[str, Any]:
        """The policy's."""
        return self.policy.note(candidates)
