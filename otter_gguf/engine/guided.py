"""Texts whose tokens a policy chooses, one guided step at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..context.streams import Stream
from ..guidance.base import Candidates, Policy, Signal
from ..steps import Float32, Int32, Record
from .feeds import Feed
from .readers import AuxiliaryReader, Reader, RewardReader
from .text import Text

_NOTHING = np.empty(0, np.float32)


@dataclass
class Guide:
    """A policy with what it reads: made for one text."""

    policy: Policy
    own_labels: tuple[str, ...] = ()
    """Rewards of the model itself, where no reward model takes their place."""
    models: dict[tuple[str, ...], RewardReader | None] = field(default_factory=dict)
    """By the labels of their rewards; None for a reward model of which the policy reads nothing."""
    auxiliary_readers: list[AuxiliaryReader] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.labels = (*self.own_labels, *(label for labels in self.models for label in labels))
        self.wants_rewards = Signal.VALUE in self.policy.signal()
        self.wants_scores = Signal.VOCABULARY in self.policy.signal()
        read = {*self.policy.reads(self.labels)} if self.wants_rewards else set()
        self.reads_own = not read.isdisjoint(self.own_labels)
        self.models = {labels: None if read.isdisjoint(labels) else model for labels, model in self.models.items()}

    @property
    def reward_readers(self) -> list[RewardReader]:
        """Those of the reward models that are read."""
        return [reader for reader in self.models.values() if reader is not None]

    @property
    def readers(self) -> list[Reader]:
        """All that read along."""
        return [*self.auxiliary_readers, *self.reward_readers]


async def guided(text: Text, guide: Guide) -> None:
    """Tokens that the policy chooses until the text ends.

    The prompt has been fed, to the readers too.
    """
    policy, sampler, streams = guide.policy, text.sampler, text.session.streams
    while text.has_room() and _have_room(text, guide.readers):
        # 1. The auxiliary streams read what the text has grown by.
        for auxiliary in guide.auxiliary_readers:
            if not await auxiliary.read():
                text.ended = "length"
                return
        if guide.wants_scores and text.stream.row < 0:  # a head's scores are kept for the last batch alone
            await _read_again(text)

        # 2. The candidates, and what is known of them without feeding anything.
        state, top = text.state(), text.top()
        applies = policy.applies_to(state)
        logits = text.logits()
        count = min(policy.n_candidates, len(logits))
        tokens, values = sampler.candidates(logits, count, policy.bonus(state) if applies else None)
        logprobs = top.chosen(tokens) if top else None
        candidates = Candidates(
            tokens=tokens,
            logits=values,
            labels=guide.labels,
            rewards=np.full((len(tokens), 0), np.nan, np.float32),
            vocabulary=state.vocabulary_scores(policy.vocabulary_head(), tokens)
            if applies and guide.wants_scores
            else _NOTHING,
            auxiliary={reader.name: reader.logits(tokens) for reader in guide.auxiliary_readers} if applies else {},
            state=state,
        )

        # 3. Their rewards, where the policy asks for them: the candidates are fed, a sequence each.
        fed: Feed | None = None
        asks = applies and guide.wants_rewards
        if asks:
            state.logits = state.logits.copy()  # the batch overwrites the view before scores are asked for
            fed = Feed(streams, [text.next(tokens)], candidates=True) if guide.reads_own else None
            rewards = await _candidate_rewards(guide, tokens, fed)
            if rewards is None:
                text.ended = "length"
                return
            candidates = replace(candidates, rewards=rewards)

        # 4. The choice, by llama.cpp's samplers.
        scores = policy.scores(candidates) if applies else candidates.logits
        winner = sampler.choose(tokens, np.asarray(scores, np.float32))
        token = int(tokens[winner])
        if text.ends_with(token):
            return
        sampler.accept(token)

        # 5. The winner becomes part of the text, and of what reads along.
        for reader in guide.reward_readers:
            if asks:
                reader.keep(winner)
            else:
                reader.accept(token)
        if fed is not None:
            assert fed.parts[0].rewards is not None
            streams.keep(fed.parts[0].entries, [winner], fed.parts[0].rewards)
            beside: list[tuple[Stream, Int32]] = []
        else:
            row = tokens[winner : winner + 1]
            beside = [(reader.stream, row) for reader in guide.auxiliary_readers if reader.same_context]
            if not await text.append(token, *beside):
                return
        for auxiliary in guide.auxiliary_readers:
            if not (beside and auxiliary.same_context):
                auxiliary.accept(token)

        # 6. What happened is told.
        records = [_record(text, applies, candidates, scores, winner, policy)] if text.request.step_records else []
        chosen = top.logprobs_for(float(logprobs[winner])) if top is not None and logprobs is not None else None
        await text.tell(token, chosen, records)


async def _candidate_rewards(guide: Guide, tokens: Int32, own: Feed | None) -> Float32 | None:
    """(k, n_rewards), NaN where nobody asks; None where a cache has no room.

    ``own`` feeds the candidates to the model itself; it is None where nobody reads its rewards.
    """
    parts = [np.full((len(tokens), len(guide.own_labels)), np.nan, np.float32)]
    if own is not None:
        await own
        if own.parts[0].rewards is None:
            return None
        parts = list(own.parts[0].rewards)
    for labels, reader in guide.models.items():
        if reader is None:
            parts.append(np.full((len(tokens), len(labels)), np.nan, np.float32))
            continue
        answer = await reader.candidate_rewards(tokens)
        if answer is None:
            return None
        parts.append(answer)
    return np.concatenate(parts, axis=1)


def _have_room(text: Text, readers: Sequence[Reader]) -> bool:
    """Whether all that reads along can read another token; ends the text if not."""
    if not all(reader.has_room() for reader in readers):
        text.ended = "length"
    return text.ended is None


async def _read_again(text: Text) -> None:
    """Feed the last token once more, where another batch came after it."""
    stream = text.stream
    token = stream.tokens[-1]
    text.session.streams.truncate(stream, len(stream.tokens) - 1)
    await text.append(token)


def _record(text: Text, applies: bool, candidates: Candidates, scores: Float32, winner: int, policy: Policy) -> Record:
    """The step in plain JSON types; see ``docs/guidance.md``."""
    record: Record = {
        "kind": "token",
        "step": len(text.tokens),
        "guided": applies,
        "token": int(candidates.tokens[winner]),
        "candidates": candidates.tokens.tolist(),
        "logits": candidates.logits.tolist(),
        "scores": _json_row(scores),
        "choice": winner,
    }
    if candidates.rewards.shape[1]:
        record |= {"labels": list(candidates.labels), "rewards": [_json_row(row) for row in candidates.rewards]}
    if len(candidates.vocabulary):
        record["vocabulary"] = candidates.vocabulary.tolist()
    if candidates.auxiliary:
        record["auxiliary"] = {name: _json_row(logits) for name, logits in candidates.auxiliary.items()}
    return record | policy.note(candidates)


def _json_row(values: Float32) -> list[float | None]:
    """Without what JSON has no number for: rewards that nobody asked for, and candidates that a policy removed (minus
    infinity), are null."""
    return [value if math.isfinite(value) else None for value in np.asarray(values, np.float64).tolist()]
