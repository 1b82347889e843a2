"""Where a search works: branches of one text, each a stream of the context, grown side by side.

The contract is :class:`otter_gguf.guidance.search.Workspace`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _native
from ..context.session import Session
from ..context.streams import Stream
from ..errors import ContextFullError, EngineError
from ..guidance.base import State, pick_reward
from ..guidance.ensemble import Ensemble
from ..guidance.search import Branch, Snapshot
from ..steps import Event, FinishReason, Float32, Int32, Logprobs, Piece, Record, Step
from ..text import TextStream
from .feeds import Feed, Part, Prefill, Told
from .pieces import PieceMaker
from .readers import labels_by_name
from .text import Text


@dataclass(eq=False)
class _Snapshot:
    """A branch as it was."""

    n_tokens: int
    n_cells: int
    logits: Float32
    reward: Float32
    history: _native.SamplerState
    ended: FinishReason | None


class BranchReader:
    """What one reward model has read of each branch.

    Args:
        name: The model's, before each of its labels.
        session: The model.
    """

    def __init__(self, name: str, session: Session) -> None:
        self.session, self.streams = session, session.streams
        self.labels = labels_by_name(name, session)
        self.stream_of: dict[int, Stream] = {}

    async def begin(self, root: Text, stream: Stream) -> None:
        """Read the prompt."""
        self.stream_of[id(root)] = stream
        await self.rewards(root)

    def fork(self, branch: Text, twin: Text) -> None:
        """A branch has become two."""
        self.stream_of[id(twin)] = self.streams.fork(self.stream_of[id(branch)])

    def drop(self, branch: Text) -> None:
        """A branch is forgotten."""
        self.streams.close(self.stream_of.pop(id(branch)))

    def rewind(self, branch: Text, n_tokens: int) -> None:
        """A branch is taken back to so many tokens of its continuation."""
        stream, n_prompt = self.stream_of[id(branch)], len(branch.request.prompt)
        if len(stream.tokens) > n_prompt + n_tokens:
            # The last token that stays is read again: its logits and rewards are needed.
            self.streams.truncate(stream, n_prompt + n_tokens - 1)

    async def rewards(self, branch: Text) -> Float32:
        """(n_rewards,) of prompt and continuation."""
        stream = self.stream_of[id(branch)]
        unread = [*branch.request.prompt, *branch.tokens][len(stream.tokens) :]
        if unread:
            part = Part([(stream, np.asarray(unread[-1:], np.int32))])
            with suppress(ContextFullError):
                await Prefill(self.streams, [(stream, unread[:-1])])
                await Feed(self.streams, [part])
            if part.rewards is None:
                raise ContextFullError(
                    f"reward model {self.session.path}: the KV cache of {self.session.context.n_ctx} tokens is full; "
                    "open it with a larger n_ctx"
                )
        return stream.rewards

    def has_room(self, branch: Text) -> bool:
        """Whether it can read another token of the branch. ``ConfigError`` if it was given another text meanwhile."""
        self.streams.check([self.stream_of[id(branch)]])
        return len(branch.request.prompt) + len(branch.tokens) < self.session.n_ctx


class Workspace:
    """Branches of one text.

    Args:
        text: Fed, with nothing generated.
        own_labels: Rewards of the model itself, where no reward model takes their place.
        readers: Reward models, fed with the prompt.
        seed: Of the search's own draws; None = another one each time.
    """

    def __init__(
        self, text: Text, own_labels: tuple[str, ...], readers: Sequence[BranchReader], seed: int | None
    ) -> None:
        self.session, self.streams, self.request = text.session, text.session.streams, text.request
        self.own_labels, self._readers = own_labels, readers
        self.labels = (*own_labels, *(label for reader in readers for label in reader.labels))
        self.rng = np.random.default_rng(seed)
        self.max_tokens = text.request.max_tokens
        self.root: Branch = text
        self._prompt_reward = text.stream.rewards
        self._places: dict[int, list[Logprobs | None]] = {id(text): []}
        self._given = PieceMaker(TextStream(text.request.stop))
        self.records: list[Record] = []
        """Not yet given."""

    # ---- branches ----------------------------------------------------------------------------------------------

    def fork(self, branch: Branch, count: int) -> list[Branch]:
        source = _text(branch)
        branches: list[Branch] = [source]
        for _ in range(count - 1):
            seed = int(self.rng.integers(2**31))
            twin = Text(self.session, self.request, self.streams.fork(source.stream), source.sampler.clone(seed))
            twin.watch = self._watch(source.tokens)
            twin.tokens, twin.rewards, twin.ended = list(source.tokens), list(source.rewards), source.ended
            self._places[id(twin)] = list(self._places[id(source)])
            for reader in self._readers:
                reader.fork(source, twin)
            branches.append(twin)
        return branches

    def drop(self, branch: Branch) -> None:
        text = _text(branch)
        for reader in self._readers:
            reader.drop(text)
        del self._places[id(text)]
        self.streams.close(text.stream)

    def snapshot(self, branch: Branch) -> Snapshot:
        text = _text(branch)
        stream, history = text.stream, text.sampler.save()
        return _Snapshot(
            len(text.tokens), len(stream.tokens), stream.logits.copy(), stream.rewards, history, text.ended
        )

    async def rewind(self, branch: Branch, snapshot: Snapshot) -> None:
        text = _text(branch)
        assert isinstance(snapshot, _Snapshot)
        if text.stream in self.streams.live:
            self.streams.truncate(text.stream, snapshot.n_cells)
        else:  # the branch had ended for want of room, and its cells were given to others
            text.stream = self.streams.branch(text.stream.lease)
            await Prefill(self.streams, [(text.stream, [*self.request.prompt, *text.tokens][: snapshot.n_cells])])
        text.stream.logits, text.stream.row, text.stream.rewards = snapshot.logits, -1, snapshot.reward
        text.sampler.restore(snapshot.history)
        for trail in (text.tokens, text.rewards, self._places[id(text)]):
            del trail[snapshot.n_tokens :]
        text.watch, text.ended = self._watch(text.tokens), snapshot.ended
        for reader in self._readers:
            reader.rewind(text, snapshot.n_tokens)

    def _watch(self, tokens: Sequence[int]) -> TextStream:
        watch = TextStream(self.request.stop)
        for token in tokens if self.request.stop else ():
            watch.push(self.session.model.token_bytes(token))
        return watch

    # ---- growing -----------------------------------------------------------------------------------------------

    async def grow(
        self,
        branches: Sequence[Branch],
        n_tokens: int | None = None,
        until: Callable[[Branch, State], bool] | None = None,
    ) -> None:
        limits = {id(branch): None if n_tokens is None else len(branch.tokens) + n_tokens for branch in branches}
        growing = [_text(branch) for branch in branches]
        while growing := [text for text in growing if self._goes_on(text, limits[id(text)])]:
            drawn = [(text, text.draw()) for text in growing]
            drawn = [(text, token) for text, token in drawn if text.ended is None]
            growing = [text for text, _ in drawn]
            await self._append(drawn)
            if until is not None:
                growing = [text for text in growing if text.has_room() and not until(text, self.state(text))]

    def _goes_on(self, text: Text, limit: int | None) -> bool:
        if text.ended is None and not all(reader.has_room(text) for reader in self._readers):
            text.ended = "length"
        return text.has_room() and (limit is None or len(text.tokens) < limit)

    async def append(self, branches: Sequence[Branch], tokens: Sequence[int]) -> None:
        texts = [_text(branch) for branch in branches]
        for text, token in zip(texts, tokens, strict=True):
            text.sampler.accept(token)
        await self._append(list(zip(texts, tokens, strict=True)))

    async def _append(self, drawn: Sequence[tuple[Text, int]]) -> None:
        """Feed tokens that the samplers have accepted, all in one batch; branches without room end."""
        if not drawn:
            return
        places = [text.logprobs(token) for text, token in drawn]
        feed = Feed(self.streams, [text.next(np.asarray([token], np.int32)) for text, token in drawn])
        await feed
        for (text, token), part, place in zip(drawn, feed.parts, places, strict=True):
            if part.rewards is None:
                text.ended = "length"
            else:
                self._places[id(text)].append(place)
                text.on_token(token)

    # ---- looking -----------------------------------------------------------------------------------------------

    def state(self, branch: Branch) -> State:
        text = _text(branch)
        return State(text.stream.logits, text.stream.rewards, len(text.tokens))

    def candidates(self, branch: Branch, count: int) -> tuple[Int32, Float32]:
        text = _text(branch)
        logits = text.logits()
        return text.sampler.candidates(logits, min(count, len(logits)))

    def choose(self, branch: Branch, tokens: Int32, scores: Float32) -> int:
        return _text(branch).sampler.choose(tokens, scores)

    def end(self, branch: Branch, reason: FinishReason) -> None:
        branch.ended = reason

    def is_end(self, token: int) -> bool:
        return self.session.model.is_eog(token)

    async def reward(self, branch: Branch, label: str | Ensemble | None = None) -> float:
        text = _text(branch)
        own = text.rewards[-1] if text.rewards else self._prompt_reward
        parts = [own[: len(self.own_labels)]]
        for reader in self._readers:
            parts.append(await reader.rewards(text))
        reward = float(pick_reward(np.concatenate(parts)[np.newaxis], self.labels, label)[0])
        if not math.isfinite(reward):
            raise EngineError(f"{self.session.path}: the reward of a text is {reward}, by which no search can choose")
        return reward

    # ---- results -----------------------------------------------------------------------------------------------

    async def give(self, branch: Branch, begin: int = 0, end: int | None = None) -> None:
        text, told = _text(branch), []
        places = self._places[id(text)]
        for index in range(begin, len(text.tokens) if end is None else end):
            records, self.records = tuple(self.records), []
            event = Event(Step(text.tokens[index], text.rewards[index]), places[index], records)
            told.append((event, self._piece(event)))
        if told:
            await Told(told)

    def _piece(self, event: Event) -> Piece | None:
        text = self._given.text
        offset = text.decoded
        return self._given.push(event, offset, text.push(self.session.model.token_bytes(event.step.token)))

    def finish(self) -> Piece:
        """The end of the text: what is left of it."""
        return self._given.finish(self.root.ended or "length", self.records)

    def record(self, kind: str, **entries: Any) -> None:
        if self.request.step_records:
            self.records.append({"kind": kind, **entries})


def _text(branch: Branch) -> Text:
    assert isinstance(branch, Text)
    return branch
