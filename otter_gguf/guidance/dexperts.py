"""DExperts: decoding with an expert and an anti-expert (arXiv 2105.03023, ACL 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, MismatchError
from ..steps import Float32
from .base import AuxiliaryStream, Candidates, Capabilities, Policy, Signal, check_at_least, check_finite

if TYPE_CHECKING:
    from ..context.session import LanguageModel

_ROLES = ("expert", "antiexpert")


@dataclass(frozen=True)
class DExperts(Policy):
    """``score(v) = logit(v) + weight * (expert logit(v) - antiexpert logit(v))`` over the nucleus of the base.

    Expert and anti-expert are two further models of the same vocabulary, usually small ones, tuned towards and away
    from what is wanted. A missing one is replaced by the base. The nucleus is the smallest set of the base's best
    tokens with a probability of at least ``top_p`` (at temperature 1, over the whole vocabulary); it is cut before the
    sum. With a tuned and an untuned small model this is proxy tuning (arXiv 2401.08565), which takes ``top_p=1``.

    Each step feeds its token to every model. There is no reward in it: it is a baseline for guidance by rewards.
    """

    expert: LanguageModel | None = None
    """A loaded model, used by this policy alone while a text is generated."""
    antiexpert: LanguageModel | None = None
    """Likewise."""
    weight: float = 2.0
    """The paper uses 2.0 against toxicity and 3.2 for sentiment. 0 is plain decoding, without a nucleus."""
    top_p: float = 0.9
    """Probability of the nucleus; the paper uses 0.9."""
    n_candidates: int = 512
    """Tokens considered in a step: a nucleus that is larger ends there."""

    def __post_init__(self) -> None:
        check_finite(self, weight=self.weight, top_p=self.top_p)
        check_at_least(self, 1, n_candidates=self.n_candidates)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"DExperts: top_p is {self.top_p}, expected more than 0 and at most 1")
        for role in _ROLES:
            model = getattr(self, role)
            if model is not None and not hasattr(model, "n_vocab"):
                raise ConfigError(f"DExperts: {role} is a {type(model).__name__}, expected a loaded model")
        if self.expert is None and self.antiexpert is None:
            raise ConfigError("DExperts: neither expert nor antiexpert is given")

    def check(self, capabilities: Capabilities) -> None:
        """The experts' vocabularies must be as large as the model's. ``MismatchError`` if one is not."""
        for auxiliary in self.auxiliary_streams():
            size = auxiliary.model.session.n_vocab if auxiliary.model else capabilities.n_vocab
            if size != capabilities.n_vocab:
                raise MismatchError(
                    f"DExperts: the {auxiliary.name} has a vocabulary of {size} tokens, the model one of "
                    f"{capabilities.n_vocab}: give models of one vocabulary"
                )

    @property
    def is_noop(self) -> bool:
        """With weight 0."""
        return self.weight == 0

    def signal(self) -> Signal:
        """No reward: the experts' logits are enough."""
        return Signal.NONE

    def auxiliary_streams(self) -> Sequence[AuxiliaryStream]:
        """The experts that there are."""
        models = ((name, getattr(self, name)) for name in _ROLES)
        return tuple(AuxiliaryStream(name, model=model) for name, model in models if model is not None)

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) logit + weight * (expert's - antiexpert's), -inf outside the nucleus. The difference is of the models'
        own logits, so that logit bias and penalties count once."""
        assert candidates.state is not None
        base = candidates.state.logits[candidates.tokens]
        plus, minus = (candidates.auxiliary.get(name, base) for name in _ROLES)
        scores: Float32 = candidates.logits + np.float32(self.weight) * (plus - minus)
        kept = _nucleus(candidates.logits - np.float32(candidates.state.log_sum_exp), self.top_p)
        scores[~kept] = -np.inf
        return scores


def _nucleus(log_probabilities: Float32, top_p: float) -> npt.NDArray[np.bool_]:
    """(k,) whether the better candidates, of (k,) best first, are still short of ``top_p``. The first always is.

    A logit bias may give a candidate more than the whole: it counts as 1.
    """
    probabilities = np.exp(np.minimum(log_probabilities, 0).astype(np.float64))
    before = np.cumsum(probabilities) - probabilities
    kept: npt.NDArray[np.bool_] = before < top_p
    return kept
