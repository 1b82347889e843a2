"""Where a search works: branches of one text, each a lane of the context, grown side by side.

The contract is :class:`otter_gguf.guidance.search.Workspace`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from ..errors import ConfigError, ContextFullError, EngineError
from ..guidance.base import State, pick_reward
from ..guidance.ensemble import Ensemble
from ..guidance.search import Branch, Mark, Search
from ..text import TextStream
from .lanes import Lane
from .readings import RewardReading, reward_models
from .request import Progress, Request, Text
from .steps import Event, FinishReason, Float32, Int32, Logprobs, Record, Step

if TYPE_CHECKING:
    from ..model import Otter


@dataclass(eq=False)
class _Mark:
    """A branch as it was."""

    n_tokens: int
    n_cells: int
    logits: Float32
    reward: Float32
    history: _native.SamplerState
    ended: FinishReason | None


class _Reader:
    """What one reward model has read of each branch."""

    def __init__(self, name: str, llm: Otter, main: Otter, prompt: list[int], root: Text) -> None:
        reading = RewardReading(name, llm, main, [prompt])
        self.path = llm.model_path
        self.lanes = reading.lanes
        self.labels = reading.labels
        self.n_prompt = len(prompt)
        self.lane_of: dict[int, Lane] = {id(root): reading.texts[0]}

    def fork(self, branch: Text, twin: Text) -> None:
        self.lane_of[id(twin)] = self.lanes.fork(self.lane_of[id(branch)])

    def drop(self, branch: Text) -> None:
        self.lanes.close(self.lane_of.pop(id(branch)))

    def rewind(self, branch: Text, n_tokens: int) -> None:
        lane = self.lane_of[id(branch)]
        if len(lane.tokens) > self.n_prompt + n_tokens:
            # The last token that stays is read again: its logits and rewards are needed.
            self.lanes.truncate(lane, self.n_prompt + n_tokens - 1)

    def rewards(self, branch: Text) -> Float32:
        """(n_rewards,) of prompt and continuation."""
        lane = self.lane_of[id(branch)]
        unread = [*branch.prompt, *branch.tokens][len(lane.tokens) :]
        try:
            if unread:
                self.lanes.feed([(lane, unread[:-1])])
                self.lanes.append([lane], unread[-1:])
        except ContextFullError as error:
            raise ContextFullError(f"reward model {self.path}: {error}; open it with a larger n_ctx") from None
        return lane.rewards

    def has_room(self, branch: Text) -> bool:
        """Whether it can read another token of the branch. ``ConfigError`` if it was given another text meanwhile."""
        self.lanes.check([self.lane_of[id(branch)]])
        return len(branch.prompt) + len(branch.tokens) < self.lanes.n_ctx

    def check(self, search: Search) -> None:
        """``ConfigError`` if its context has too few sequences."""
        most = self.lanes.context.n_seq_max
        if search.n_sequences > most:
            name = type(search).__name__
            raise ConfigError(
                f"{name} needs n_seq_max={search.n_sequences} of reward model {self.path} too, now {most}"
            )


class Workspace:
    """Branches of one text.

    Args:
        llm: Its context holds the text.
        text: Fed, with nothing generated.
        seed: Of the search's own draws; None = another one each time.
        reward_model: As in :meth:`otter_gguf.Otter.create_completion`.
    """

    def __init__(
        self,
        llm: Otter,
        text: Text,
        request: Request,
        seed: int | None,
        reward_model: Otter | Mapping[str, Otter] | None = None,
    ) -> None:
        models = reward_models(llm, reward_model)
        self.llm, self.lanes, self.request = llm, llm.lanes, request
        self.own_labels = () if "" in models else llm.reward_labels
        self._readers = [_Reader(name, other, llm, text.prompt, text) for name, other in models.items()]
        self.labels = (*self.own_labels, *(label for reader in self._readers for label in reader.labels))
        self.rng = np.random.default_rng(seed)
        self.max_tokens = request.max_tokens
        self.root: Branch = text
        self._prompt_reward = text.lane.rewards
        self.records: list[Record] = []
        """Not yet given out."""
        self._place: Logprobs | None = None
        if request.context_shift:
            raise ConfigError("context_shift: not with a search, which compares whole texts")
        self.progress = Progress(llm.model, llm.lanes, request)

    # ---- branches ----------------------------------------------------------------------------------------------

    def fork(self, branch: Branch, count: int) -> list[Branch]:
        """See the contract."""
        source = _text(branch)
        branches: list[Branch] = [source]
        for _ in range(count - 1):
            seed = int(self.rng.integers(2**31))
            twin = Text(
                self.lanes.fork(source.lane),
                source.sampler.clone(seed),
                source.prompt,
                self._watch(source.tokens),
                list(source.tokens),
                list(source.rewards),
                list(source.logprobs),
                source.ended,
            )
            for reader in self._readers:
                reader.fork(source, twin)
            branches.append(twin)
        return branches

    def drop(self, branch: Branch) -> None:
        """See the contract."""
        text = _text(branch)
        for reader in self._readers:
            reader.drop(text)
        self.lanes.close(text.lane)

    def mark(self, branch: Branch) -> Mark:
        """See the contract."""
        text = _text(branch)
        lane = text.lane
        return _Mark(
            len(text.tokens), len(lane.tokens), lane.logits.copy(), lane.rewards, text.sampler.save(), text.ended
        )

    def rewind(self, branch: Branch, mark: Mark) -> None:
        """See the contract."""
        text = _text(branch)
        assert isinstance(mark, _Mark)
        if text.lane in self.lanes.lanes:
            self.lanes.truncate(text.lane, mark.n_cells)
        else:  # the branch had ended for want of room, and its cells were given to others
            text.lane = self.lanes.open()
            self.lanes.feed([(text.lane, [*text.prompt, *text.tokens][: mark.n_cells])])
        text.lane.logits, text.lane.row, text.lane.rewards = mark.logits, -1, mark.reward
        text.sampler.restore(mark.history)
        for trail in (text.tokens, text.rewards, text.logprobs):
            del trail[mark.n_tokens :]
        text.watch, text.ended = self._watch(text.tokens), mark.ended
        for reader in self._readers:
            reader.rewind(text, mark.n_tokens)

    def _watch(self, tokens: Sequence[int]) -> TextStream:
        watch = TextStream(self.request.stop)
        for token in tokens if self.request.stop else ():
            watch.push(self.llm.model.token_bytes(token))
        return watch

    # ---- growing -----------------------------------------------------------------------------------------------

    def grow(
        self,
        branches: Sequence[Branch],
        n_tokens: int | None = None,
        until: Callable[[Branch, State], bool] | None = None,
    ) -> None:
        """See the contract."""
        limits = {id(branch): None if n_tokens is None else len(branch.tokens) + n_tokens for branch in branches}
        growing = [_text(branch) for branch in branches]
        while growing := [text for text in growing if self._goes_on(text, limits[id(text)])]:
            drawn = [(text, self.progress.draw(text)) for text in growing]
            drawn = [(text, token) for text, token in drawn if text.ended is None]
            growing = [text for text, _ in drawn]
            self._append(growing, [token for _, token in drawn])
            if until is not None:
                growing = [
                    text for text in growing if self.progress.has_room(text) and not until(text, self.state(text))
                ]

    def _goes_on(self, text: Text, limit: int | None) -> bool:
        if text.ended is None and not all(reader.has_room(text) for reader in self._readers):
            text.ended = "length"
        return self.progress.has_room(text) and (limit is None or len(text.tokens) < limit)

    def append(self, branches: Sequence[Branch], tokens: Sequence[int]) -> None:
        """See the contract."""
        texts = [_text(branch) for branch in branches]
        for text, token in zip(texts, tokens, strict=True):
            text.sampler.accept(token)
        self._append(texts, tokens)

    def _append(self, texts: Sequence[Text], tokens: Sequence[int]) -> None:
        """Tokens that the samplers have accepted."""
        places = [self.progress.logprobs(text, token) for text, token in zip(texts, tokens, strict=True)]
        self.progress.append(texts, tokens)
        for text, token, place in zip(texts, tokens, places, strict=True):
            if text.ended is None:
                text.logprobs += [place] if place else []
                self.progress.took(text, token)

    # ---- looking -----------------------------------------------------------------------------------------------

    def state(self, branch: Branch) -> State:
        """See the contract."""
        text = _text(branch)
        return State(text.lane.logits, text.lane.rewards, len(text.tokens))

    def candidates(self, branch: Branch, count: int) -> tuple[Int32, Float32]:
        """See the contract."""
        text = _text(branch)
        logits = self.progress.logits(text)
        return text.sampler.candidates(logits, min(count, len(logits)))

    def choose(self, branch: Branch, tokens: Int32, scores: Float32) -> int:
        """See the contract."""
        return _text(branch).sampler.choose(tokens, scores)

    def end(self, branch: Branch, reason: FinishReason) -> None:
        """See the contract."""
        branch.ended = reason

    def is_end(self, token: int) -> bool:
        """See the contract."""
        return self.llm.model.is_eog(token)

    def reward(self, branch: Branch, label: str | Ensemble | None = None) -> float:
        """See the contract."""
        text = _text(branch)
        own = text.rewards[-1] if text.rewards else self._prompt_reward
        parts = [own[: len(self.own_labels)], *(reader.rewards(text) for reader in self._readers)]
        reward = float(pick_reward(np.concatenate(parts)[np.newaxis], self.labels, label)[0])
        if not math.isfinite(reward):
            raise EngineError(f"{self.llm.model_path}: the reward of a text is {reward}, by which no search can choose")
        return reward

    # ---- results -----------------------------------------------------------------------------------------------

    def steps(self, branch: Branch, begin: int = 0) -> Iterator[Step]:
        """See the contract."""
        places = _text(branch).logprobs
        for index in range(begin, len(branch.tokens)):
            self._place = places[index] if places else None
            yield Step(branch.tokens[index], branch.rewards[index])

    def record(self, kind: str, **entries: Any) -> None:
        """See the contract."""
        if self.request.step_records:
            self.records.append({"kind": kind, **entries})

    def run(self, search: Search) -> Iterator[Event]:
        """Run a search to its end. Records that belong to no token are left in :attr:`records`."""
        for reader in self._readers:
            reader.check(search)
        for step in search.run(self):
            records, self.records = tuple(self.records), []
            yield Event(0, step, self._place, records)


def _text(branch: Branch) -> Text:
    assert isinstance(branch, Text)
    return branch
