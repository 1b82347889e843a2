"""What a caller asks for: one text, checked before anything is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .._numbers import is_whole, shown
from ..context.session import Session
from ..errors import ConfigError
from ..guidance.base import Policy, Signal
from ..guidance.search import Search
from ..options import SamplingOptions
from ..steps import Float32, Int32

Guidance = Policy | Search
"""How tokens are chosen: step by step, or by whole segments and texts."""
LogitsProcessor = Callable[[Int32, Float32], npt.ArrayLike]
"""(tokens of prompt and continuation, (n_vocab,) logits) -> (n_vocab,) logits, as in llama-cpp-python."""
StoppingCriterion = Callable[[Int32, Float32], bool | np.bool_]
"""(tokens of prompt and continuation, (n_vocab,) logits of the next) -> whether the text ends here."""

MAX_LOGPROBS = 100


@dataclass(frozen=True)
class Request:
    """One text to be continued, and everything that has a say in it."""

    prompt: list[int]
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    guidance: Guidance | None = None
    reward_models: Mapping[str, Session] = field(default_factory=dict)
    """By name; a single one has no name, and its labels take the place of the model's own."""
    max_tokens: int | None = None
    """At most so many tokens; None = until the context is full."""
    stop: tuple[str, ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    logprobs: int | None = None
    """How many of the most likely tokens to give beside each; None = no log-probabilities."""
    step_records: bool = False
    cache_prompt: bool = False
    prompt_rewards: bool = False
    """The rewards of every token of the prompt, not of the last alone."""
    prompt_logprobs: int | None = None
    """How many of the most likely tokens to give beside each token of the prompt; None = no log-probabilities."""
    context_shift: bool = False
    n_keep: int = 0
    """Tokens at the beginning that a shift leaves in place."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not is_whole(self.max_tokens):
            raise ConfigError(
                f"max_tokens is {shown(self.max_tokens)}, expected 0 or more, or -1 (until the context is full)"
            )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, most=MAX_LOGPROBS):
                raise ConfigError(f"{name} is {shown(value)}, expected a whole number from 0 to {MAX_LOGPROBS}")
        if not is_whole(self.n_keep):
            raise ConfigError(f"n_keep is {shown(self.n_keep)}, expected a whole number of at least 0")
        if self.guidance is not None and not isinstance(self.guidance, (Policy, Search)):
            raise ConfigError(
                f"guidance is {shown(self.guidance)}, expected a policy or a search, such as ARGS(weight=1.5)"
            )

    @property
    def reads_prompt(self) -> bool:
        """Whether every token of the prompt is wanted, not the last alone: then all have to be fed."""
        return self.prompt_rewards or self.prompt_logprobs is not None

    @property
    def shifts(self) -> int | None:
        """``n_keep`` if a full context is to be shifted, else None."""
        return self.n_keep if self.context_shift else None


def sequences_needed(guidance: Guidance | None, n_texts: int = 1) -> int:
    """Sequences that a context needs for so many texts side by side: ``n_seq_max`` at load."""
    if guidance is None or guidance.is_noop:
        return n_texts
    if isinstance(guidance, Search):
        return max(n_texts, guidance.n_sequences)
    siblings = guidance.n_candidates if Signal.VALUE in guidance.signal() else 1
    beside = sum(auxiliary.model is None for auxiliary in guidance.auxiliary_streams())
    return n_texts * (siblings + beside)


def checked_logits(result: object, n_vocab: int) -> Float32:
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
