"""What generation gives, token by token, and the array types that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

FinishReason = Literal["stop", "length", "content_filter"]
"""Why a text ended, in OpenAI's words: by its own end, a stop string or a criterion; for want of room or of
``max_tokens``; because a reward fell below a limit (:class:`otter_gguf.Threshold`)."""

Record = dict[str, Any]
"""What a policy looked at in a step, in plain JSON types; the entries stand in ``docs/guidance.md``."""


class Step(NamedTuple):
    """One token of a text."""

    token: int
    rewards: Float32
    """(n_rewards,) for the text that ends with the token."""


class Logprobs(NamedTuple):
    """Log-probabilities of one place in a text under the base, at temperature 1, in nats."""

    logprob: float
    """Of the token that was chosen."""
    tokens: list[int]
    """The most likely ones, best first."""
    logprobs: list[float]


class Event(NamedTuple):
    """One token of a text, when it has become part of it."""

    step: Step
    logprobs: Logprobs | None = None
    records: tuple[Record, ...] = ()


@dataclass
class Piece:
    """Text that is certain, with the tokens that it begins."""

    index: int = 0
    """Which text of its call."""
    text: str = ""
    events: list[Event] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where each token begins, in characters of the whole text."""
    finish_reason: FinishReason | None = None
    records: list[Record] = field(default_factory=list)
