"""Chunk-level beam search: continuations of some tokens each, of which the best are continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .base import Capabilities, check_at_least, check_reward
from .ensemble import Ensemble
from .search import Branch, Search, Workspace


@dataclass(frozen=True)
class ChunkBeam(Search):
    """Each of ``width`` beams is continued ``expansions`` times by ``chunk`` tokens; the ``width`` best by
    ``R(x, y)`` of the text so far are continued in turn, until all have ended. The answer is the best beam.

    Chunk-level beam search of weak-to-strong search (arXiv 2405.19262), with a reward in the place of its ratio of
    likelihoods; blockwise controlled decoding (arXiv 2310.17022) is ``width`` 1. ``width`` 1 with ``chunk`` None is
    best-of-N. All beams begin as the prompt, so the first chunk is drawn width * expansions times; a beam that has
    ended stands as it is, and stays while it is among the best. Of equal rewards the first counts.

    Tokens on which all beams agree are given at the end of each chunk.

    Records of ``kind`` "segment", one a chunk: ``parents`` (index among the beams before), ``candidates`` (tokens of
    the chunk), ``rewards``, and ``kept`` (indices, best first).
    """

    width: int = 2
    """Beams that are continued."""
    expansions: int = 2
    """Continuations of each beam."""
    chunk: int | None = 10
    """Tokens between two choices; None = until the texts end."""
    label: str | Ensemble | None = None
    """Which reward counts; None = the only one."""
    n_sequences: int = field(init=False, repr=False)
    """``width * expansions``."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, width=self.width, expansions=self.expansions)
        if self.chunk is not None:
            check_at_least(self, 1, chunk=self.chunk)
        object.__setattr__(self, "n_sequences", self.width * self.expansions)

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there."""
        check_reward(capabilities, self.label)

    @property
    def is_noop(self) -> bool:
        """With a single beam and a single continuation of it."""
        return self.width * self.expansions == 1

    async def run(self, work: Workspace) -> None:
        """Tokens of the best beam, as far as all beams agree."""
        root = work.root
        beams = [root]
        copies, given = self.n_sequences, 0
        while any(beam.ended is None for beam in beams):
            beams = await self._continue(work, beams, copies)
            copies = self.expansions
            agreed = _agreed([beam.tokens for beam in beams])
            await work.give(beams[0], given, agreed)
            given = agreed
        await work.give(beams[0], given)
        root.ended = beams[0].ended

    async def _continue(self, work: Workspace, beams: Sequence[Branch], copies: int) -> list[Branch]:
        """The best beams after another chunk, best first."""
        begins = [len(beam.tokens) for beam in beams]
        grown = [work.fork(beam, copies) if beam.ended is None else [beam] for beam in beams]
        pool = [(parent, branch) for parent, branches in enumerate(grown) for branch in branches]
        await work.grow([branch for _, branch in pool if branch.ended is None], self.chunk)
        rewards = [await work.reward(branch, self.label) for _, branch in pool]
        kept = np.argsort(-np.asarray(rewards), kind="stable")[: self.width].tolist()
        work.record(
            "segment",
            parents=[parent for parent, _ in pool],
            candidates=[list(branch.tokens[begins[parent] :]) for parent, branch in pool],
            rewards=rewards,
            kept=kept,
        )
        for index, (_, branch) in enumerate(pool):
            if index not in kept:
                work.drop(branch)
        return [pool[index][1] for index in kept]


def _agreed(texts: list[list[int]]) -> int:
    """Length of the beginning that all have in common."""
    first, last = min(texts), max(texts)
    return next((index for index, token in enumerate(first) if last[index] != token), len(first))
