"""Streams of tokens side by side in one context: fed, grown, forked, cut and shifted.

A stream owns one or more of the context's sequences. The first holds its tokens; the others share them cell by cell and
take the candidates of a guided step, one each (siblings). The winner's cell is then given to all of them, so that the
next step starts from its logits, which the same batch gave.

An exception may come out of a signal handler anywhere: between any two statements here, and out of any call of the
context. The texts that were being worked on are over then, so one thing alone must be right at all times, because later
calls build on it: the cells of a sequence that :meth:`StreamPool.exact` vouches for are those of its stream's tokens.
So tokens are written down after their cells are there, and crossed out before their cells change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .. import _native
from ..errors import ConfigError, ContextFullError
from ..steps import Float32, Int32
from .batches import batches, common_length

MOST_LOGITS = 64
"""Tokens of a batch whose logits any context can give."""

_NO_LOGITS = np.empty(0, np.float32)


class Holder(Protocol):
    """Who has a lease."""

    def give_way(self) -> bool:
        """Release all leases if nobody is asking for the text just now; whether it did."""


class Lease:
    """The sequences of a context that one text may use, its candidates and branches included."""

    def __init__(self, holder: Holder, sequences: Iterable[int]) -> None:
        self.holder = holder
        self.all = tuple(sequences)
        self.free = list(self.all)


@dataclass(eq=False)
class Stream:
    """One text, or a branch of one, in the context."""

    lease: Lease
    sequences: list[int]
    """Of the context; the first holds the tokens, the others share them."""
    rewards: Float32
    """(n_rewards,) of the text as it stands."""
    tokens: list[int] = field(default_factory=list)
    """What the cells hold, position by position."""
    logits: Float32 = field(default_factory=lambda: _NO_LOGITS)
    """(n_vocab,) of the next token: a view of the last batch's, or a copy where a later batch would overwrite it."""
    row: int = -1
    """Output row of the last batch; -1 where ``logits`` is a copy."""
    with_logits: bool = True
    """False where the rewards alone are read: a batch of such streams does not compute the output projection."""
    n_exact: int | None = None
    """After a shift: cells behind these were computed when more tokens stood in front of them. None = no shift yet."""


class StreamPool:
    """All streams of one context.

    Args:
        context: Its contents belong to this object.
        n_rewards: Labels of the value heads.
        reads_heads: Whether the model has heads at all.
        n_ctx: Tokens that a text may have; the context's cells beyond are for candidates.
    """

    def __init__(self, context: _native.Context, n_rewards: int, *, reads_heads: bool, n_ctx: int) -> None:
        self.context = context
        self.n_rewards = n_rewards
        self.reads_heads = reads_heads
        self.n_ctx = n_ctx
        self.live: list[Stream] = []
        self.kept: list[Stream] = []
        """Texts that are over and whose cells are still there, for prompts that begin as they do; oldest first."""
        self.last: Stream | None = None
        """The text that was fed last."""
        self._leases: list[Lease] = []
        self._free = list(range(context.n_seq_max))
        self._has_logits = True
        """Whether the last batch computed the output projection."""
        self._no_rewards = np.zeros(n_rewards, np.float32)

    # ---- begin and end -----------------------------------------------------------------------------------------

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """``ConfigError`` if it is empty, ``ContextFullError`` if it is longer than a text may be."""
        if not prompt:
            raise ConfigError("the prompt is empty, and the model adds no begin-of-text token: give at least one")
        if len(prompt) > self.n_ctx:
            error = ContextFullError(f"the prompt has {len(prompt)} tokens, the context {self.n_ctx}: raise n_ctx (-c)")
            error.n_tokens = len(prompt)
            raise error

    def open(
        self, holder: Holder, n_sequences: int, prompt: Sequence[int] = (), *, reuse: bool = False
    ) -> Stream | None:
        """A stream with a lease of so many sequences; None while others hold them.

        Args:
            holder: Whose text it is.
            n_sequences: At most the context's.
            prompt: What the stream will be fed.
            reuse: Begin with what the context still holds of the prompt. That was computed in other batches than a
            fresh
                prompt would be, so results may differ from it in the last bits. Without it, and while no other stream
                is live, the stream begins in an empty cache.
        """
        source, count = self._longest_beginning(prompt[:-1]) if reuse else (None, 0)
        if not self.live and count == 0:
            self.forget()
        taken = self._take_sequences(n_sequences, source if source in self.kept else None)
        if taken is None:
            return None
        if source is not None and source not in self.live and source.sequences[0] != taken[0]:
            source = None  # it has given way
        first, lease = taken[0], Lease(holder, taken)
        lease.free.remove(first)
        if not self.live and not self.kept:
            self.context.sequence_keep(first)  # whatever else the caller has fed
        for sequence in taken:
            if source is None or sequence != source.sequences[0]:
                self.context.sequence_remove(sequence)
        stream = Stream(lease, [first], self._no_rewards)
        if source is not None and self._begin_as(first, source, count):
            stream.tokens = list(prompt[:count])
        self.live.append(stream)
        self._leases.append(lease)
        return stream

    def _longest_beginning(self, prompt: Sequence[int]) -> tuple[Stream | None, int]:
        """The stream that has most of the prompt's beginning in its cells, and how much."""
        best, most = None, 0
        for stream in (*self.kept, *self.live):
            count = common_length(self.exact(stream), prompt)
            if count > most or (count == most and count and stream in self.kept):
                best, most = stream, count
        return best, most

    def exact(self, stream: Stream) -> list[int]:
        """The tokens of a stream whose cells are those of a fresh text."""
        n_cells = self.context.sequence_max_position(stream.sequences[0]) + 1  # fewer where the caller cleared them
        return stream.tokens[: n_cells if stream.n_exact is None else min(n_cells, stream.n_exact)]

    def _take_sequences(self, count: int, kept: Stream | None) -> list[int] | None:
        """Free sequences, that of a kept stream in front, which is then no longer kept. Others are given up for
        them."""
        taken: list[int] = []
        if kept is not None:
            taken = [kept.sequences[0]]
            self.kept.remove(kept)
        while len(self._free) + len(taken) < count and self.make_room():
            pass
        if len(self._free) + len(taken) < count:
            if kept is not None:
                self.kept.append(kept)
            return None
        taken += self._free[: count - len(taken)]
        self._free = [sequence for sequence in self._free if sequence not in taken]
        return taken

    def _begin_as(self, sequence: int, source: Stream, count: int) -> bool:
        """Let a sequence hold the first ``count`` tokens of a stream. False, and it is empty, where layers with a
        window no longer have what they would need."""
        if sequence != source.sequences[0]:
            self.context.sequence_copy(source.sequences[0], sequence)
        if self.context.sequence_remove(sequence, count):
            return True
        if not self.context.sequence_remove(sequence):
            self.context.clear()
        return False

    def release(self, lease: Lease, *, keep: bool = False) -> None:
        """A text is over: its sequences are free. ``keep``: its first stream's tokens stay in the cache."""
        if lease not in self._leases:
            return
        streams = [stream for stream in self.live if stream.lease is lease]
        kept = streams[0] if keep and streams and streams[0].tokens else None
        for stream in streams:
            if stream is not kept:
                self.close(stream)
        if kept is not None:
            self.live.remove(kept)
            kept.row = -1
            self._drop_beyond(kept)
            self.kept.append(kept)
        held = kept.sequences[:1] if kept is not None else []
        back = {*lease.all} - {*held} - {*self._free}
        for sequence in back:
            self.context.sequence_remove(sequence)
        self._free = sorted({*self._free, *back})
        self._leases.remove(lease)

    def _drop_beyond(self, stream: Stream) -> None:
        """Siblings, and a candidate that no choice was made of."""
        for sequence in stream.sequences[1:]:
            self.context.sequence_remove(sequence)
        self.context.sequence_remove(stream.sequences[0], len(stream.tokens))
        del stream.sequences[1:]

    def make_room(self) -> bool:
        """Free what nobody is asking for: the text that has been kept longest, or else the oldest one that is paused.
        False if there is neither."""
        if self.kept:
            self._forget_oldest()
            return True
        return any(lease.holder.give_way() for lease in list(self._leases))

    def forget(self) -> None:
        """Give up all kept texts."""
        while self.kept:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        stream = self.kept.pop(0)
        self.context.sequence_remove(stream.sequences[0])
        self._free = sorted({*self._free, stream.sequences[0]})

    def clear(self) -> None:
        """Forget everything, where no text is live."""
        self.forget()
        self.last = None
        self.context.clear()

    def abandon(self) -> None:
        """The context is about to be closed: nobody holds anything of it any more."""
        self.live, self.kept, self._leases, self.last = [], [], [], None

    def recover(self, broken: Sequence[Holder]) -> None:
        """Make whole what an exception out of anywhere has left. Texts of these holders are over; what can be vouched
        for of them stays in the cache."""
        for stream in self.live:
            if stream.lease.holder in broken and stream.tokens:
                stream.row = -1
                self.kept.append(stream)
        self.live = [stream for stream in self.live if stream.lease.holder not in broken]
        self._leases = [lease for lease in self._leases if lease.holder not in broken]
        in_use = {sequence for lease in self._leases for sequence in lease.all}
        in_use |= {stream.sequences[0] for stream in self.kept}
        self._free = [sequence for sequence in range(self.context.n_seq_max) if sequence not in in_use]

    # ---- feeding -----------------------------------------------------------------------------------------------

    def check(self, streams: Iterable[Stream]) -> None:
        """``ConfigError`` if one of them is over."""
        for stream in streams:
            if stream not in self.live:
                raise ConfigError("this stream is over: another text was started in the same model's context")

    def feed(self, texts: Sequence[tuple[Stream, Sequence[int]]]) -> None:
        """Append tokens to streams without an output: their logits and rewards are then stale.

        Short texts share batches: a matrix is read once for all tokens of a batch.
        """
        self._rescue([])
        for batch in batches(texts, self.context.n_batch):
            arrays = _batch_of(batch)
            self.context.decode(*arrays, np.zeros(len(arrays[0]), np.bool_), rewards=False)
            for stream, tokens in batch:
                begin = len(stream.tokens)
                self._share(stream, begin, begin + len(tokens))
                stream.tokens += tokens
                self.last = stream

    def read(self, stream: Stream, tokens: Sequence[int], *, log_probabilities: bool = False) -> Float32:
        """Append tokens and read them: (n, n_rewards) of each, or (n - 1,) ln p of each next one, in nats."""
        self._rescue([])
        call = self.context.log_probabilities if log_probabilities else self.context.score
        answer = call(np.asarray(tokens, np.int32), sequence=stream.sequences[0], position=len(stream.tokens))
        stream.tokens += tokens
        stream.logits, stream.row = _NO_LOGITS, -1
        if not log_probabilities:
            stream.rewards = answer[-1]
        self.last = stream
        return answer

    def read_together(self, texts: Sequence[tuple[Stream, Sequence[int]]]) -> list[Float32]:
        """Append at most ``n_ubatch`` tokens to streams in one batch: (n, n_rewards) of each part."""
        self._rescue([])
        counts = [len(tokens) for _, tokens in texts]
        rewards = self.context.decode_rewards(*_batch_of(texts))
        parts: list[Float32] = np.split(rewards, np.cumsum(counts)[:-1])
        for (stream, tokens), part in zip(texts, parts, strict=True):
            stream.tokens += tokens
            stream.logits, stream.row, stream.rewards = _NO_LOGITS, -1, part[-1]
            self.last = stream
        return parts

    def read_logits(self, stream: Stream, tokens: Sequence[int], visit: Callable[[int, Float32], None]) -> Float32:
        """Append at most :data:`MOST_LOGITS` tokens, and show a view of each one's logits: (n, n_rewards)."""
        self._rescue([])
        begin = len(stream.tokens)
        every = np.ones(len(tokens), np.bool_)
        self.context.decode(*_batch_of([(stream, tokens)]), every, rewards=self.n_rewards > 0)
        self._has_logits = True
        stream.tokens += tokens
        logits = self.context.logits()
        for place, row in enumerate(logits, begin):
            visit(place, row)
        stream.logits, stream.row = logits[-1].copy(), -1
        rewards = self.context.rewards() if self.n_rewards else np.empty((len(tokens), 0), np.float32)
        stream.rewards = rewards[-1]
        self.last = stream
        return rewards

    def decode(self, entries: Sequence[tuple[Stream, Int32]]) -> list[Float32]:
        """Feed each stream's candidates at its next position, all in one batch: (k, n_rewards) a stream.

        :meth:`keep` must follow.

        Raises:
            ContextFullError: The cache has no room; nothing has changed then.
        """
        streams = [stream for stream, _ in entries]
        self.check(streams)
        for stream, tokens in entries:
            self.widen(stream, len(tokens))
        self._rescue(streams)
        counts = [len(tokens) for _, tokens in entries]
        if len(entries) == 1:
            (stream, tokens), (count,) = entries[0], counts
            positions = np.full(count, len(stream.tokens), np.int32)
            sequences = stream.sequences[:count]
        else:
            tokens = np.concatenate([tokens for _, tokens in entries])
            positions = np.repeat(np.asarray([len(stream.tokens) for stream in streams], np.int32), counts)
            sequences = [s for stream, count in zip(streams, counts, strict=True) for s in stream.sequences[:count]]
        rewards = self._decode(tokens, positions, np.asarray(sequences, np.int32), [s.with_logits for s in streams])
        parts, start = [], 0
        for stream, count in zip(streams, counts, strict=True):
            stream.row = start
            parts.append(rewards[start : start + count])
            start += count
        return parts

    def _decode(self, tokens: Int32, positions: Int32, sequences: Int32, with_logits: Sequence[bool]) -> Float32:
        """One batch, every token an output: (tokens, n_rewards)."""
        if not any(with_logits):
            self._has_logits = False
            return self.context.decode_rewards(tokens, positions, sequences)
        self._has_logits = True
        self.context.decode(tokens, positions, sequences, np.ones(len(tokens), np.bool_), rewards=self.reads_heads)
        return self.context.rewards() if self.n_rewards else np.empty((len(tokens), 0), np.float32)

    def keep(self, entries: Sequence[tuple[Stream, Int32]], winners: Sequence[int], rewards: Sequence[Float32]) -> None:
        """Make each stream's winner part of it, and drop the other candidates.

        Args:
            entries: All or some of those given to :meth:`decode`.
            winners: Index among each stream's candidates.
            rewards: As it answered.
        """
        logits = self.context.logits() if self._has_logits else None
        for (stream, tokens), winner, answer in zip(entries, winners, rewards, strict=True):
            position, source = len(stream.tokens), stream.sequences[winner]
            for loser in stream.sequences[: len(tokens)]:
                if loser != source:
                    self.context.sequence_remove(loser, position)
            for sequence in stream.sequences:
                if sequence != source:
                    self.context.sequence_copy(source, sequence, position, position + 1)
            row = stream.row + winner
            stream.tokens.append(int(tokens[winner]))
            stream.rewards = answer[winner]
            stream.logits, stream.row = (_NO_LOGITS, -1) if logits is None else (logits[row], row)
            self.last = stream

    def widen(self, stream: Stream, size: int) -> None:
        """Give a stream sequences for ``size`` candidates. ``ConfigError`` if its lease has too few."""
        while len(stream.sequences) < size:
            stream.sequences.append(self._next_sequence(stream.lease, size))
            self.context.sequence_copy(stream.sequences[0], stream.sequences[-1])

    def _next_sequence(self, lease: Lease, size: int) -> int:
        if not lease.free:
            raise ConfigError(
                f"guidance with {size} candidates needs a lease of {size} sequences, not {len(lease.all)}"
            )
        return lease.free.pop(0)

    def _rescue(self, fed: Sequence[Stream]) -> None:
        """Copy the logits of streams that the next batch would overwrite."""
        for stream in self.live:
            if stream.row >= 0 and not any(stream is other for other in fed):
                stream.logits, stream.row = stream.logits.copy(), -1

    def _share(self, stream: Stream, begin: int, end: int) -> None:
        for sequence in stream.sequences[1:]:
            self.context.sequence_copy(stream.sequences[0], sequence, begin, end)

    # ---- branching ---------------------------------------------------------------------------------------------

    def branch(self, lease: Lease) -> Stream:
        """An empty stream beside the others of a lease."""
        sequence = self._next_sequence(lease, len(lease.all) + 1)
        self.context.sequence_remove(sequence)
        stream = Stream(lease, [sequence], self._no_rewards)
        self.live.append(stream)
        return stream

    def fork(self, stream: Stream) -> Stream:
        """Another stream with the same tokens, sharing their cells."""
        twin = self.branch(stream.lease)
        self.context.sequence_copy(stream.sequences[0], twin.sequences[0])
        twin.tokens, twin.rewards, twin.logits, twin.row = (
            list(stream.tokens),
            stream.rewards,
            stream.logits,
            stream.row,
        )
        twin.with_logits, twin.n_exact = stream.with_logits, stream.n_exact
        return twin

    def copy_beginning(self, source: Stream, stream: Stream, count: int) -> None:
        """Let an empty stream begin with the first ``count`` tokens of another one, sharing their cells."""
        self.context.sequence_copy(source.sequences[0], stream.sequences[0], 0, count)
        stream.tokens = source.tokens[:count]

    def close(self, stream: Stream) -> None:
        """Forget a stream and give its sequences back to its lease."""
        if stream not in self.live:
            return
        for sequence in stream.sequences:
            self.context.sequence_remove(sequence)
            stream.lease.free.append(sequence)
        self.live.remove(stream)
        stream.row = -1

    def truncate(self, stream: Stream, n_tokens: int) -> None:
        """Take tokens off the end: the stream's logits and rewards are then stale."""
        self.check([stream])
        del stream.tokens[n_tokens:]
        for sequence in stream.sequences:
            self.context.sequence_remove(sequence, n_tokens)

    def shift(self, stream: Stream, n_keep: int) -> None:
        """Make room: drop half of the tokens behind the first ``n_keep`` and move the rest forward, as llama.cpp's
        context shift does. Only for a stream whose cells no other one shares, and that has two tokens more than that.

        What vocabulary heads made of the last batch is lost.
        """
        self.check([stream])
        stream.n_exact = n_keep
        count = (len(stream.tokens) - n_keep) // 2
        first, *siblings = stream.sequences
        for sequence in siblings:  # a cell has one position: it is moved while a single sequence holds it
            self.context.sequence_remove(sequence)
        self.context.sequence_remove(first, n_keep, n_keep + count)
        self.context.sequence_shift(first, n_keep + count, -1, -count)
        for sequence in siblings:
            self.context.sequence_copy(first, sequence)
        del stream.tokens[n_keep : n_keep + count]

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> tuple[list[int], bytes]:
        """The tokens of the last text, and its cells as llama.cpp writes them."""
        stream = self.last
        if stream is None or (stream not in self.live and stream not in self.kept):
            return [], self.context.state(self._free[0] if self._free else 0)
        return self.exact(stream), self.context.state(stream.sequences[0])

    def load_state(self, tokens: Sequence[int], data: bytes) -> None:
        """Put a saved text into the cache, in which nothing else is. ``ConfigError`` if the data is damaged or of
        another kind of context."""
        stream = self.open(_Loading(self), 1)
        assert stream is not None
        sequence = stream.sequences[0]
        try:
            self.context.load_state(data, sequence)
            n_cells = self.context.sequence_max_position(sequence) + 1
            self.context.sequence_remove(sequence, len(tokens))
            if n_cells < len(tokens):
                self.context.sequence_remove(sequence)
                raise ConfigError(f"the saved state has {len(tokens)} tokens, but cells of {n_cells}")
            stream.tokens = list(tokens)
        finally:
            self.release(stream.lease, keep=True)
        self.last = stream


def _batch_of(texts: Sequence[tuple[Stream, Sequence[int]]]) -> tuple[Int32, Int32, Int32]:
    """Tokens, positions and sequences of texts that go on, one behind the other."""
    counts = [len(tokens) for _, tokens in texts]
    begins = [len(stream.tokens) for stream, _ in texts]
    return (
        np.concatenate([np.asarray(tokens, np.int32) for _, tokens in texts]),
        np.concatenate([np.arange(b, b + n, dtype=np.int32) for b, n in zip(begins, counts, strict=True)]),
        np.repeat(np.asarray([stream.sequences[0] for stream, _ in texts], np.int32), counts),
    )


class _Loading:
    """Holds a lease while a state is loaded; what an exception has left of it is free for others."""

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool

    def give_way(self) -> bool:
        """Nobody asks for it."""
        self._pool.recover([self])
        return True
