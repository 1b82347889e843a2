"""One text under way: how it draws, what it has grown by, and the rules by which it goes on and ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import _native
from ..context.session import Session
from ..context.streams import Stream
from ..guidance.base import State
from ..steps import Event, FinishReason, Float32, Int32, Logprobs, Record, Step
from ..text import TextStream
from .feeds import Feed, Part, Told
from .pieces import PieceMaker
from .request import Request, checked_logits


class Text:
    """A text, or a branch of one in a search. Its rules are the same whatever chooses the tokens.

    Args:
        session: Its model.
        request: What was asked for.
        stream: Where its tokens are, the prompt's included.
        sampler: How it draws.
    """

    def __init__(self, session: Session, request: Request, stream: Stream, sampler: _native.Sampler) -> None:
        self.session, self.request = session, request
        self.stream, self.sampler = stream, sampler
        self.watch = TextStream(request.stop)
        """Finds stop strings."""
        self.pieces = PieceMaker(self.watch)
        """Of the tokens that :meth:`tell` has told."""
        self.tokens: list[int] = []
        """The continuation's."""
        self.rewards: list[Float32] = []
        """(n_rewards,) behind each of :attr:`tokens`."""
        self.ended: FinishReason | None = None

    # ---- whether it goes on ------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether another token fits, if need be after a shift; ends the text if not."""
        request = self.request
        if self.ended is None and request.max_tokens is not None and len(self.tokens) >= request.max_tokens:
            self.ended = "length"
        if self.ended is None and len(self.stream.tokens) >= self.session.n_ctx and not request.context_shift:
            self.ended = "length"
        return self.ended is None

    def ends_with(self, token: int) -> bool:
        """Whether the token ends the text (it is then not part of it)."""
        if self.session.model.is_eog(token):
            self.ended = "stop"
        return self.ended is not None

    # ---- what it draws from ------------------------------------------------------------------------------------

    def logits(self) -> Float32:
        """(n_vocab,) raw, or as the logits processors leave them."""
        logits = self.stream.logits
        for processor in self.request.logits_processors:
            logits = checked_logits(processor(self._ids(), logits.copy()), len(logits))
        return logits

    def draw(self) -> int:
        """A token by llama.cpp's samplers; the text ends where it is an end-of-text token."""
        token = self.sampler.sample(self.logits())
        self.ends_with(token)
        return token

    def top(self) -> Top | None:
        """What log-probabilities need of the logits, before the next batch overwrites them."""
        return None if self.request.logprobs is None else Top(self.stream.logits, self.request.logprobs)

    def logprobs(self, token: int) -> Logprobs | None:
        """Of a token that is to follow the text, if asked for; before the next batch overwrites the logits."""
        top = self.top()
        return None if top is None else top.logprobs_for(float(top.chosen(np.asarray([token], np.int32))[0]))

    def state(self) -> State:
        """What can be known before the next token is fed, vocabulary heads included."""
        stream, heads, context = self.stream, self.session.vocabulary_heads, self.session.context

        def scores(head: str | None, tokens: Int32 | None) -> Float32:
            return context.vocabulary_scores(heads.index(head) if head else 0, stream.row, tokens)

        return State(stream.logits, stream.rewards, len(self.tokens), scores if heads else None)

    # ---- how it grows ------------------------------------------------------------------------------------------

    def next(self, tokens: Int32, *beside: tuple[Stream, Int32]) -> Part:
        """What is to be fed at the text's next position, and to streams that read along."""
        return Part([(self.stream, tokens), *beside], self.request.shifts)

    async def append(self, token: int, *beside: tuple[Stream, Int32]) -> bool:
        """Feed a token. False, and the text has ended, where the cache has no room."""
        part = self.next(np.asarray([token], np.int32), *beside)
        await Feed(self.session.streams, [part])
        if part.rewards is None:
            self.ended = "length"
        return part.rewards is not None

    def on_token(self, token: int) -> str:
        """A token has become part of the text and stands in its stream; the text that is certain now."""
        self.tokens.append(token)
        self.rewards.append(self.stream.rewards)
        certain = self.watch.push(self.session.model.token_bytes(token))
        if self.watch.stopped:
            self.ended = "stop"
        criteria = () if self.ended else self.request.stopping_criteria
        if any(done(self._ids(), self.stream.logits) for done in criteria):
            self.ended = "stop"
        return certain

    async def tell(self, token: int, logprobs: Logprobs | None, records: Sequence[Record]) -> None:
        """A token has become part of the text: say so."""
        offset = self.watch.decoded
        certain = self.on_token(token)
        event = Event(Step(token, self.stream.rewards), logprobs, tuple(records))
        await Told([(event, self.pieces.push(event, offset, certain))])

    def _ids(self) -> Int32:
        return np.asarray([*self.request.prompt, *self.tokens], np.int32)


class Top:
    """The most likely tokens of a step, and a copy of nothing but what :meth:`logprobs_for` needs."""

    def __init__(self, logits: Float32, count: int) -> None:
        self._log_sum_exp = _native.log_sum_exp(logits)
        tokens, best = _native.top_k(logits, max(1, count))
        self._tokens, self._logits = tokens[:count], best[:count]
        self._view = logits

    def chosen(self, tokens: Int32) -> Float32:
        """(k,) log-probabilities of candidates; while the step's logits are there."""
        return self._normalized(self._view[tokens])

    def logprobs_for(self, logprob: float) -> Logprobs:
        """The place's log-probabilities, once the choice is made."""
        return Logprobs(logprob, self._tokens.tolist(), self._normalized(self._logits).tolist())

    def _normalized(self, logits: Float32) -> Float32:
        """Rounded once, as :meth:`otter_gguf._native.Context.log_probabilities` does it."""
        return (logits.astype(np.float64) - self._log_sum_exp).astype(np.float32)


async def plain(text: Text) -> None:
    """Tokens drawn by llama.cpp's samplers until the text ends."""
    while text.has_room():
        token = text.draw()
        if text.ended is not None:
            return
        logprobs = text.logprobs(token)
        if not await text.append(token):
            return
        record = {"kind": "token", "step": len(text.tokens), "guided": False, "token": token}
        await text.tell(token, logprobs, [record] if text.request.step_records else [])
