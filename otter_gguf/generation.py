"""The step loop: one text in a context, grown token by token, each token with its rewards.

Sequence 0 holds the text. Guided steps feed the candidates as siblings, one sequence each on the shared prefix; the
winner's cell is then given to all of them, so that the next step starts from its logits, which are already there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import ConfigError, ContextFullError
from .guidance.base import Candidates, Policy, Signal, draw

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


class Step(NamedTuple):
    """One token of the text."""

    token: int
    rewards: Float32
    """(n_rewards,) for the text that ends with the token."""


class Text:
    """The text in sequence 0 of a context: fed by :meth:`start`, grown by :meth:`plain` or :meth:`guided`."""

    def __init__(self, model: _native.Model, context: _native.Context, labels: Sequence[str], n_ctx: int) -> None:
        self.model = model
        self.context = context
        self.labels = labels
        self.n_ctx = n_ctx
        self.tokens: list[int] = []
        self.ended = False
        """Whether the last loop ended with an end-of-text token (and not for want of room)."""
        self.rewards = np.zeros(len(labels), np.float32)
        """(n_rewards,) of the text as it stands."""
        self._row = 0
        self._run = 0
        self._one = _Batch(1)

    def start(self, tokens: Sequence[int], *, reuse: bool = False, all_rewards: bool = False) -> Float32:
        """Feed a prompt; what was in the context is replaced.

        Args:
            tokens: At least one.
            reuse: Keep what the context already holds of this prompt. The kept part was computed in other batches than
                a fresh prompt would be, so results may differ from it in the last bits.
            all_rewards: Return the rewards of every prompt token (nothing is reused then).

        Returns:
            (len(tokens), n_rewards) with ``all_rewards``, else (1, n_rewards): the last token's.
        """
        self._check_prompt(tokens)
        self._run += 1
        kept = self._forget(common_length(self.tokens, tokens[:-1]) if reuse and not all_rewards else 0)
        head = np.asarray(tokens[kept:-1], np.int32)
        rewards = self._feed_head(head, kept, all_rewards)
        self.tokens = list(tokens[:-1])
        return np.concatenate([rewards, self._feed(tokens[-1])[np.newaxis]])

    def score(self, tokens: Sequence[int]) -> Float32:
        """Feed a text and return all its rewards, (n, n_rewards). Errors as :meth:`start`."""
        self._check_prompt(tokens)
        self._run += 1
        self._forget(0)
        rewards = self.context.score(np.asarray(tokens, np.int32))
        self.tokens = list(tokens)
        self.rewards = rewards[-1]
        return rewards

    def plain(self, sampler: _native.Sampler) -> Iterator[Step]:
        """Tokens drawn by llama.cpp's samplers, until the end of the text or of the context."""
        return self._plain(sampler, self._begin())

    def _plain(self, sampler: _native.Sampler, run: int) -> Iterator[Step]:
        while self._has_room(run):
            token = sampler.sample(self.context, self._row)
            if self._ends_with(token):
                return
            yield Step(token, self._feed(token))

    def guided(self, policy: Policy, temperature: float, seed: int | None) -> Iterator[Step]:
        """Tokens chosen by a policy, until the end of the text or of the context.

        Raises:
            ConfigError: The context has fewer sequences than the policy has candidates.
        """
        siblings = _Siblings(self, policy.n_candidates) if policy.signal() is Signal.VALUE else None
        return self._guided(policy, siblings, temperature, np.random.default_rng(seed), self._begin())

    def _guided(
        self, policy: Policy, siblings: _Siblings | None, temperature: float, rng: np.random.Generator, run: int
    ) -> Iterator[Step]:
        while self._has_room(run):
            tokens, logits = self.context.top_k(self._row, policy.n_candidates)
            rewards = siblings.feed(tokens) if siblings else np.empty((len(tokens), 0), np.float32)
            scores = policy.scores(Candidates(tokens, logits, rewards), self.labels)
            winner = draw(scores, temperature, rng)
            token = int(tokens[winner])
            if self._ends_with(token):
                return
            if siblings:
                siblings.keep(winner)
                self._row = winner
                self.tokens.append(token)
                self.rewards = rewards[winner]
            else:
                self._feed(token)
            yield Step(token, self.rewards)

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ConfigError("the prompt is empty and the model adds no begin-of-text token: give at least one token")
        if len(tokens) > self.n_ctx:
            raise ContextFullError(f"the prompt has {len(tokens)} tokens, the context {self.n_ctx}: raise n_ctx (-c)")

    def _begin(self) -> int:
        self.ended = False
        return self._run

    def _has_room(self, run: int) -> bool:
        if run != self._run:
            raise ConfigError("this stream is over: another text was started in the same model's context")
        return len(self.tokens) < self.n_ctx

    def _ends_with(self, token: int) -> bool:
        self.ended = self.model.is_eog(token)
        return self.ended

    def _forget(self, n_kept: int) -> int:
        """Drop all but the first tokens of sequence 0, and every other sequence; returns how many could be kept."""
        self.tokens = []
        self.context.sequence_keep(0)
        if self.context.sequence_remove(0, n_kept):
            return n_kept
        self.context.clear()  # also zeroes the whole cache, which takes as long as a token or two
        return 0

    def _feed_head(self, tokens: Int32, position: int, all_rewards: bool) -> Float32:
        """Feed all tokens of a prompt but the last; no logits are computed. (n or 0, n_rewards)."""
        if all_rewards and len(tokens):
            return self.context.score(tokens, position=position)
        n_batch = self.context.n_batch
        for begin in range(0, len(tokens), n_batch):
            part = tokens[begin : begin + n_batch]
            batch = _Batch(len(part), outputs=False)
            batch.tokens[:] = part
            batch.positions += position + begin
            batch.decode(self.context, rewards=False)
        return np.empty((0, len(self.labels)), np.float32)

    def _feed(self, token: int) -> Float32:
        """Append a token: (n_rewards,). Its logits are then in row 0."""
        self._one.tokens[0] = token
        self._one.positions[0] = len(self.tokens)
        self._one.decode(self.context, rewards=bool(self.labels))
        self.tokens.append(token)
        self._row = 0
        if self.labels:
            self.rewards = self.context.rewards()[0]
        return self.rewards


class _Batch:
    """Reusable arrays of a batch: successive positions in sequence 0."""

    def __init__(self, size: int, *, outputs: bool = True) -> None:
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.arange(size, dtype=np.int32)
        self.sequences = np.zeros(size, np.int32)
        self.outputs = np.full(size, outputs)

    def decode(self, context: _native.Context, *, rewards: bool) -> None:
        context.decode(self.tokens, self.positions, self.sequences, self.outputs, rewards=rewards)


class _Siblings:
    """Sequences 0 to k-1 that share the text; candidate i is fed to sequence i."""

    def __init__(self, text: Text, size: int) -> None:
        limit = min(text.context.n_seq_max, text.context.n_batch)
        if size > limit:
            raise ConfigError(f"guidance with {size} candidates needs n_seq_max={size} at load (-np), now {limit}")
        self.text = text
        self.context = text.context
        self.batch = _Batch(size)
        self.batch.sequences[:] = np.arange(size)
        for sequence in range(1, size):
            self.context.sequence_copy(0, sequence)

    def feed(self, tokens: Int32) -> Float32:
        """Feed the candidates at the next position: (k, n_rewards)."""
        size = len(tokens)
        self.batch.tokens[:size] = tokens
        self.batch.positions[:] = len(self.text.tokens)
        batch = self.batch
        self.context.decode(
            batch.tokens[:size], batch.positions[:size], batch.sequences[:size], batch.outputs[:size], rewards=True
        )
        return self.context.rewards()

    def keep(self, winner: int) -> None:
        """Make the winner's token part of every sequence, and drop the others' tokens."""
        position = len(self.text.tokens)
        losers = [sequence for sequence in range(len(self.batch.tokens)) if sequence != winner]
        for sequence in losers:
            self.context.sequence_remove(sequence, position)
        for sequence in losers:
            self.context.sequence_copy(winner, sequence, position, position + 1)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
