"""What the completion methods can be given, and the request to the engine that is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

from ._numbers import shown
from .context.session import LanguageModel, sessions_by_name
from .engine import Guidance, LogitsProcessor, Request, StoppingCriterion
from .errors import ConfigError
from .guidance.base import Policy
from .options import NO_CUTS, SamplingArguments, SamplingOptions, takes
from .text import stop_strings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompts = str | Sequence[int] | Sequence[str | Sequence[int]]
"""A text, or tokens, or several of either."""


class CallArguments(SamplingArguments, total=False):
    """What every completion method can be given; :func:`make_request` has the defaults."""

    stop: str | Iterable[str] | None
    guidance: Guidance | None
    reward_model: LanguageModel | Mapping[str, LanguageModel] | None
    step_records: bool
    cache_prompt: bool
    context_shift: bool
    n_keep: int
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None


class CompletionArguments(CallArguments, total=False):
    """What ``create_completion`` can be given beside the prompt and ``stream``."""

    max_tokens: int | None
    echo: bool
    logprobs: int | None
    prompt_logprobs: bool
    prompt_rewards: bool


class ChatArguments(CallArguments, total=False):
    """What ``create_chat_completion`` can be given beside the messages and ``stream``."""

    max_tokens: int | None
    response_format: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    logprobs: bool
    top_logprobs: int


@takes(SamplingOptions)
def make_request(
    max_tokens: int | None = None,
    logprobs: int | None = None,
    prompt_rewards: bool = False,
    /,
    *,
    stop: str | Iterable[str] | None = None,
    guidance: Guidance | None = None,
    reward_model: LanguageModel | Mapping[str, LanguageModel] | None = None,
    step_records: bool = False,
    cache_prompt: bool = False,
    context_shift: bool = False,
    n_keep: int = 0,
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
    **sampling: Unpack[SamplingArguments],
) -> Request:
    """The request of a call, still without its prompt. ``ConfigError`` if an argument is of no use."""
    if not isinstance(stop, (str, Iterable, NoneType)):
        raise ConfigError(f"stop is {shown(stop)}, expected non-empty strings")
    return Request(
        [],
        sampling=sampling_options(sampling, guidance),
        guidance=guidance,
        reward_models=sessions_by_name(reward_model),
        max_tokens=None if max_tokens == -1 else max_tokens,
        stop=stop_strings(stop),
        logits_processors=_callables("logits_processor", logits_processor),
        stopping_criteria=_callables("stopping_criteria", stopping_criteria),
        logprobs=logprobs,
        step_records=step_records,
        cache_prompt=cache_prompt,
        prompt_rewards=prompt_rewards,
        context_shift=context_shift,
        n_keep=n_keep,
    )


def offered_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None
) -> Sequence[Mapping[str, Any]]:
    """The functions that an answer may call. ``ConfigError`` if they are none, or the choice needs some."""
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise ConfigError(f"tools is {shown(tools)}, expected a list of functions")
    if not tools and choice not in (None, "none", "auto"):
        raise ConfigError(f"tool_choice is {shown(choice)}, and there are no tools")
    return () if choice == "none" or not tools else tools


def sampling_options(given: SamplingArguments, guidance: Guidance | None) -> SamplingOptions:
    """The checked options of a call. With a policy the cuts are off unless they are given: it has chosen candidates."""
    chooses = isinstance(guidance, Policy) and not guidance.is_noop
    return SamplingOptions(**({**NO_CUTS, **given} if chooses else given))


def _callables(what: str, given: object) -> tuple[Callable[..., Any], ...]:
    """One callable, a list of them, or nothing, as a tuple; ``ConfigError`` otherwise."""
    many = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(callable(item) for item in many):
        raise ConfigError(f"{what} is {shown(given)}, expected a callable or a list of them")
    return many
