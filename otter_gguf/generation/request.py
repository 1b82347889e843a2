"""What a caller asks for, checked once, and one text of it under way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import _native
from .._numbers import shown
from ..errors import ConfigError
from ..text import TextStream
from .lanes import Lane, Lanes, grow
from .steps import FinishReason, Float32, Int32, Logprobs

LogitsProcessor = Callable[[Int32, Float32], Float32]
"""(tokens of prompt and continuation, (n_vocab,) logits) -> (n_vocab,) logits, as in llama-cpp-python."""
StoppingCriterion = Callable[[Int32, Float32], bool]
"""(tokens of prompt and continuation, (n_vocab,) logits of the next) -> whether the text ends here."""

MAX_LOGPROBS = 100


@dataclass(frozen=True)
class Request:
    """How texts are to be continued, whatever chooses the tokens."""

    max_tokens: int | None = None
    """At most so many tokens; None = until the context is full."""
    stop: tuple[str, ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    logprobs: int | None = None
    """How many of the most likely tokens to give beside each; None = no log-probabilities."""
    step_records: bool = False
    context_shift: bool = False
    n_keep: int = 0
    """Tokens at the beginning that a shift leaves in place."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not _is_whole(self.max_tokens):
            raise ConfigError(
                f"max_tokens is {shown(self.max_tokens)}, expected 0 or more, or -1 (until the context is full)"
            )
        if self.logprobs is not None and not _is_whole(self.logprobs, MAX_LOGPROBS):
            raise ConfigError(f"logprobs is {shown(self.logprobs)}, expected a whole number from 0 to {MAX_LOGPROBS}")
        if not _is_whole(self.n_keep):
            raise ConfigError(f"n_keep is {shown(self.n_keep)}, expected a whole number of at least 0")

    @property
    def shifts(self) -> int | None:
        """``n_keep`` if a full context is to be shifted, else None."""
        return self.n_keep if self.context_shift else None


@dataclass(eq=False)
class Text:
    """One text under way: its lane, how it draws, what it has grown so far."""

    lane: Lane
    sampler: _native.Sampler
    prompt: list[int]
    watch: TextStream
    """Finds stop strings."""
    tokens: list[int] = field(default_factory=list)
    """The continuation's."""
    rewards: list[Float32] = field(default_factory=list)
    """(n_rewards,) behind each of ``tokens``."""
    logprobs: list[Logprobs] = field(default_factory=list)
    """Of each of ``tokens``, if asked for."""
    ended: FinishReason | None = None


class Progress:
    """The rules by which texts go on and end, the same in the step loop and in searches."""

    def __init__(self, model: _native.Model, lanes: Lanes, request: Request) -> None:
        self.model = model
        self.request = request
        self.lanes = lanes

    def has_room(self, text: Text) -> bool:
        """Whether another token fits, if need be after a shift (see :func:`otter_gguf.generation.lanes.grow`); ends the
        text if not."""
        self.lanes.check([text.lane])
        if text.ended is None and self.request.max_tokens is not None and len(text.tokens) >= self.request.max_tokens:
            text.ended = "length"
        if text.ended is None and len(text.lane.tokens) >= self.lanes.n_ctx and not self.request.context_shift:
            text.ended = "length"
        return text.ended is None

    def logits(self, text: Text) -> Float32:
        """(n_vocab,) raw, or as the logits processors leave them."""
        logits = text.lane.logits
        for processor in self.request.logits_processors:
            logits = _checked(processor(self._ids(text), logits.copy()), len(logits))
        return logits

    def draw(self, text: Text) -> int:
        """A token by llama.cpp's samplers; the text ends where it is an end-of-text token."""
        token = text.sampler.sample(self.logits(text))
        self.ends_with(text, token)
        return token

    def ends_with(self, text: Text, token: int) -> bool:
        """Whether the token ends the text (it is then not part of it)."""
        if self.model.is_eog(token):
            text.ended = "stop"
        return text.ended is not None

    def look(self, text: Text) -> Top | None:
        """What log-probabilities need of the logits, before the next batch overwrites them."""
        return None if self.request.logprobs is None else Top(text.lane.logits, self.request.logprobs)

    def logprobs(self, text: Text, token: int) -> Logprobs | None:
        """Of a token that is to follow the text, if asked for; before the next batch overwrites the logits."""
        top = self.look(text)
        return None if top is None else top.of(float(top.chosen(np.asarray([token], np.int32))[0]))

    def append(self, texts: Sequence[Text], tokens: Sequence[int]) -> None:
        """Feed each text its next token, all in one batch; texts for which the cache has no room end."""
        by_lane = {id(text.lane): (text, token) for text, token in zip(texts, tokens, strict=True)}

        def append(some: Sequence[Lane]) -> None:
            self.lanes.append(some, [by_lane[id(lane)][1] for lane in some])

        for lane in grow(self.lanes, [text.lane for text in texts], append, self.request.shifts):
            by_lane[id(lane)][0].ended = "length"

    def took(self, text: Text, token: int) -> None:
        """A token has become part of the text and stands in its lane."""
        text.tokens.append(token)
        text.rewards.append(text.lane.rewards)
        if self.request.stop:
            text.watch.push(self.model.token_bytes(token))
            if text.watch.stopped:
                text.ended = "stop"
        criteria = () if text.ended else self.request.stopping_criteria
        if any(done(self._ids(text), text.lane.logits) for done in criteria):
            text.ended = "stop"

    def _ids(self, text: Text) -> Int32:
        return np.asarray([*text.prompt, *text.tokens], np.int32)


def _is_whole(value: object, most: float = math.inf) -> bool:
    """Whether it is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _checked(result: object, n_vocab: int) -> Float32:
    """What a logits processor returned, as float32; ``ConfigError`` if it is no row of logits."""
    try:
        given = np.asarray(result)
        if given.dtype.kind == "c":  # numpy would drop the imaginary parts
            raise TypeError
        logits = np.asarray(given, np.float32, order="C")
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"a logits processor returned a {type(result).__name__}, expected {n_vocab} logits") from None
    if logits.shape != (n_vocab,):
        raise ConfigError(f"a logits processor returned shape {logits.shape}, expected ({n_vocab},)")
    if not logits.max() < np.inf:
        raise ConfigError("a logits processor returned NaN or infinity, expected numbers, or minus infinity")
    return logits


class Top:
    """The most likely tokens of a step, and a copy of nothing but what :meth:`of` needs."""

    def __init__(self, logits: Float32, count: int) -> None:
        self._log_sum_exp = _native.log_sum_exp(logits)
        tokens, best = _native.top_k(logits, max(1, count))
        self._tokens, self._logits = tokens[:count], best[:count]
        self._view = logits

    def chosen(self, tokens: Int32) -> Float32:
        """(k,) log-probabilities of candidates; while the step's logits are there."""
        result: Float32 = self._view[tokens] - np.float32(self._log_sum_exp)
        return result

    def of(self, logprob: float) -> Logprobs:
        """The place's log-probabilities, once the choice is made."""
        return Logprobs(logprob, self._tokens.tolist(), (self._logits - self._log_sum_exp).tolist())


def texts_of(
    lanes: Sequence[Lane], prompts: Sequence[list[int]], samplers: Sequence[_native.Sampler], request: Request
) -> list[Text]:
    """Texts with nothing generated yet."""
    return [
        Text(lane, sampler, list(prompt), TextStream(request.stop))
        for lane, prompt, sampler in zip(lanes, prompts, samplers, strict=True)
    ]
