"""Best-of-N: several whole texts, of which the one with the highest reward is given."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .base import Capabilities, check_at_least, check_reward
from .ensemble import Ensemble
from .search import Search, Workspace


@dataclass(frozen=True)
class BestOfN(Search):
    """``n`` texts are sampled side by side; the answer is ``argmax_i R(x, y_i)``, the first of equal ones.

    R is the reward of the finished text, so it suits a reward model of whole texts too. The first of the texts is the
    one that plain decoding gives with the same seed: the answer is never worse than that by R. All are held until the
    longest has ended, so nothing is streamed and the context needs room for ``n`` continuations (the prompt is shared).

    The one record has ``kind`` "text": ``candidates`` (tokens of each text), their ``rewards``, and the ``choice``.
    """

    n: int = 8
    """How many texts; 1 is plain decoding."""
    label: str | Ensemble | None = None
    """Which reward counts; None = the only one."""
    n_sequences: int = field(init=False, repr=False)
    """Each text has one."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, n=self.n)
        object.__setattr__(self, "n_sequences", self.n)

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there."""
        check_reward(capabilities, self.label)

    @property
    def is_noop(self) -> bool:
        """With a single text."""
        return self.n == 1

    async def run(self, work: Workspace) -> None:
        """All tokens of the best text, when every text has ended."""
        root = work.root
        branches = work.fork(root, self.n)
        await work.grow(branches)
        rewards = [await work.reward(branch, self.label) for branch in branches]
        choice = int(np.argmax(rewards))
        best = branches.pop(choice)
        tokens = [list(branch.tokens) for branch in branches]
        tokens.insert(choice, list(best.tokens))
        work.record("text", candidates=tokens, rewards=rewards, choice=choice)
        for branch in branches:
            work.drop(branch)
        await work.give(best)
        root.ended = best.ended
