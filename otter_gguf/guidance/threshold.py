"""A limit for rewards: tokens after which the reward is below it are left out, drawn again or replaced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from .._numbers import shown
from ..errors import ConfigError
from ..steps import Float32, Int32
from .base import Capabilities, check_at_least, check_finite, check_reward
from .ensemble import Ensemble
from .search import Branch, Search, Snapshot, Workspace

Action = Literal["stop", "resample", "replace"]


@dataclass(frozen=True)
class Threshold(Search):
    """Plain decoding, in which a token is refused if the reward of the text that ends with it is below ``limit``.

    What then happens is the ``action``:

    - ``stop``: the token is left out, and the text ends with ``finish_reason`` "content_filter".
    - ``resample``: another token is drawn by the same samplers, without those that have been refused at this place,
      up to ``tries`` times.
    - ``replace``: the ``n_candidates`` best tokens of the base are tried at once, and the one with the highest reward
      is taken. End-of-text tokens are not among them.

    Where no token passes, the text ends as with ``stop``. The token that ends a text is not judged: it has no reward.

    The model's own reward is read from the same pass as the next token's logits: as long as nothing is refused it costs
    what plain decoding costs, and gives the same text. A reward model reads every token besides. Tokens are given
    once they have passed.

    Records of ``kind`` "token", one for each place where a token was refused: ``step`` (index of the token),
    ``candidates`` (tokens tried, the refused one first), their ``rewards``, and the ``choice`` (index, or null where
    the text ends).
    """

    limit: float
    """The lowest reward that passes, in the reward's units."""
    action: Action = "stop"
    """What happens when a token is refused."""
    n_candidates: int = 10
    """How many tokens ``replace`` tries."""
    tries: int = 5
    """How often ``resample`` draws again."""
    message: str | Sequence[int] = ""
    """Text, or tokens, put at the end of a text that is stopped, as far as ``max_tokens`` and the context allow; it is
    not judged."""
    label: str | Ensemble | None = None
    """Which reward counts; None = the only one."""
    n_sequences: int = field(init=False, repr=False)
    """One for each candidate of ``replace``, else one."""

    def __post_init__(self) -> None:
        check_finite(self, limit=self.limit)
        check_at_least(self, 1, n_candidates=self.n_candidates, tries=self.tries)
        if self.action not in get_args(Action):
            known = ", ".join(get_args(Action))
            raise ConfigError(f"Threshold: action is {shown(self.action)}, expected one of {known}")
        if not isinstance(self.message, str):
            object.__setattr__(self, "message", _tokens(self.message))
        object.__setattr__(self, "n_sequences", self.n_candidates if self.action == "replace" else 1)

    def with_tokens(self, tokenize: Callable[[str], list[int]]) -> Search:
        """With the message in tokens."""
        if not isinstance(self.message, str):
            return self
        begin, tokens = tokenize(""), tokenize(self.message)
        has_begin = tokens[: len(begin)] == begin
        return replace(self, message=tuple(tokens[len(begin) :] if has_begin else tokens))

    def check(self, capabilities: Capabilities) -> None:
        """The reward must be there, and tokens in the vocabulary."""
        check_reward(capabilities, self.label)
        for token in () if isinstance(self.message, str) else self.message:
            if not 0 <= token < capabilities.n_vocab:
                raise ConfigError(
                    f"Threshold: token {token} of the message is outside the vocabulary of {capabilities.n_vocab}"
                )

    async def run(self, work: Workspace) -> None:
        """Tokens that have passed; then the message, if the text was stopped."""
        root = branch = work.root
        while branch.ended is None:
            begin = len(branch.tokens)
            snapshot = work.snapshot(branch)
            await work.grow([branch], 1)
            if len(branch.tokens) > begin and not await self._passes(work, branch):
                branch = await _Refusal(self, work, branch, snapshot).resolve()
            await work.give(branch, begin)
        root.ended = branch.ended

    async def _passes(self, work: Workspace, branch: Branch) -> bool:
        return await work.reward(branch, self.label) >= self.limit


class _Refusal:
    """One place at which the drawn token was refused."""

    def __init__(self, rule: Threshold, work: Workspace, branch: Branch, snapshot: Snapshot) -> None:
        self.rule, self.work, self.branch, self.snapshot = rule, work, branch, snapshot
        self.tokens = [branch.tokens[-1]]
        self.rewards: list[float] = []

    async def resolve(self) -> Branch:
        """Do what the rule says; the branch that goes on, or has ended."""
        self.rewards = [await self.work.reward(self.branch, self.rule.label)]
        await self.work.rewind(self.branch, self.snapshot)
        step = len(self.branch.tokens)
        choice: int | None = None
        if self.rule.action == "resample":
            choice = await self._resample()
        elif self.rule.action == "replace":
            choice = await self._replace()
        self.work.record("token", step=step, candidates=self.tokens, rewards=self.rewards, choice=choice)
        if choice is None and self.branch.ended is None:
            await self._stop()
        return self.branch

    async def _resample(self) -> int | None:
        """Draw again, one token at a time; index of the one that passes."""
        for _ in range(self.rule.tries):
            tokens, logits = self._left(len(self.work.state(self.branch).logits))
            if not len(tokens):
                return None
            token = int(tokens[self.work.choose(self.branch, tokens, logits)])
            if self.work.is_end(token):
                self.work.end(self.branch, "stop")
                return None
            if not await self._try([self.branch], [token]):
                return None
            if self.rewards[-1] >= self.rule.limit:
                return len(self.tokens) - 1
            await self.work.rewind(self.branch, self.snapshot)
        return None

    async def _replace(self) -> int | None:
        """Try the best tokens all at once; index of the best by reward, if it passes."""
        tokens = [int(token) for token in self._left(self.rule.n_candidates)[0] if not self.work.is_end(int(token))]
        if not tokens:
            return None
        branches = self.work.fork(self.branch, len(tokens))
        tried = await self._try(branches, tokens)
        first = len(self.rewards) - len(tried)
        best = int(np.argmax(self.rewards[first:])) if tried else 0
        passes = bool(tried) and self.rewards[first + best] >= self.rule.limit
        winner = tried[best] if passes else self.branch
        for branch in branches:
            if branch is not winner:
                self.work.drop(branch)
        if not passes:
            await self.work.rewind(self.branch, self.snapshot)
        self.branch = winner
        return first + best if passes else None

    def _left(self, count: int) -> tuple[Int32, Float32]:
        """The best tokens at this place but for those refused, and their logits."""
        tokens, logits = self.work.candidates(self.branch, count)
        left = ~np.isin(tokens, self.tokens)
        return tokens[left], logits[left]

    async def _try(self, branches: Sequence[Branch], tokens: Sequence[int]) -> list[Branch]:
        """Append a token to each branch and note their rewards; the branches that had room."""
        lengths = [len(branch.tokens) for branch in branches]
        await self.work.append(branches, tokens)
        fed = []
        for branch, length, token in zip(branches, lengths, tokens, strict=True):
            if len(branch.tokens) > length:
                fed.append(branch)
                self.tokens.append(token)
                self.rewards.append(await self.work.reward(branch, self.rule.label))
        return fed

    async def _stop(self) -> None:
        """Put the message at the end, and end the text."""
        message, most = self.rule.message, self.work.max_tokens
        if isinstance(message, str) and message:
            raise ConfigError(
                "Threshold: the message is not tokenized yet: ask with_tokens(tokenize) for the search to use"
            )
        for token in message:
            if self.branch.ended is None and (most is None or len(self.branch.tokens) < most):
                await self.work.append([self.branch], [int(token)])
        self.work.end(self.branch, "content_filter")


def _tokens(value: Sequence[int]) -> tuple[int, ...]:
    """Token ids, or ``ConfigError``."""
    try:
        return tuple(operator.index(token) for token in np.asarray(value).reshape(-1))
    except (TypeError, ValueError):
        raise ConfigError(f"Threshold: message is {shown(value)}, expected text or tokens") from None
