"""What reads along with a text: reward models, and the auxiliary streams of policies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..context.session import Session
from ..context.streams import Stream
from ..errors import ConfigError, ContextFullError
from ..steps import Float32, Int32
from .feeds import Feed, Part, Prefill


class Reader:
    """A stream that reads a text, with the tokens that it has yet to read."""

    def __init__(self, session: Session, stream: Stream) -> None:
        self.session, self.stream = session, stream
        self.unread: list[int] = []

    def accept(self, token: int) -> None:
        """A token of the text; read when it is needed."""
        self.unread.append(token)

    def take_unread(self) -> Int32:
        """What it has yet to read, which the caller feeds."""
        unread, self.unread = self.unread, []
        return np.asarray(unread, np.int32)

    def has_room(self) -> bool:
        """Whether another token fits. ``ConfigError`` if the model that reads was given another text meanwhile."""
        self.session.streams.check([self.stream])
        return len(self.stream.tokens) + len(self.unread) < self.session.n_ctx

    async def begin(self, prompt: Sequence[int]) -> None:
        """Read the prompt."""
        await Prefill(self.session.streams, [(self.stream, prompt[:-1])])
        self.unread = [prompt[-1]]

    async def catch_up(self, *, but: int) -> bool:
        """Read all but so many of the unread tokens. False: the cache has no room."""
        count = max(0, len(self.unread) - but)
        try:
            await Prefill(self.session.streams, [(self.stream, self.unread[:count])])
        except ContextFullError:
            return False
        del self.unread[:count]
        return True

    async def read(self) -> bool:
        """Read up to the end: logits and rewards are then those behind the last token. False: the cache has no room."""
        if not self.unread:
            return True
        if not await self.catch_up(but=1):
            return False
        part = Part([(self.stream, self.take_unread())])
        await Feed(self.session.streams, [part])
        return part.rewards is not None


class AuxiliaryReader(Reader):
    """Reads an auxiliary stream, of which the logits are wanted."""

    def __init__(self, name: str, session: Session, stream: Stream, *, same_context: bool) -> None:
        super().__init__(session, stream)
        self.name = name
        self.same_context = same_context

    def logits(self, tokens: Int32) -> Float32:
        """(k,) of next tokens, after :meth:`read`."""
        return self.stream.logits[tokens]


class RewardReader(Reader):
    """A reward model: rewards of the text, and of candidates for its next token."""

    def __init__(self, name: str, session: Session, stream: Stream) -> None:
        super().__init__(session, stream)
        stream.with_logits = False
        self.labels = labels_by_name(name, session)
        self._asked: Part | None = None

    async def candidate_rewards(self, candidates: Int32) -> Float32 | None:
        """(k, n_rewards); :meth:`keep` must follow. None: the cache has no room."""
        if not await self.catch_up(but=0):
            return None
        self._asked = Part([(self.stream, candidates)])
        await Feed(self.session.streams, [self._asked], candidates=True)
        return self._asked.rewards[0] if self._asked.rewards is not None else None

    def keep(self, winner: int) -> None:
        """Make one of the candidates part of the stream."""
        assert self._asked is not None
        assert self._asked.rewards is not None
        self.session.streams.keep(self._asked.entries, [winner], self._asked.rewards)


def labels_by_name(name: str, session: Session) -> tuple[str, ...]:
    """A reward model's labels as policies see them: ``name:label``, or as they are where it has no name."""
    return tuple(f"{name}:{label}" if name else label for label in session.reward_labels)


def check_reward_model(main: Session, other: Session) -> None:
    """``ConfigError`` if it predicts no rewards or is the model itself, ``MismatchError`` if it has other tokens."""
    if not other.n_rewards:
        raise ConfigError(f"reward_model {other.path} predicts no rewards; open it with its sidecar (otter=)")
    if other is main:
        raise ConfigError("reward_model is the model itself: leave it out, or open the file a second time")
    main.check_vocabulary(other)
