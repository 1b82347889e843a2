"""The step loop: texts of one context grow token by token, plainly or by a policy, all in one batch a step.

A guided step has three parts. What is known without feeding anything: candidates, gate, scores of a vocabulary head,
logits of followers. Then the candidates are fed, as siblings of each text, where the policy asks for their rewards.
Then llama.cpp's samplers choose by the policy's scores, and the winner stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import _native
from ..errors import ConfigError
from ..guidance.base import Candidates, Policy, Signal, State
from .lanes import Lane, Lanes, grow
from .readings import LogitReading, RewardReading, reward_models
from .request import Progress, Request, Text, Top
from .steps import Event, Float32, Int32, Record, Step

if TYPE_CHECKING:
    from ..model import Otter


def plain(model: _native.Model, lanes: Lanes, texts: Sequence[Text], request: Request) -> Iterator[Event]:
    """Tokens drawn by llama.cpp's samplers, until all texts have ended. Texts leave the batch as they end."""
    progress = Progress(model, lanes, request)
    keep_cells = len(texts) == 1
    active = list(enumerate(texts))
    while active := _still(active, progress, keep_cells):
        tokens = {index: progress.draw(text) for index, text in active}
        growing = [(index, text) for index, text in active if text.ended is None]
        logprobs = {index: progress.logprobs(text, tokens[index]) for index, text in growing}
        progress.append([text for _, text in growing], [tokens[index] for index, _ in growing])
        for index, text in growing:
            if text.ended is None:
                progress.took(text, tokens[index])
                record = {"kind": "token", "step": len(text.tokens) - 1, "guided": False, "token": tokens[index]}
                records = (record,) if request.step_records else ()
                yield Event(index, Step(tokens[index], text.lane.rewards), logprobs[index], records)


def _still(active: list[tuple[int, Text]], progress: Progress, keep_cells: bool) -> list[tuple[int, Text]]:
    """The texts that go on; the others' lanes are freed."""
    going = []
    for index, text in active:
        if progress.has_room(text):
            going.append((index, text))
        else:
            progress.lanes.close(text.lane, keep_cells=keep_cells)
    return going


@dataclass(eq=False)
class _Choice:
    """One text's step before the choice."""

    index: int
    text: Text
    candidates: Candidates
    guided: bool
    fed: Int32
    """What is fed of the candidates: all for their rewards, or the winner alone."""
    waits: bool = False
    """Whether the choice hangs on rewards."""
    winner: int = 0
    """Index among the candidates."""
    top: Top | None = None
    logprobs: Float32 | None = None
    scores: Float32 | None = None

    @property
    def token(self) -> int:
        return int(self.candidates.tokens[self.winner])


class Guided:
    """Texts whose tokens a policy chooses.

    Args:
        llm: Its context holds the texts.
        texts: Fed, with nothing generated.
        policy: What chooses.
        reward_model: Models whose rewards the policy sees, see :meth:`otter_gguf.Otter.create_completion`.

    Raises:
        ConfigError: The context has fewer sequences than the candidates of all texts need.
        MismatchError: A reward model or a follower has another vocabulary.
    """

    def __init__(
        self,
        llm: Otter,
        texts: Sequence[Text],
        policy: Policy,
        request: Request,
        reward_model: Otter | Mapping[str, Otter] | None = None,
    ) -> None:
        self.llm, self.lanes, self.texts, self.request = llm, llm.lanes, texts, request
        self.policy = policy
        prompts = [text.prompt for text in texts]
        self.wants_rewards = Signal.VALUE in policy.signal()
        self.wants_scores = Signal.VOCABULARY in policy.signal()
        self.heads = llm.vocabulary_heads
        models = reward_models(llm, reward_model)
        own = () if "" in models else llm.reward_labels
        readings = (RewardReading(name, other, llm, prompts) for name, other in models.items())
        self.models = list(readings) if self.wants_rewards else []
        self.labels = (*own, *(label for model in self.models for label in model.labels))
        read = set(policy.reads(self.labels))
        self.own = self.wants_rewards and bool(read.intersection(own))
        self.models = [model for model in self.models if read.intersection(model.labels)]
        if self.own:
            for text in texts:
                self.lanes.widen(text.lane, policy.n_candidates)
        self.followers = [LogitReading(follower, llm, prompts) for follower in policy.followers()]
        if self.wants_scores and any(reading.same_context for reading in self.followers):
            self.lanes.refresh([text.lane for text in texts])
        if request.context_shift and (self.models or self.followers):
            raise ConfigError("context_shift: not with a reward_model, nor with a policy that follows a second text")
        self.progress = Progress(llm.model, llm.lanes, request)

    def run(self) -> Iterator[Event]:
        """Tokens until all texts have ended; texts leave the batch as they end."""
        active = list(enumerate(self.texts))
        while active := self._still(active):
            for reading in self.followers:
                for index in reading.read([index for index, text in active if text.ended is None]):
                    self.texts[index].ended = "length"
            choices = [self._prepare(index, text) for index, text in active if text.ended is None]
            yield from self._settle(choices)

    def _still(self, active: list[tuple[int, Text]]) -> list[tuple[int, Text]]:
        readings = (*self.followers, *self.models)
        for index, text in active:
            if text.ended is None and not all(reading.has_room(index) for reading in readings):
                text.ended = "length"
        going = _still(active, self.progress, len(self.texts) == 1)
        for index in {index for index, _ in active} - {index for index, _ in going}:
            for reading in readings:
                reading.close(index)
        return going

    # ---- what is known without feeding anything ----------------------------------------------------------------

    def _prepare(self, index: int, text: Text) -> _Choice:
        """Candidates, gate, followers; the winner already, if it does not hang on rewards."""
        policy = self.policy
        state = self._state(text)
        guided = policy.guides(state)
        logits = self.progress.logits(text)
        bonus = policy.bonus(state) if guided else None
        tokens, values = text.sampler.candidates(logits, min(policy.n_candidates, len(logits)), bonus)
        vocabulary = guided and self.wants_scores
        candidates = Candidates(
            tokens=tokens,
            logits=values,
            labels=self.labels,
            rewards=np.full((len(tokens), 0), np.nan, np.float32),
            vocabulary=state.vocabulary_scores(policy.vocabulary_head(), tokens) if vocabulary else _NOTHING,
            followers={reading.name: reading.logits(index, tokens) for reading in self.followers} if guided else {},
            state=state,
        )
        top = self.progress.look(text)
        choice = _Choice(index, text, candidates, guided, tokens, top=top)
        choice.logprobs = top.chosen(tokens) if top else None
        choice.waits = guided and self.wants_rewards
        if choice.waits:
            state.logits = state.logits.copy()  # the candidates' batch overwrites the view before scores are asked for
        else:
            self._choose(choice)
            choice.fed = tokens[choice.winner : choice.winner + 1]
        return choice

    def _state(self, text: Text) -> State:
        lane, heads = text.lane, self.heads

        def scores(head: str | None, tokens: Int32 | None) -> Float32:
            return self.lanes.context.vocabulary_scores(heads.index(head) if head else 0, lane.row, tokens)

        return State(lane.logits, lane.rewards, len(text.tokens), scores if heads else None)

    def _choose(self, choice: _Choice) -> None:
        """Let llama.cpp's samplers choose by the policy's scores, or by the logits where the step is not guided."""
        candidates = choice.candidates
        choice.scores = self.policy.scores(candidates) if choice.guided else candidates.logits
        choice.winner = choice.text.sampler.choose(candidates.tokens, np.asarray(choice.scores, np.float32))
        if not self.progress.ends_with(choice.text, choice.token):
            choice.text.sampler.accept(choice.token)

    # ---- feeding and choosing ----------------------------------------------------------------------------------

    def _settle(self, choices: list[_Choice]) -> Iterator[Event]:
        waiting = [choice for choice in choices if choice.waits]
        going = [choice for choice in choices if choice.text.ended is None]
        own = self._feed(going) if waiting and self.own else None
        going = [choice for choice in going if choice.text.ended is None]
        waiting = [choice for choice in waiting if choice.text.ended is None]
        if waiting:
            self._add_rewards(waiting, own)
        going = self._keep([choice for choice in going if choice.text.ended is None], own)
        for choice in going:
            self.progress.took(choice.text, choice.token)
            yield self._event(choice)

    def _feed(self, going: list[_Choice]) -> dict[int, Float32]:
        """Feed the candidates of some texts and the winners of the others in one batch: rewards by text."""
        by_lane = {id(choice.text.lane): choice for choice in going}
        result: list[tuple[Lane, Float32]] = []

        def feed(some: Sequence[Lane]) -> None:
            rewards = self.lanes.feed_siblings(some, [by_lane[id(lane)].fed for lane in some])
            result.extend(zip(some, rewards, strict=True))

        for lane in grow(self.lanes, [choice.text.lane for choice in going], feed, self.request.shifts):
            by_lane[id(lane)].text.ended = "length"
        return {by_lane[id(lane)].index: rewards for lane, rewards in result}

    def _add_rewards(self, waiting: list[_Choice], own: dict[int, Float32] | None) -> None:
        """Rewards of the candidates by the model itself and by reward models, then the choice."""
        parts: dict[int, list[Float32]] = {}
        n_own = len(self.labels) - sum(len(model.labels) for model in self.models)
        for choice in waiting:
            unread = np.full((len(choice.fed), n_own), np.nan, np.float32)
            parts[choice.index] = [own[choice.index] if own is not None else unread]
        for model in self.models:
            answers = model.candidate_rewards({choice.index: choice.fed for choice in waiting})
            for choice in waiting:
                if choice.index in answers:
                    parts[choice.index].append(answers[choice.index])
                else:
                    choice.text.ended = "length"
            waiting = [choice for choice in waiting if choice.text.ended is None]
        for choice in waiting:
            rewards = np.concatenate(parts[choice.index], axis=1)
            choice.candidates = replace(choice.candidates, rewards=rewards)
            self._choose(choice)
        for model in self.models:
            model.settle({choice.index: choice.winner for choice in waiting})

    def _keep(self, going: list[_Choice], own: dict[int, Float32] | None) -> list[_Choice]:
        """Make the winners part of the texts; the texts that have one."""
        if own is not None:
            winners = [choice.winner if choice.waits else 0 for choice in going]
            rewards = [own[choice.index] for choice in going]
            self.lanes.keep([c.text.lane for c in going], [c.fed for c in going], winners, rewards)
            self._tell(going, fed=set())
            return going
        extra = [reading for reading in self.followers if reading.same_context]
        self._append(going, extra)
        going = [choice for choice in going if choice.text.ended is None]
        self._tell(going, fed=set(map(id, extra)))
        return going

    def _append(self, going: list[_Choice], extra: list[LogitReading]) -> None:
        """Feed the winners, and in the same batch to what reads them in the same context."""
        by_lane = {id(choice.text.lane): choice for choice in going}
        tokens = {id(choice.text.lane): choice.token for choice in going}
        beside = {id(choice.text.lane): [reading.texts[choice.index] for reading in extra] for choice in going}

        def append(some: Sequence[Lane]) -> None:
            lanes = [*some, *(lane for main in some for lane in beside[id(main)])]
            values = [*(tokens[id(lane)] for lane in some), *(tokens[id(main)] for main in some for _ in extra)]
            self.lanes.append(lanes, values)

        for lane in grow(self.lanes, [choice.text.lane for choice in going], append, self.request.shifts):
            by_lane[id(lane)].text.ended = "length"

    def _tell(self, going: list[_Choice], fed: set[int]) -> None:
        """Readings that have not been fed the winners will read them when they are needed."""
        for choice in going:
            for reading in self.followers:
                if id(reading) not in fed:
                    reading.accept(choice.index, choice.token)
            for model in self.models:
                if not choice.waits:
                    model.accept(choice.index, choice.token)

    def _event(self, choice: _Choice) -> Event:
        text = choice.text
        logprobs = None
        if choice.top is not None and choice.logprobs is not None:
            logprobs = choice.top.of(float(choice.logprobs[choice.winner]))
        records = (_record(choice, self.policy),) if self.request.step_records else ()
        return Event(choice.index, Step(choice.token, text.lane.rewards), logprobs, records)


_NOTHING = np.empty(0, np.float32)


def _record(choice: _Choice, policy: Policy) -> Record:
    """The step in plain JSON types; see ``docs/guidance.md``."""
    candidates, scores = choice.candidates, choice.scores
    assert scores is not None
    record: Record = {
        "kind": "token",
        "step": len(choice.text.tokens) - 1,
        "guided": choice.guided,
        "token": choice.token,
        "candidates": candidates.tokens.tolist(),
        "logits": candidates.logits.tolist(),
        "scores": _json_row(scores),
        "choice": choice.winner,
    }
    if candidates.rewards.shape[1]:
        record |= {"labels": list(candidates.labels), "rewards": [_json_row(row) for row in candidates.rewards]}
    if len(candidates.vocabulary):
        record["vocabulary"] = candidates.vocabulary.tolist()
    if candidates.followers:
        record["followers"] = {name: _json_row(logits) for name, logits in candidates.followers.items()}
    return record | policy.note(candidates)


def _json_row(values: Float32) -> list[float | None]:
    """Without what JSON has no number for: rewards that nobody asked for, and candidates that a policy removed (minus
    infinity), are null."""
    return [value if math.isfinite(value) else None for value in np.asarray(values, np.float64).tolist()]
