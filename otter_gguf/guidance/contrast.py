"""Contrast of two prompts in one model: towards what the text's own prompt suggests, away from what another does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .._numbers import shown
from ..errors import ConfigError
from ..steps import Float32
from .base import AuxiliaryStream, Candidates, Capabilities, Policy, Signal, check_at_least, check_finite

_OTHER = "other"


@dataclass(frozen=True)
class Contrast(Policy):
    """``score(v) = logit(v) + weight * (logit(v) - other logit(v))`` over the base's best ``n_candidates`` tokens.

    The other logits are the same model's for the same continuation after another prompt: a whole one, or the text's
    own behind a prefix. Adversarial contrastive decoding (arXiv 2406.16743) contrasts a safeguarding prompt with an
    adversarial one and learns both as soft prompts; here both are given, as text or tokens. With the empty prompt it is
    classifier-free guidance (arXiv 2306.17806) of strength 1 + weight.

    It costs a second text in the context, which grows by one token a step, and no reward model.
    """

    prompt: str | Sequence[int] | None = None
    """The other prompt, as text or tokens."""
    prefix: str | Sequence[int] | None = None
    """Put before the text's own prompt, behind its begin-of-text token if it has one."""
    weight: float = 0.5
    """How far away from the other prompt; negative = towards it, 0 is plain decoding."""
    n_candidates: int = 100
    """Tokens considered in a step."""
    begin: tuple[int, ...] = field(default=(), init=False, repr=False)
    """Tokens that the model puts in front of every text; :meth:`with_tokens` finds them."""

    def __post_init__(self) -> None:
        check_finite(self, weight=self.weight)
        check_at_least(self, 1, n_candidates=self.n_candidates)
        if (self.prompt is None) == (self.prefix is None):
            raise ConfigError("Contrast: give another prompt or a prefix, one of the two")
        for name in ("prompt", "prefix"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, _tokens(name, value))

    def with_tokens(self, tokenize: Callable[[str], list[int]]) -> Policy:
        """The contrast in tokens."""
        begin = tokenize("")
        prompt = tokenize(self.prompt) if isinstance(self.prompt, str) else self.prompt
        prefix = _without(begin, tokenize(self.prefix)) if isinstance(self.prefix, str) else self.prefix
        bound = replace(self, prompt=prompt, prefix=prefix)
        object.__setattr__(bound, "begin", tuple(begin))
        return bound

    def check(self, capabilities: Capabilities) -> None:
        """There must be tokens, all of them in the vocabulary."""
        for token in self._given():
            if not 0 <= token < capabilities.n_vocab:
                raise ConfigError(f"Contrast: token {token} is outside the vocabulary of {capabilities.n_vocab}")
        if not self._given():
            raise ConfigError("Contrast: prompt or prefix has no token: give at least one")

    @property
    def is_noop(self) -> bool:
        """With weight 0."""
        return self.weight == 0

    def signal(self) -> Signal:
        """No reward: the other logits are enough."""
        return Signal.NONE

    def auxiliary_streams(self) -> Sequence[AuxiliaryStream]:
        """The continuation after the other prompt."""
        return (AuxiliaryStream(_OTHER, prompt=self._other_prompt),)

    def scores(self, candidates: Candidates) -> Float32:
        """(k,) logit + weight * (logit - other logit). The difference is of the model's own logits, so that logit bias
        and penalties count once."""
        assert candidates.state is not None
        difference = candidates.state.logits[candidates.tokens] - candidates.auxiliary[_OTHER]
        scores: Float32 = candidates.logits + np.float32(self.weight) * difference
        return scores

    def _given(self) -> tuple[int, ...]:
        """The tokens of prompt or prefix."""
        given = self.prefix if self.prompt is None else self.prompt
        if given is None or isinstance(given, str):
            raise ConfigError(
                "Contrast: the text is not tokenized yet: ask with_tokens(tokenize) for the policy to use"
            )
        return tuple(given)

    def _other_prompt(self, tokens: list[int]) -> list[int]:
        """The other prompt for a text's own."""
        if self.prompt is not None:
            return list(self._given())
        rest = _without(self.begin, tokens)
        return [*tokens[: len(tokens) - len(rest)], *self._given(), *rest]


def _tokens(name: str, value: object) -> tuple[int, ...]:
    """Token ids, or ``ConfigError``."""
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        tokens = tuple(value)
        if all(isinstance(token, (int, np.integer)) for token in tokens):
            return tuple(int(token) for token in tokens)
    raise ConfigError(f"Contrast: {name} is {shown(value)}, expected text or tokens")


def _without(begin: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Tokens behind a beginning, if they have it."""
    has = len(begin) > 0 and list(tokens[: len(begin)]) == list(begin)
    return list(tokens[len(begin) :] if has else tokens)
