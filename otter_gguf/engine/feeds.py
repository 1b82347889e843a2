"""What texts ask of the engine: tokens to be fed.

Each text is a coroutine. It awaits a :class:`Feed`, a :class:`Prefill` or a :class:`Told`, and the engine resumes it
when that has been done; what all texts want fed goes through one batch (:meth:`otter_gguf.engine.Engine.step`). The
``async`` of these coroutines is no asyncio: no event loop is needed, and none is disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..context.streams import Stream, StreamPool
from ..errors import ContextFullError
from ..steps import Event, Float32, Int32, Piece

Entry = tuple[Stream, Int32]
"""A stream and the tokens for its next position: one that becomes part of it, or candidates, a sequence each."""


@dataclass(eq=False)
class Part:
    """What is fed together or, where the cache has no room, not at all."""

    entries: list[Entry]
    """The first one's stream is the text; the others read along with it."""
    n_keep: int | None = None
    """Where the cache is full, shift the text and keep so many tokens at its beginning; None = leave it out."""
    rewards: list[Float32] | None = None
    """The answer: (k, n_rewards) of each entry; None = there was no room, and the streams are closed."""

    @property
    def stream(self) -> Stream:
        """The text's."""
        return self.entries[0][0]


@dataclass(eq=False)
class Feed:
    """The next tokens of one or several streams of one context, to be fed in the batch of this step.

    With ``candidates``, the tokens of an entry stand side by side at one position, and :meth:`StreamPool.keep` must
    follow; else each entry has one token, which becomes part of its stream.
    """

    pool: StreamPool
    parts: list[Part]
    candidates: bool = False

    def __await__(self) -> Generator[Feed, None, None]:
        yield self


@dataclass(eq=False)
class Prefill:
    """The beginnings of texts, to be fed in pieces beside the running ones. No logits are computed.

    Awaiting it gives (n, n_rewards) of every token where ``read`` is "rewards" or "logits", (n - 1,) ln p of each next
    token where it is "log_probabilities", which is one piece of any length; all for a single entry.
    """

    pool: StreamPool
    entries: list[tuple[Stream, Sequence[int]]]
    read: Literal["nothing", "rewards", "log_probabilities", "logits"] = "nothing"
    visit: Callable[[int, Float32], None] | None = None
    """Called with each position and its (n_vocab,) logits, a view, where ``read`` is "logits"."""
    answers: list[Float32] = field(default_factory=list)
    error: ContextFullError | None = None
    """Why they cannot be fed; raised where they are awaited."""

    @property
    def n_left(self) -> int:
        """Tokens that are yet to be fed."""
        return sum(len(tokens) for _, tokens in self.entries)

    def __await__(self) -> Generator[Prefill, None, Float32]:
        if self.n_left:
            yield self
        if self.error is not None:
            raise self.error
        if self.answers:
            return np.concatenate(self.answers)
        return np.empty(0 if self.read == "log_probabilities" else (0, self.pool.n_rewards), np.float32)


@dataclass(eq=False)
class Told:
    """Tokens of the text that have become certain; the text goes on in the next step."""

    tokens: list[tuple[Event, Piece | None]]
    """Each with the text that is certain with it."""

    def __await__(self) -> Generator[Told, None, None]:
        yield self


@dataclass(eq=False)
class Until:
    """Something that another text has to do first."""

    is_so: Callable[[], bool]

    def __await__(self) -> Generator[Until, None, None]:
        if not self.is_so():
            yield self


Wish = Feed | Prefill | Told | Until
