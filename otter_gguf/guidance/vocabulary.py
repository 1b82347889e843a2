"""Guidance by a vocabulary head: one forward pass a token, however many candidates there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .._numbers import shown
from ..errors import ConfigError
from ..steps import Float32
from .base import Candidates, Capabilities, Policy, Signal, State, check_at_least, check_finite, check_vocabulary_head

Order = Literal["cut_first", "bonus_first"]


@dataclass(frozen=True)
class Vocabulary(Policy):
    """``score(v) = logit(v) + weight * q(v)``, where q(v) is a vocabulary head's score of v as the next token.

    The orders of cut and bonus: ``cut_first`` takes the base's best ``n_candidates`` tokens and adds the bonus to them
    (RAD-Q, arXiv 2407.04615); ``bonus_first`` adds it to every token of the vocabulary and takes the best sums (FaRMA,
    arXiv 2502.04517), so that a token far down the base's list can be reached.
    """

    weight: float = 1.0
    """In logits per unit of reward. Negative steers away, 0 is plain decoding."""
    n_candidates: int = 40
    """Tokens left after the cut."""
    head: str | None = None
    """Which vocabulary head guides; needed if there are several."""
    order: Order = "cut_first"
    """What comes first: the cut or the bonus."""
    clip: tuple[float, float] | None = None
    """Scores below the first count as the first, above the second as the second."""
    center: bool = False
    """Subtract the candidates' mean score. Changes no choice, only how scores read."""

    def __post_init__(self) -> None:
        check_finite(self, weight=self.weight)
        check_at_least(self, 1, n_candidates=self.n_candidates)
        if self.order not in get_args(Order):
            known = ", ".join(get_args(Order))
            raise ConfigError(f"Vocabulary: order is {shown(self.order)}, expected one of {known}")
        if self.clip is not None:
            object.__setattr__(self, "clip", self._checked(tuple(self.clip)))

    def _checked(self, clip: tuple[float, ...]) -> tuple[float, ...]:
        check_finite(self, **{f"clip[{index}]": bound for index, bound in enumerate(clip)})
        if len(clip) != 2 or clip[0] >= clip[1]:
            raise ConfigError(f"Vocabulary: clip is {clip}, expected a lower and a higher number")
        return clip

    def check(self, capabilities: Capabilities) -> None:
        """The head must be there."""
        check_vocabulary_head(capabilities, self.head)

    @property
    def is_noop(self) -> bool:
        """With weight 0."""
        return self.weight == 0

    def signal(self) -> Signal:
        """The head's scores."""
        return Signal.VOCABULARY

    def vocabulary_head(self) -> str | None:
        """The one that guides."""
        return self.head

    def bonus(self, state: State) -> Float32 | None:
        """(n_vocab,) weighted scores, to be added before the cut; None if the cut comes first."""
        if self.order == "cut_first":
            return None
        return self._bonus(state.vocabulary_scores(self.head))

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) logit + weight * score."""
        bonus = self._bonus(candidates.vocabulary)
        if self.center:
            bonus = bonus - bonus.mean()
        scores: Float32 = candidates.logits + bonus
        return scores

    def _bonus(self, scores: Float32) -> Float32:
        clipped = scores if self.clip is None else scores.clip(*self.clip)
        bonus: Float32 = np.float32(self.weight) * clipped
        return bonus
