"""Guidance that looks further than a token: continuations are sampled plainly, judged, kept, dropped or taken back.

A :class:`Search` drives a :class:`Workspace`, in which branches of one text grow side by side, each a sequence of the
context. It gives tokens as soon as they are certain. Its methods are coroutines, because what they want fed goes
through the engine, in the batches of all texts: ``await work.grow(branches)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..steps import FinishReason, Float32, Int32
from .base import Capabilities, State, labels_of
from .ensemble import Ensemble


class Branch(Protocol):
    """One continuation of the prompt under way."""

    tokens: list[int]
    """The continuation's, without the prompt."""
    rewards: list[Float32]
    """(n_rewards,) by the model itself, of the text up to each of the tokens."""
    ended: FinishReason | None
    """Why it goes no further: end of text or a stop string ("stop"), no room or ``max_tokens`` ("length")."""


class Snapshot(Protocol):
    """A place to which a branch can be taken back."""


class Workspace(Protocol):
    """What a search works with."""

    root: Branch
    """The prompt, with nothing generated."""
    rng: np.random.Generator
    """For the search's own draws; seeded by the call's seed."""
    max_tokens: int | None
    """At most so many tokens of the continuation; None = until the context is full."""
    labels: tuple[str, ...]
    """What rewards there are, those of reward models included."""

    def fork(self, branch: Branch, count: int) -> list[Branch]:
        """``count`` branches that go on from this one, the first of them the branch itself; the others draw with seeds
        of their own, taken from ``rng`` (``int(rng.integers(2**31))`` each). ``ConfigError`` if the context has too few
        sequences."""

    def drop(self, branch: Branch) -> None:
        """Forget a branch and free its sequence."""

    async def grow(
        self,
        branches: Sequence[Branch],
        n_tokens: int | None = None,
        until: Callable[[Branch, State], bool] | None = None,
    ) -> None:
        """Sample plainly, all branches in one batch a step, until each has ``n_tokens`` more, has ended, or ``until``
        (asked after each token, with the state behind it) says enough."""

    async def append(self, branches: Sequence[Branch], tokens: Sequence[int]) -> None:
        """Feed one token to each branch."""

    def state(self, branch: Branch) -> State:
        """Logits, entropy and rewards behind the branch's last token."""

    def candidates(self, branch: Branch, count: int) -> tuple[Int32, Float32]:
        """The best next tokens after logit bias, penalties and grammar, with their logits, best first."""

    def choose(self, branch: Branch, tokens: Int32, scores: Float32) -> int:
        """Index of a choice by llama.cpp's samplers."""

    def end(self, branch: Branch, reason: FinishReason) -> None:
        """Let a branch go no further."""

    def is_end(self, token: int) -> bool:
        """Whether a token ends the text."""

    def snapshot(self, branch: Branch) -> Snapshot:
        """Remember the branch as it is."""

    async def rewind(self, branch: Branch, snapshot: Snapshot) -> None:
        """Take a branch back to a snapshot; draws go on, so that it continues otherwise."""

    async def reward(self, branch: Branch, label: str | Ensemble | None = None) -> float:
        """The reward of prompt and continuation; a reward model is fed what it has not read of them. ``EngineError`` if
        it is infinite or not a number."""

    async def give(self, branch: Branch, begin: int = 0, end: int | None = None) -> None:
        """The branch's tokens in a range are certain: they belong to the text."""

    def record(self, kind: str, **entries: Any) -> None:
        """Add a record (``segment``, ``text`` or ``token``) to the next token that is given, if records are asked for.
        Entries are in plain JSON types."""


class Search(ABC):
    """Base class of guidance by whole segments or texts."""

    n_sequences: int
    """Branches that live at the same time, at most."""
    label: str | Ensemble | None = None
    """Which reward is looked at; None = all there are."""

    def check(self, capabilities: Capabilities) -> None:  # noqa: B027 (nothing to check is a valid answer)
        """Raise ``ConfigError`` if the search cannot work with what there is."""

    @property
    def is_noop(self) -> bool:
        """Whether the search has no effect: the text is then decoded plainly."""
        return False

    def reads(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Which rewards are looked at; as :meth:`otter_gguf.Policy.reads`."""
        return labels_of(self.label, labels)

    def with_tokens(self, tokenize: Callable[[str], list[int]]) -> Search:
        """The search with its texts turned into tokens; as :meth:`otter_gguf.Policy.with_tokens`."""
        return self

    @abstractmethod
    async def run(self, work: Workspace) -> None:
        """Give the tokens of the text, each as soon as it is certain, and leave the final branch's reason for ending
        in ``work.root.ended`` (the root may be that branch)."""
