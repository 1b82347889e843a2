"""Speculative rejection: best-of-N whose least promising texts are dropped on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import ConfigError
from .base import Capabilities, check_at_least, check_finite, check_reward
from .ensemble import Ensemble
from .search import Branch, Search, Workspace


@dataclass(frozen=True)
class SpeculativeRejection(Search):
    """``n`` texts grow side by side; at each pause those below the ``alpha``-quantile of the rewards of all that are
    still growing are dropped. The answer is the finished text with the highest reward (arXiv 2410.20290).

    The quantile interpolates linearly between rewards; finished texts are neither part of it nor dropped by it.

    The paper pauses when the memory is full. Here the memory is a number of tokens, ``n * pause``, so that a seed gives
    the same text on every machine: the first pause comes after ``pause`` tokens, and each later one when the texts that
    are left hold ``n * pause`` tokens again. With ``alpha`` 0.5 the length doubles from pause to pause, and 16 texts of
    128 tokens cost 640 tokens where best-of-N costs 2048. Rewards of unfinished texts must rank as those of finished
    ones do: a reward model trained on whole texts alone may drop the wrong ones.

    Records of ``kind`` "segment", one a pause: ``begin`` (tokens so far), ``candidates`` (tokens since the last pause),
    ``rewards``, ``cutoff`` and ``kept`` (indices); at the end one of kind "text": ``candidates`` (the finished texts),
    ``rewards`` and ``choice``.
    """

    n: int = 16
    """How many texts there are at the beginning; 1 is plain decoding."""
    alpha: float = 0.5
    """Share of the texts that a pause drops."""
    pause: int = 16
    """Tokens of each text at the first pause."""
    label: str | Ensemble | None = None
    """Which reward counts; None = the only one."""
    n_sequences: int = field(init=False, repr=False)
    """Each text has one."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, n=self.n, pause=self.pause)
        check_finite(self, alpha=self.alpha)
        if not 0 < self.alpha < 1:
            raise ConfigError(f"SpeculativeRejection: alpha is {self.alpha}, expected above 0 and below 1 (BestOfN: 0)")
        object.__setattr__(self, "n_sequences", self.n)

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there."""
        check_reward(capabilities, self.label)

    @property
    def is_noop(self) -> bool:
        """With a single text."""
        return self.n == 1

    def next_pause(self, n_live: int, n_grown: int) -> int | None:
        """Tokens of each text at the next pause, when ``n_live`` texts have ``n_grown`` each; None = at their ends."""
        return None if n_live == 1 else max(n_grown + 1, self.n * self.pause // n_live)

    def cutoff(self, rewards: list[float]) -> float:
        """The ``alpha``-quantile."""
        return float(np.quantile(rewards, self.alpha))

    async def run(self, work: Workspace) -> None:
        """All tokens of the best text, when every text has ended or been dropped."""
        root = work.root
        live = work.fork(root, self.n)
        finished = _Finished(work)
        grown = 0
        while live:
            length = self.next_pause(len(live), grown)
            await work.grow(live, None if length is None else length - grown)
            rewards = [(branch, await work.reward(branch, self.label)) for branch in live]
            for branch, reward in rewards:
                if branch.ended is not None:
                    finished.add(branch, reward)
            live = self._reject([pair for pair in rewards if pair[0].ended is None], work, grown)
            grown = length or grown
        await finished.give()
        root.ended = finished.best.ended

    def _reject(self, growing: list[tuple[Branch, float]], work: Workspace, begin: int) -> list[Branch]:
        """Drop texts of low reward; the others."""
        if not growing:
            return []
        rewards = [reward for _, reward in growing]
        cutoff = self.cutoff(rewards)
        kept = [index for index, reward in enumerate(rewards) if reward >= cutoff]
        work.record(
            "segment",
            begin=begin,
            candidates=[list(branch.tokens[begin:]) for branch, _ in growing],
            rewards=rewards,
            cutoff=cutoff,
            kept=kept,
        )
        for index, (branch, _) in enumerate(growing):
            if index not in kept:
                work.drop(branch)
        return [growing[index][0] for index in kept]


class _Finished:
    """Texts that have ended, of which only the best is kept in the context."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._best: Branch | None = None
        self._tokens: list[list[int]] = []
        self._rewards: list[float] = []
        self._choice = 0

    @property
    def best(self) -> Branch:
        """The text of the highest reward, the first of equal ones."""
        assert self._best is not None
        return self._best

    def add(self, branch: Branch, reward: float) -> None:
        """A text that has ended."""
        self._tokens.append(list(branch.tokens))
        self._rewards.append(reward)
        if self._best is None:
            self._best = branch
        elif reward > self._rewards[self._choice]:
            self._work.drop(self._best)
            self._best, self._choice = branch, len(self._rewards) - 1
        else:
            self._work.drop(branch)

    async def give(self) -> None:
        """The best text, with a record of all."""
        self._work.record("text", candidates=self._tokens, rewards=self._rewards, choice=self._choice)
        await self._work.give(self.best)
