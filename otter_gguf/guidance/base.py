"""What a guidance policy is: it scores the base model's best candidates for the next token.

A policy sees one step at a time and holds no state, so that one object serves any number of texts. The step loop
(:mod:`otter_gguf.generation`) fetches the signal that the policy asks for, draws by its scores, and does the rest.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


class Signal(enum.Enum):
    """What a policy needs to know of each candidate before the choice."""

    NONE = "none"
    """Its logit alone: nothing is fed before the choice."""
    VALUE = "value"
    """Its reward: all candidates are fed, as sibling sequences of one batch."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of one step, best logit first."""

    tokens: Int32
    """(k,) token ids."""
    logits: Float32
    """(k,) raw logits of the base."""
    rewards: Float32
    """(k, n_rewards) rewards of the text with the candidate; (k, 0) for :attr:`Signal.NONE`."""


class Policy(ABC):
    """Base class of guidance policies. Subclass it to decode by your own rule."""

    n_candidates: int
    """How many of the base's best tokens are considered in a step."""

    def check(self, labels: Sequence[str]) -> None:  # noqa: B027 (nothing to check is a valid answer)
        """Raise ``ConfigError`` if the policy cannot work with a model of these reward labels."""

    def signal(self) -> Signal:
        """What :meth:`scores` needs."""
        return Signal.VALUE

    @abstractmethod
    def scores(self, candidates: Candidates, labels: Sequence[str]) -> Float32:
        """(k,) scores: the highest wins at temperature 0, else softmax(scores / temperature) is drawn from."""


def reward_index(labels: Sequence[str], label: str | None) -> int:
    """Column of a reward: of the label, or of the only one. ``ConfigError`` names the labels there are."""
    if label is None and len(labels) == 1:
        return 0
    if label in labels:
        return labels.index(label)
    asked = "no label is given" if label is None else f"there is no reward {label!r}"
    raise ConfigError(f"guidance: {asked}; this model predicts: {', '.join(labels) or 'no reward'}")


def draw(scores: Float32, temperature: float, rng: np.random.Generator) -> int:
    """Index of the winner: the first of the highest at temperature 0, else one draw from softmax(scores / T)."""
    if temperature == 0:
        return int(np.argmax(scores))
    weights = np.exp((scores - scores.max()).astype(np.float64) / temperature)
    cumulated = np.cumsum(weights)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
