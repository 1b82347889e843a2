"""A model in memory with its context: what generation works with, below the class that users meet."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from .. import _native
from .._numbers import shown
from ..config import InsertionConfig
from ..errors import ConfigError, MismatchError
from ..text import utf8
from .streams import StreamPool
from .turns import Turn

BYTES = (bytes, bytearray, memoryview)


@dataclass(eq=False)
class Session:
    """A loaded model, its context, and the texts in it."""

    model: _native.Model
    context: _native.Context
    path: str
    insertion: InsertionConfig | None
    """None for a plain model."""
    n_ctx: int
    """Tokens that a text can have, prompt included."""
    seed: int = -1
    """For requests that name none; -1 = another one each time."""
    turn: Turn = field(init=False)
    """Held while the context is used."""
    _same_tokens: weakref.WeakSet[Session] = field(init=False, default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self.turn = Turn(self.path)

    @cached_property
    def streams(self) -> StreamPool:
        """The texts in the context."""
        has_insertion = self.insertion is not None
        return StreamPool(self.context, self.n_rewards, reads_heads=has_insertion, n_ctx=self.n_ctx)

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self.model.n_vocab

    @property
    def n_rewards(self) -> int:
        """Rewards of a token; 0 for a plain model."""
        return self.model.n_rewards

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """What each reward means."""
        return self.insertion.reward_labels if self.insertion else ()

    @property
    def vocabulary_heads(self) -> tuple[str, ...]:
        """Names of the heads that score every next token."""
        return tuple(head.name for head in self.insertion.vocabulary_heads) if self.insertion else ()

    def tokenize(
        self, text: str | bytes, *, what: str = "the text", add_bos: bool = True, special: bool = False
    ) -> list[int]:
        """Tokens of a text, which messages call ``what``. ``special``: read ``<|...|>`` as the token of that name."""
        if not isinstance(text, (str, *BYTES)):  # bytes(n) of a number n would take n bytes
            raise ConfigError(f"{what} is a {type(text).__name__}, expected str or bytes")
        data = utf8(text, what) if isinstance(text, str) else bytes(text)
        return self.model.tokenize(data, add_special=add_bos, parse_special=special)

    def check_vocabulary(self, other: Session) -> None:
        """``MismatchError`` with the first difference unless both models have the same tokens. Remembered."""
        if self is other or other in self._same_tokens:
            return
        names = f"{other.path} and {self.path}"
        if self.n_vocab != other.n_vocab:
            raise MismatchError(f"{names} have other vocabularies: {other.n_vocab} and {self.n_vocab} tokens")
        for token in range(self.n_vocab):
            theirs, ours = other.model.token_bytes(token, special=True), self.model.token_bytes(token, special=True)
            if theirs != ours:
                raise MismatchError(f"{names} have other vocabularies: token {token} is {theirs!r} and {ours!r}")
        self._same_tokens.add(other)


class LanguageModel(Protocol):
    """A model that guidance or a call is given beside the one that generates: an :class:`otter_gguf.Otter`."""

    @property
    def session(self) -> Session:
        """What it is and what it runs in."""


def sessions_by_name(given: LanguageModel | Mapping[str, LanguageModel] | None) -> dict[str, Session]:
    """The ``reward_model`` of a call: a single one has no name. ``ConfigError`` for anything else."""
    models = {} if given is None else dict(given) if isinstance(given, Mapping) else {"": given}
    sessions = {}
    for name, model in models.items():
        session = getattr(model, "session", None)
        if not isinstance(session, Session) or not isinstance(name, str):
            raise ConfigError(f"reward_model is {shown(given)}, expected an Otter, or a dict of them by name")
        sessions[name] = session
    return sessions
