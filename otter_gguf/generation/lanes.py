"""Texts side by side in one context, each a lane of its own: fed, grown, forked, cut and shifted.

A lane owns one or more of the context's sequences. The first holds the text; the others share it cell by cell and take
the candidates of a guided step, one each (siblings). The winner's cell is then given to all of them, so that the next
step starts from its logits, which the same batch gave.

An exception may come out of a signal handler anywhere: between any two statements here, and out of any call of the
context. The text that was being worked on is over then, so one thing alone must be right at all times, because the next
call builds on it: cells of sequence 0 that :meth:`Lanes._held` vouches for are those of its tokens. So tokens are
written down after their cells are there, and crossed out before their cells change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import _native
from ..claims import Claimable, claimed
from ..errors import ConfigError, ContextFullError
from .batches import batches, common_beginning, common_length
from .steps import Float32, Int32

_NO_LOGITS = np.empty(0, np.float32)


@dataclass(eq=False)
class Lane:
    """One text in the context."""

    sequences: list[int]
    """Of the context; the first holds the text, the others share it."""
    rewards: Float32
    """(n_rewards,) of the text as it stands."""
    tokens: list[int] = field(default_factory=list)
    """What the cells hold, position by position."""
    logits: Float32 = field(default_factory=lambda: _NO_LOGITS)
    """(n_vocab,) of the next token: a view of the last batch's, or a copy where a later batch would overwrite it."""
    row: int = -1
    """Output row of the last batch; -1 where ``logits`` is a copy."""
    n_exact: int | None = None
    """After a shift: cells behind these were computed when more tokens stood in front of them. None = no shift yet."""
    run: int = 0
    """:attr:`Lanes.run` when it was made: with another one, its sequences belong to others."""


class Lanes:
    """All lanes of one context.

    Args:
        context: Its contents belong to this object.
        n_rewards: Labels of the value heads.
        reads_heads: Whether the model has heads at all.
        n_ctx: Tokens that a text may have; the context's cells beyond are for candidates.
        name: What messages call the model.
    """

    def __init__(
        self, context: _native.Context, n_rewards: int, *, reads_heads: bool, n_ctx: int, name: str = "this model"
    ) -> None:
        self.context = context
        self.claim = Claimable(name)
        """Held by a call, or by a step of a stream, from its first look at the lanes to its last."""
        self.n_rewards = n_rewards
        self.reads_heads = reads_heads
        self.n_ctx = n_ctx
        self.run = 0
        """Counts the texts, or batches of texts, that were begun: lanes of an earlier one have lost the context."""
        self.lanes: list[Lane] = []
        self._free: list[int] = []
        self._with_logits = True
        self._no_rewards = np.zeros(n_rewards, np.float32)

    # ---- prompts -----------------------------------------------------------------------------------------------

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        reuse: bool = False,
        all_rewards: bool = False,
        share: bool = True,
        with_logits: bool = True,
    ) -> tuple[list[Lane], Float32]:
        """Feed prompts, a lane each; what was in the context is replaced.

        Args:
            prompts: Each of at least one token.
            reuse: Keep what the context already holds of the first prompt. The kept part was computed in other batches
                than a fresh prompt would be, so results may differ from it in the last bits.
            all_rewards: Return the rewards of every token of the only prompt (nothing is reused then).
            share: Feed a beginning that all prompts have in common once, for all.
            with_logits: False for texts whose rewards alone are read: until the next call of this method no batch
                computes the output projection, and lanes have no logits.

        Returns:
            The lanes, and rewards: (tokens, n_rewards) with ``all_rewards``, else of the last tokens, (prompts,
            n_rewards).

        Raises:
            ConfigError: A prompt is empty, or the context has fewer sequences than there are prompts.
            ContextFullError: A prompt is longer than a text may be, or all together than the cache.
        """
        self._check_prompts(prompts)
        self._restart(prompts[0], len(prompts), reuse and not all_rewards)
        self._with_logits = with_logits
        head_rewards = [self._score_head(prompts[0])] if all_rewards else []
        shared = common_beginning([prompt[:-1] for prompt in prompts]) if share and len(prompts) > 1 else 0
        self._feed_heads(prompts, shared)
        rewards = self.append(self.lanes, [prompt[-1] for prompt in prompts])
        return list(self.lanes), np.concatenate([*head_rewards, rewards])

    def score(self, tokens: Sequence[int]) -> Float32:
        """Feed a text and return all its rewards, (n, n_rewards). Errors as :meth:`begin`."""
        self._check_prompts([tokens])
        with claimed(self.claim):
            self._restart(tokens, 1, False)
            rewards = self.context.score(np.asarray(tokens, np.int32))
            lane = self.lanes[0]
            lane.tokens, lane.rewards = list(tokens), rewards[-1]
            return rewards

    def log_probabilities(self, tokens: Sequence[int]) -> Float32:
        """(n - 1,) ln p of each next token of a text, in nats. Errors as :meth:`begin`."""
        self._check_prompts([tokens])
        with claimed(self.claim):
            self._restart(tokens, 1, False)
            result = self.context.log_probabilities(np.asarray(tokens, np.int32))
            self.lanes[0].tokens = list(tokens)
            return result

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        count, most = len(prompts), self.context.n_seq_max
        if count > most:
            raise ConfigError(f"{count} texts at once need n_seq_max={count} at load (-np), now {most}")
        for prompt in prompts:
            if not prompt:
                raise ConfigError("the prompt is empty, and the model adds no begin-of-text token: give at least one")
            if len(prompt) > self.n_ctx:
                raise ContextFullError(
                    f"the prompt has {len(prompt)} tokens, the context {self.n_ctx}: raise n_ctx (-c)"
                )

    def _restart(self, first: Sequence[int], count: int, reuse: bool) -> None:
        """Fresh lanes for ``count`` texts; the first keeps what is still in its sequence."""
        self.run += 1
        self._with_logits = True
        kept = common_length(self._held(), first[:-1]) if reuse else 0
        self._free = list(range(count, self.context.n_seq_max))
        self.lanes = [Lane([sequence], self._no_rewards, run=self.run) for sequence in range(count)]
        self.context.sequence_keep(0)
        if not self.context.sequence_remove(0, kept):
            self.context.clear()  # also zeroes the whole cache, which takes as long as a token or two
            kept = 0
        self.lanes[0].tokens = list(first[:kept])

    def check(self, lanes: Sequence[Lane]) -> None:
        """``ConfigError`` if another text was begun after these."""
        for lane in lanes:
            if lane.run != self.run:
                raise ConfigError("this stream is over: another text was started in the same model's context")

    def _held(self) -> list[int]:
        """The tokens of sequence 0 whose cells are those of a fresh text."""
        for lane in self.lanes:
            if lane.sequences[0] == 0:
                n_cells = self.context.sequence_max_position(0) + 1  # fewer where the caller has cleared the context
                return lane.tokens[: n_cells if lane.n_exact is None else min(n_cells, lane.n_exact)]
        return []

    def _feed_heads(self, prompts: Sequence[Sequence[int]], shared: int) -> None:
        """Feed all tokens of the prompts but the last: no logits are computed."""
        first, *others = self.lanes
        self.feed([(first, prompts[0][len(first.tokens) : shared])])
        for lane in others if shared else ():
            self.context.sequence_copy(first.sequences[0], lane.sequences[0], 0, shared)
            lane.tokens = list(prompts[0][:shared])
        self.feed([(lane, prompt[len(lane.tokens) : -1]) for lane, prompt in zip(self.lanes, prompts, strict=True)])

    def _score_head(self, prompt: Sequence[int]) -> Float32:
        """The rewards of all tokens of the only prompt but the last, (n - 1, n_rewards)."""
        if len(prompt) == 1:
            return np.empty((0, self.n_rewards), np.float32)
        rewards = self.context.score(np.asarray(prompt[:-1], np.int32))
        self.lanes[0].tokens = list(prompt[:-1])
        return rewards

    # ---- growing -----------------------------------------------------------------------------------------------

    def feed(self, texts: Sequence[tuple[Lane, Sequence[int]]]) -> None:
        """Append tokens to lanes without an output: their logits and rewards are then stale.

        Short texts share batches: a matrix is read once for all tokens of a batch.
        """
        self.check([lane for lane, _ in texts])
        self._rescue([])
        for batch in batches(texts, self.context.n_batch):
            counts = [len(tokens) for _, tokens in batch]
            begins = [len(lane.tokens) for lane, _ in batch]
            self.context.decode(
                np.concatenate([np.asarray(tokens, np.int32) for _, tokens in batch]),
                np.concatenate([np.arange(b, b + n, dtype=np.int32) for b, n in zip(begins, counts, strict=True)]),
                np.repeat(np.asarray([lane.sequences[0] for lane, _ in batch], np.int32), counts),
                np.zeros(sum(counts), np.bool_),
                rewards=False,
            )
            for (lane, tokens), begin in zip(batch, begins, strict=True):
                self._share(lane, begin, begin + len(tokens))
                lane.tokens += tokens

    def append(self, lanes: Sequence[Lane], tokens: Sequence[int]) -> Float32:
        """Append one token to each lane, all in one batch: (lanes, n_rewards).

        Raises:
            ContextFullError: The cache has no room; nothing has changed then.
        """
        rewards = self._decode(lanes, [np.asarray([token], np.int32) for token in tokens])
        self._take(lanes, range(len(lanes)), tokens, rewards)
        for lane in lanes:
            self._share(lane, len(lane.tokens) - 1, len(lane.tokens))
        return rewards

    def feed_siblings(self, lanes: Sequence[Lane], candidates: Sequence[Int32]) -> list[Float32]:
        """Feed each lane's candidates at its next position, all in one batch: (k, n_rewards) a lane.

        :meth:`keep` must follow. Errors as :meth:`append`; also if a lane has more candidates than sequences.
        """
        for lane, tokens in zip(lanes, candidates, strict=True):
            self.widen(lane, len(tokens))
        rewards = self._decode(lanes, candidates)
        ends = np.cumsum([len(tokens) for tokens in candidates]).tolist()
        for lane, start in zip(lanes, [0, *ends], strict=False):
            lane.row = start
        return np.split(rewards, ends[:-1])

    def keep(
        self, lanes: Sequence[Lane], candidates: Sequence[Int32], winners: Sequence[int], rewards: Sequence[Float32]
    ) -> None:
        """Make each lane's winner part of its text, and drop the other candidates.

        Args:
            lanes: All or some of those given to :meth:`feed_siblings`.
            candidates: As given there.
            winners: Index among each lane's candidates.
            rewards: As it answered.
        """
        self.check(lanes)
        for lane, tokens, winner in zip(lanes, candidates, winners, strict=True):
            position = len(lane.tokens)
            source = lane.sequences[winner]
            for loser in lane.sequences[: len(tokens)]:
                if loser != source:
                    self.context.sequence_remove(loser, position)
            for sequence in lane.sequences:
                if sequence != source:
                    self.context.sequence_copy(source, sequence, position, position + 1)
        rows = [lane.row + winner for lane, winner in zip(lanes, winners, strict=True)]
        chosen = [int(tokens[winner]) for tokens, winner in zip(candidates, winners, strict=True)]
        self._take(lanes, rows, chosen, [answer[winner] for answer, winner in zip(rewards, winners, strict=True)])

    def refresh(self, lanes: Sequence[Lane]) -> None:
        """Read each lane's last token again: what a vocabulary head makes of it is kept for the last batch alone."""
        last = [lane.tokens[-1] for lane in lanes]
        for lane in lanes:
            self.truncate(lane, len(lane.tokens) - 1)
        self.append(lanes, last)

    def widen(self, lane: Lane, size: int) -> None:
        """Give a lane sequences for ``size`` candidates. ``ConfigError`` if the context has too few."""
        self.check([lane])
        while len(lane.sequences) < size:
            lane.sequences.append(self._new_sequence(len(self.lanes), size))
            self.context.sequence_copy(lane.sequences[0], lane.sequences[-1])

    def _new_sequence(self, n_texts: int, size: int) -> int:
        if not self._free:
            what = f"{size} candidates" + (f" for each of {n_texts} texts" if n_texts > 1 else "")
            raise ConfigError(
                f"guidance with {what} needs n_seq_max={n_texts * size} at load (-np), now {self.context.n_seq_max}"
            )
        return self._free.pop(0)

    def _decode(self, lanes: Sequence[Lane], candidates: Sequence[Int32]) -> Float32:
        """One batch, every token an output: (tokens, n_rewards)."""
        self.check(lanes)
        self._rescue(lanes)
        counts = [len(tokens) for tokens in candidates]
        positions = np.repeat(np.asarray([len(lane.tokens) for lane in lanes], np.int32), counts)
        sequences = np.asarray(
            [s for lane, count in zip(lanes, counts, strict=True) for s in lane.sequences[:count]], np.int32
        )
        tokens = np.concatenate(candidates)
        if not self._with_logits:
            return self.context.decode_rewards(tokens, positions, sequences)
        self.context.decode(tokens, positions, sequences, np.ones(len(tokens), np.bool_), rewards=self.reads_heads)
        return self.context.rewards() if self.n_rewards else np.empty((len(tokens), 0), np.float32)

    def _take(
        self, lanes: Sequence[Lane], rows: Sequence[int], tokens: Sequence[int], rewards: Sequence[Float32] | Float32
    ) -> None:
        logits = self.context.logits() if self._with_logits else None
        for lane, row, token, reward in zip(lanes, rows, tokens, rewards, strict=True):
            lane.tokens.append(token)
            lane.rewards = reward
            lane.logits, lane.row = (_NO_LOGITS, -1) if logits is None else (logits[row], row)

    def _rescue(self, fed: Sequence[Lane]) -> None:
        """Copy the logits of lanes that the next batch would overwrite."""
        for lane in self.lanes:
            if lane.row >= 0 and not any(lane is other for other in fed):
                lane.logits, lane.row = lane.logits.copy(), -1

    def _share(self, lane: Lane, begin: int, end: int) -> None:
        for sequence in lane.sequences[1:]:
            self.context.sequence_copy(lane.sequences[0], sequence, begin, end)

    # ---- branching ---------------------------------------------------------------------------------------------

    def open(self) -> Lane:
        """An empty lane beside the others."""
        if not self._free:
            needed = self.context.n_seq_max + 1
            raise ConfigError(f"this needs n_seq_max={needed} or more at load (-np), now {self.context.n_seq_max}")
        lane = Lane([self._free.pop(0)], self._no_rewards, run=self.run)
        self.lanes.append(lane)
        return lane

    def fork(self, lane: Lane) -> Lane:
        """Another lane with the same text, sharing its cells."""
        self.check([lane])
        twin = self.open()
        self.context.sequence_copy(lane.sequences[0], twin.sequences[0])
        twin.tokens, twin.rewards, twin.logits, twin.row = list(lane.tokens), lane.rewards, lane.logits, lane.row
        twin.n_exact = lane.n_exact
        return twin

    def close(self, lane: Lane, *, keep_cells: bool = False) -> None:
        """Forget a lane and free its sequences.

        ``keep_cells``: the first lane keeps its text in the cache, for the prompt of the next call.
        """
        if lane not in self.lanes:
            return
        kept = 0 if keep_cells and lane.sequences[0] == 0 else None
        if kept == 0:
            self.context.sequence_remove(0, len(lane.tokens))  # a candidate that no choice was made of
        for sequence in lane.sequences:
            if sequence != kept:
                self.context.sequence_remove(sequence)
                self._free.append(sequence)
        if kept is None:
            self.lanes.remove(lane)
        else:
            del lane.sequences[1:]
        lane.row = -1

    def truncate(self, lane: Lane, n_tokens: int) -> None:
        """Take tokens off the end: the lane's logits and rewards are then stale."""
        self.check([lane])
        del lane.tokens[n_tokens:]
        for sequence in lane.sequences:
            self.context.sequence_remove(sequence, n_tokens)

    def shift(self, lane: Lane, n_keep: int) -> None:
        """Make room: drop half of the tokens behind the first ``n_keep`` and move the rest forward, as llama.cpp's
        context shift does. Only for a lane whose cells no other lane shares, and that has two tokens more than that.

        What vocabulary heads made of the last batch is lost.
        """
        self.check([lane])
        lane.n_exact = n_keep
        count = (len(lane.tokens) - n_keep) // 2
        first, *siblings = lane.sequences
        for sequence in siblings:  # a cell has one position: it is moved while a single sequence holds it
            self.context.sequence_remove(sequence)
        self.context.sequence_remove(first, n_keep, n_keep + count)
        self.context.sequence_shift(first, n_keep + count, -1, -count)
        for sequence in siblings:
            self.context.sequence_copy(first, sequence)
        del lane.tokens[n_keep : n_keep + count]

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> tuple[list[int], bytes]:
        """The tokens of the text in sequence 0, and its cells as llama.cpp writes them."""
        with claimed(self.claim):
            return self._held(), self.context.state(0)

    def load_state(self, tokens: Sequence[int], data: bytes) -> None:
        """Replace everything by a saved text. ``ConfigError`` if the data is damaged or of another kind of context."""
        with claimed(self.claim):
            self._restart([], 1, False)
            self.context.load_state(data, 0)
            n_cells = self.context.sequence_max_position(0) + 1
            self.context.sequence_remove(0, len(tokens))
            if n_cells < len(tokens):
                self.context.sequence_remove(0)
                raise ConfigError(f"the saved state has {len(tokens)} tokens, but cells of {n_cells}")
            self.lanes[0].tokens = list(tokens)


def grow(
    lanes: Lanes, texts: Sequence[Lane], decode: Callable[[Sequence[Lane]], None], n_keep: int | None = None
) -> list[Lane]:
    """Run ``decode`` on lanes; where the cache has no room, leave out the longest and try again.

    Args:
        n_keep: Shift lanes that are as long as a text may be; and the longest, rather than to leave it out
            (:meth:`Lanes.shift`).

    Returns:
        The lanes that were left out; their cells are free.
    """
    left: list[Lane] = []
    growing = list(texts)
    if n_keep is not None:
        for lane in growing:
            if len(lane.tokens) >= lanes.n_ctx:
                lanes.shift(lane, n_keep)
    while growing:
        try:
            decode(growing)
            break
        except ContextFullError:
            longest = max(growing, key=lambda lane: len(lane.tokens))
            if n_keep is not None and len(longest.tokens) >= n_keep + 2:
                lanes.shift(longest, n_keep)
                continue
            growing.remove(longest)
            left.append(longest)
            lanes.close(longest)
    return left
