"""Texts read a second time, in step with the main ones: by reward models, by experts, after another prompt."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .._numbers import shown
from ..errors import ConfigError, MismatchError
from ..guidance.base import Follower
from .lanes import Lane, Lanes, grow
from .steps import Float32, Int32

if TYPE_CHECKING:
    from ..model import Otter

_same_vocabulary: weakref.WeakKeyDictionary[Otter, weakref.WeakSet[Otter]] = weakref.WeakKeyDictionary()


def check_vocabulary(main: Otter, other: Otter) -> None:
    """``MismatchError`` with the first difference unless both models have the same tokens. Remembered."""
    known = _same_vocabulary.setdefault(main, weakref.WeakSet())
    if main is other or other in known:
        return
    names = f"{other.model_path} and {main.model_path}"
    if main.n_vocab != other.n_vocab:
        raise MismatchError(f"{names} have other vocabularies: {other.n_vocab} and {main.n_vocab} tokens")
    for token in range(main.n_vocab):
        theirs, ours = other.model.token_bytes(token, special=True), main.model.token_bytes(token, special=True)
        if theirs != ours:
            raise MismatchError(f"{names} have other vocabularies: token {token} is {theirs!r} and {ours!r}")
    known.add(other)


class Reading:
    """Texts in the lanes of some context, each with the tokens that it has yet to read."""

    def __init__(self, lanes: Lanes, texts: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.texts: list[Lane] = list(texts)
        self.pending: list[list[int]] = [[] for _ in texts]

    def accept(self, index: int, token: int) -> None:
        """A token of the text; read when it is needed."""
        self.pending[index].append(token)

    def read(self, indices: Sequence[int]) -> list[int]:
        """Read up to the end: logits and rewards of these texts are then those behind their last tokens.

        Returns:
            The texts for which the cache has no room: they are over.
        """
        behind = {id(self.texts[index]): index for index in indices if self.pending[index]}

        def append(some: Sequence[Lane]) -> None:
            for lane in some:
                self._feed(behind[id(lane)], but=1)
            self.lanes.append(some, [self.pending[behind[id(lane)]][0] for lane in some])

        left = grow(self.lanes, [self.texts[index] for index in behind.values()], append)
        for index in behind.values():
            self.pending[index].clear()
        return [behind[id(lane)] for lane in left]

    def _feed(self, index: int, *, but: int) -> None:
        """Read all but so many of a text's unread tokens. Where it fails, what was read stays read."""
        unread = self.pending[index]
        while len(unread) > but:
            part = unread[: min(len(unread) - but, self.lanes.context.n_batch)]
            self.lanes.feed([(self.texts[index], part)])
            del unread[: len(part)]

    def has_room(self, index: int) -> bool:
        """Whether another token fits. ``ConfigError`` if the model that reads was given another text meanwhile."""
        self.lanes.check([self.texts[index]])
        return len(self.texts[index].tokens) + len(self.pending[index]) < self.lanes.n_ctx

    def close(self, index: int) -> None:
        """The text is over."""
        self.lanes.close(self.texts[index])


class LogitReading(Reading):
    """What a policy's follower reads."""

    def __init__(self, follower: Follower, main: Otter, prompts: Sequence[list[int]]) -> None:
        self.name = follower.name
        self.same_context = follower.model is None or follower.model is main
        own_prompts = [follower.prompt(list(p)) for p in prompts] if follower.prompt else list(prompts)
        if self.same_context:
            super().__init__(main.lanes, [main.lanes.open() for _ in prompts])
            main.lanes.feed([(lane, prompt[:-1]) for lane, prompt in zip(self.texts, own_prompts, strict=True)])
            main.lanes.append(self.texts, [prompt[-1] for prompt in own_prompts])
        else:
            assert follower.model is not None
            check_vocabulary(main, follower.model)
            texts, _ = follower.model.lanes.begin(own_prompts)
            super().__init__(follower.model.lanes, texts)

    def logits(self, index: int, tokens: Int32) -> Float32:
        """(k,) of next tokens, after :meth:`read`."""
        return self.texts[index].logits[tokens]


class RewardReading(Reading):
    """What a reward model reads: texts, and candidates for their next tokens."""

    def __init__(self, name: str, llm: Otter, main: Otter, prompts: Sequence[list[int]]) -> None:
        if not llm.n_rewards:
            raise ConfigError(f"reward_model {llm.model_path} predicts no rewards; open it with its sidecar (otter=)")
        if llm is main:
            raise ConfigError("reward_model is the model itself: leave it out, or open the file a second time")
        check_vocabulary(main, llm)
        self.labels = labels_by_name(name, llm)
        texts, _ = llm.lanes.begin(prompts, with_logits=False)
        super().__init__(llm.lanes, texts)
        self._fed: dict[int, tuple[Int32, Float32]] = {}

    def candidate_rewards(self, candidates: Mapping[int, Int32]) -> dict[int, Float32]:
        """(k, n_rewards) of each text's candidates; :meth:`settle` must follow. Texts for which the cache has no room
        are over, and not in the answer."""
        indices = {id(self.texts[index]): index for index in candidates}

        def ask(some: Sequence[Lane]) -> None:
            asked = [indices[id(lane)] for lane in some]
            for index in asked:
                self._feed(index, but=0)
            rewards = self.lanes.feed_siblings(some, [candidates[index] for index in asked])
            self._fed = {index: (candidates[index], answer) for index, answer in zip(asked, rewards, strict=True)}

        self._fed = {}
        grow(self.lanes, [self.texts[index] for index in candidates], ask)
        return {index: answer for index, (_, answer) in self._fed.items()}

    def settle(self, winners: Mapping[int, int]) -> None:
        """Keep the winners; a text without one is over."""
        lanes = [self.texts[index] for index in winners]
        fed = [self._fed[index] for index in winners]
        self.lanes.keep(lanes, [tokens for tokens, _ in fed], list(winners.values()), [answer for _, answer in fed])


def labels_by_name(name: str, llm: Otter) -> tuple[str, ...]:
    """A reward model's labels as policies see them: ``name:label``, or as they are where it has no name."""
    return tuple(f"{name}:{label}" if name else label for label in llm.reward_labels)


def reward_models(main: Otter, given: Otter | Mapping[str, Otter] | None) -> dict[str, Otter]:
    """Reward models by name: a single one has no name, and its labels take the place of the model's own."""
    models = {} if given is None else dict(given) if isinstance(given, Mapping) else {"": given}
    for name, model in models.items():
        if not isinstance(model, type(main)) or not isinstance(name, str):
            raise ConfigError(f"reward_model is {shown(given)}, expected an Otter, or a dict of them by name")
    return models
