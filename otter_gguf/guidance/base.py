"""What a guidance policy is: it scores the candidates for the next token, one step at a time.

A policy holds no state, so that one object serves any number of texts. The step loop
(:mod:`otter_gguf.engine.guided`) fetches the signals that the policy asks for, lets llama.cpp's samplers choose by
its scores, and does the rest. Rules that look further than a token are a :class:`otter_gguf.guidance.search.Search`.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from .._numbers import finite, shown
from ..errors import ConfigError
from ..steps import Float32, Int32
from .ensemble import Ensemble

if TYPE_CHECKING:
    from ..context.session import LanguageModel


class Signal(enum.Flag):
    """What a policy needs to know of each candidate before the choice."""

    NONE = 0
    """Its logit alone: nothing is fed before the choice."""
    VALUE = enum.auto()
    """Its reward: all candidates are fed, as sibling sequences of one batch."""
    VOCABULARY = enum.auto()
    """Its score by a vocabulary head: read from the state before it, nothing is fed."""


@dataclass(frozen=True)
class Capabilities:
    """What a model can give guidance, with the reward models of a call."""

    labels: tuple[str, ...]
    """Rewards of a token."""
    vocabulary_heads: tuple[str, ...] = ()
    """Heads that score every next token."""
    n_vocab: int = 0


@dataclass(frozen=True)
class AuxiliaryStream:
    """A second reading of the text, whose logits a policy compares with the base's."""

    name: str
    """Its key in :attr:`Candidates.auxiliary`."""
    model: LanguageModel | None = None
    """Another model of the same vocabulary; None = the model itself, after another prompt."""
    prompt: Callable[[list[int]], list[int]] | None = None
    """The prompt it reads, made from the text's own (tokens to tokens); None = the same."""


class State:
    """One text before a step: what can be known before any candidate is fed."""

    def __init__(
        self,
        logits: Float32,
        rewards: Float32,
        n_generated: int,
        vocabulary_scores: Callable[[str | None, Int32 | None], Float32] | None = None,
    ) -> None:
        self.logits = logits
        """(n_vocab,) raw logits of the base: a view, valid within the step."""
        self.rewards = rewards
        """(n_rewards,) of the text as it stands."""
        self.n_generated = n_generated
        """Tokens generated so far."""
        self._vocabulary_scores = vocabulary_scores

    @cached_property
    def entropy(self) -> float:
        """Of the base's next-token distribution over the whole vocabulary, at temperature 1, in nats."""
        return _native.entropy(self.logits)

    @cached_property
    def log_sum_exp(self) -> float:
        """ln of the sum of exp(logit): ``logit - log_sum_exp`` is a log-probability in nats."""
        return _native.log_sum_exp(self.logits)

    @cached_property
    def top_probability(self) -> float:
        """The base's probability of its most likely token."""
        return math.exp(float(self.logits.max()) - self.log_sum_exp)

    def vocabulary_scores(self, head: str | None = None, tokens: Int32 | None = None) -> Float32:
        """Scores of next tokens by a vocabulary head (the only one if unnamed): (k,) of ``tokens`` or (n_vocab,)."""
        if self._vocabulary_scores is None:
            raise ConfigError("this text has no vocabulary head")
        return self._vocabulary_scores(head, tokens)


def _no_scores() -> Float32:
    return np.empty(0, np.float32)


@dataclass(frozen=True)
class Candidates:
    """The candidates of one step, best first."""

    tokens: Int32
    """(k,) token ids."""
    logits: Float32
    """(k,) the base's logits, with the caller's logit bias and penalties if there are any."""
    labels: tuple[str, ...] = ()
    """What the columns of ``rewards`` mean."""
    rewards: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(k, n_rewards) rewards of the text with the candidate; (k, 0) without :attr:`Signal.VALUE`."""
    vocabulary: Float32 = field(default_factory=_no_scores)
    """(k,) scores by the policy's vocabulary head, in units of its reward; (0,) without :attr:`Signal.VOCABULARY`."""
    auxiliary: Mapping[str, Float32] = field(default_factory=dict)
    """(k,) logits of the candidates for each of the policy's auxiliary streams."""
    state: State | None = None
    """The text before the step."""

    def reward(self, label: str | Ensemble | None = None) -> Float32:
        """(k,) one reward of each candidate: by label, by ensemble, or the only one."""
        return pick_reward(self.rewards, self.labels, label)


class Policy(ABC):
    """Base class of token-level policies. Subclass it to decode by your own rule: only :meth:`scores` is needed."""

    n_candidates: int
    """How many of the best tokens are considered in a step."""
    label: str | Ensemble | None = None
    """Which reward is read; None = all there are."""

    def check(self, capabilities: Capabilities) -> None:  # noqa: B027 (nothing to check is a valid answer)
        """Raise ``ConfigError`` if the policy cannot work with what there is."""

    @property
    def is_noop(self) -> bool:
        """Whether the policy has no effect (weight 0): the text is then decoded plainly."""
        return False

    def signal(self) -> Signal:
        """What :meth:`scores` needs."""
        return Signal.VALUE

    def reads(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Which rewards :meth:`scores` looks at: models that predict none of them are not asked. None without
        :attr:`Signal.VALUE`, else those of :attr:`label`."""
        return labels_of(self.label, labels) if Signal.VALUE in self.signal() else ()

    def vocabulary_head(self) -> str | None:
        """Name of the vocabulary head that is read; None = the only one."""
        return None

    def with_tokens(self, tokenize: Callable[[str], list[int]]) -> Policy:
        """The policy with its texts turned into tokens, as prompts are: called once, before all else. Itself if it has
        none."""
        return self

    def auxiliary_streams(self) -> Sequence[AuxiliaryStream]:
        """Further readings of the text."""
        return ()

    def applies_to(self, state: State) -> bool:
        """Whether this step is guided; else the choice is by the candidates' logits, and only the winner is fed."""
        return True

    def bonus(self, state: State) -> Float32 | None:
        """(n_vocab,) added to the logits before the best ``n_candidates`` are cut; None = cut by the logits alone."""
        return None

    @abstractmethod
    def scores(self, candidates: Candidates) -> Float32:
        """(k,) scores in logits, in the place of the logits for llama.cpp's samplers: the highest wins at temperature
        0, else the draw is from softmax(scores / temperature). -inf removes a candidate."""

    def note(self, candidates: Candidates) -> dict[str, Any]:
        """Further entries of this step's record, in plain JSON types."""
        return {}


def labels_of(label: str | Ensemble | None, labels: Sequence[str]) -> tuple[str, ...]:
    """The rewards that a ``label`` option refers to, among those there are."""
    if label is None:
        return tuple(labels)
    return tuple(label.weights) if isinstance(label, Ensemble) else (label,)


def reward_index(labels: Sequence[str], label: str | None) -> int:
    """Column of a reward: of the label, or of the only one. ``ConfigError`` names the labels there are."""
    if label is None and len(labels) == 1:
        return 0
    if label in labels:
        return labels.index(label)
    asked = "no label is given" if label is None else f"there is no reward {label!r}"
    raise ConfigError(f"guidance: {asked}; this model predicts: {', '.join(labels) or 'no reward'}")


def check_reward(capabilities: Capabilities, label: str | Ensemble | None) -> None:
    """``ConfigError`` unless the reward, or each one of an ensemble, is among those there are."""
    for name in labels_of(label, capabilities.labels) if isinstance(label, Ensemble) else (label,):
        reward_index(capabilities.labels, name)


def check_vocabulary_head(capabilities: Capabilities, head: str | None) -> None:
    """``ConfigError`` unless there is this vocabulary head, or a single one if none is named."""
    heads = capabilities.vocabulary_heads
    if head in heads or (head is None and len(heads) == 1):
        return
    asked = f"there is no vocabulary head {head!r}" if head is not None else "no vocabulary head is named"
    raise ConfigError(f"guidance: {asked}; this model has: {', '.join(heads) or 'none (train one: --vocabulary-rank)'}")


def pick_reward(rewards: Float32, labels: Sequence[str], label: str | Ensemble | None) -> Float32:
    """(k,) from (k, n_rewards): the column of a label, or an ensemble's combination of several."""
    if isinstance(label, Ensemble):
        return label.combine(rewards[:, [reward_index(labels, name) for name in label.weights]])
    column: Float32 = rewards[:, reward_index(labels, label)]
    return column


def check_finite(policy: object, **values: float) -> None:
    """``ConfigError`` unless all are finite numbers."""
    for name, value in values.items():
        finite(value, f"{type(policy).__name__}: {name}")


def check_at_least(policy: object, least: int, **values: int) -> None:
    """``ConfigError`` unless all are whole numbers of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = f"expected a whole number of at least {least}"
            raise ConfigError(f"{type(policy).__name__}: {name} is {shown(value)}, {expected}")
