"""Options of loading and sampling: keyword arguments, their defaults, command line flags and help come from here.

:class:`LoadOptions` are the keyword arguments of :class:`otter_gguf.Otter`, :class:`SamplingOptions` those of its
completion methods. Names as in llama-cpp-python, flags as in llama.cpp.

A type checker reads the keyword arguments of a function from a ``TypedDict`` and nothing else, so each dataclass has
one beside it with the same names and types. mypy sees to it that the dataclass takes whatever the ``TypedDict`` lets
through, a test that none of its fields is missing there.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from ._numbers import MAX_INT, finite, is_whole, shown
from .errors import ConfigError
from .text import utf8

SplitMode = Literal["none", "layer"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]

DEFAULT_CONTEXT_CAP = 8192
"""``n_ctx=0`` takes the model's own context length, at most this: the KV cache is allocated as a whole."""

_F = TypeVar("_F", bound=Callable[..., Any])


def _flags(flags: tuple[str, ...], text: str) -> dict[str, Any]:
    return {"flags": flags, "help": text}


class LoadArguments(TypedDict, total=False):
    """The fields of :class:`LoadOptions`, for type checkers and editors."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_threads_batch: int
    n_gpu_layers: int
    split_mode: SplitMode
    main_gpu: int
    tensor_split: Sequence[float]
    use_mmap: bool
    use_mlock: bool
    check_tensors: bool
    verify_checksums: bool
    flash_attn: FlashAttention | bool
    type_k: CacheType
    type_v: CacheType
    n_seq_max: int
    hidden_states: bool


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How the model is loaded and how large its context is."""

    n_ctx: int = field(
        default=0, metadata=_flags(("-c", "--ctx-size"), "context in tokens; 0 = the model's own, at most 8192")
    )
    n_batch: int = field(default=2048, metadata=_flags(("-b", "--batch-size"), "tokens of a prompt fed at once"))
    n_ubatch: int = field(default=512, metadata=_flags(("-ub", "--ubatch-size"), "tokens computed at once"))
    n_threads: int = field(default=0, metadata=_flags(("-t", "--threads"), "CPU threads; 0 = all cores but one"))
    n_threads_batch: int = field(
        default=0, metadata=_flags(("-tb", "--threads-batch"), "CPU threads for prompts; 0 = as --threads")
    )
    n_gpu_layers: int = field(default=-1, metadata=_flags(("-ngl", "--n-gpu-layers"), "layers on the GPU; -1 = all"))
    split_mode: SplitMode = field(
        default="layer", metadata=_flags(("-sm", "--split-mode"), "how several GPUs share the layers")
    )
    main_gpu: int = field(default=0, metadata=_flags(("-mg", "--main-gpu"), "the GPU used with split mode none"))
    tensor_split: Sequence[float] = field(
        default=(), metadata=_flags(("-ts", "--tensor-split"), "share of each GPU, such as 3,1")
    )
    use_mmap: bool = field(
        default=True, metadata=_flags(("--no-mmap",), "read the weights instead of mapping the file")
    )
    use_mlock: bool = field(default=False, metadata=_flags(("--mlock",), "keep the weights in memory"))
    check_tensors: bool = field(
        default=False, metadata=_flags(("--check-tensors",), "let llama.cpp check the base's weights for NaN")
    )
    verify_checksums: bool = field(
        default=False,
        metadata=_flags(
            ("--verify-checksums",), "compare a sidecar or a merged file with its checksums (a plain base has none)"
        ),
    )
    flash_attn: FlashAttention | bool = field(
        default="auto", metadata=_flags(("-fa", "--flash-attn"), "flash attention")
    )
    type_k: CacheType = field(default="f16", metadata=_flags(("-ctk", "--cache-type-k"), "type of the cached keys"))
    type_v: CacheType = field(default="f16", metadata=_flags(("-ctv", "--cache-type-v"), "type of the cached values"))
    n_seq_max: int = field(
        default=16,
        metadata=_flags(("-np", "--parallel"), "sequences in the context, so also most candidates of guidance"),
    )
    hidden_states: bool = field(
        default=False, metadata=_flags((), "keep the final states readable: llm.context.hidden_states()")
    )

    def __post_init__(self) -> None:
        if isinstance(self.flash_attn, bool):  # llama-cpp-python's way to say it
            object.__setattr__(self, "flash_attn", "on" if self.flash_attn else "off")
        object.__setattr__(self, "tensor_split", _shares(self.tensor_split))
        at_least = {"n_ctx": 0, "n_batch": 1, "n_ubatch": 1, "n_threads": 0, "n_threads_batch": 0, "n_seq_max": 1}
        for name, least in at_least.items():
            _check_int(name, getattr(self, name), least, MAX_INT)
        _check_int("n_gpu_layers", self.n_gpu_layers, -1, MAX_INT)
        _check_int("main_gpu", self.main_gpu, 0, MAX_INT)
        if self.n_seq_max > 256:
            raise ConfigError(f"n_seq_max is {self.n_seq_max}, llama.cpp has at most 256 sequences")
        for name in ("split_mode", "flash_attn", "type_k", "type_v"):
            _check_choice(name, getattr(self, name), choices(type(self), name))
        if self.type_v not in ("f32", "f16", "bf16") and self.flash_attn == "off":
            raise ConfigError(f"type_v {self.type_v} needs flash attention (flash_attn='on' or 'auto')")


class SamplingArguments(TypedDict, total=False):
    """The fields of :class:`SamplingOptions`, for type checkers and editors."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | Mapping[str, float]
    grammar: str
    json_schema: str | Mapping[str, Any]
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is drawn; llama.cpp's sampler chain."""

    temperature: float = field(default=0.8, metadata=_flags(("--temp",), "0 = always the most probable token"))
    top_k: int = field(default=40, metadata=_flags(("--top-k",), "keep the k most probable tokens; 0 = all"))
    top_p: float = field(
        default=0.95, metadata=_flags(("--top-p",), "keep the most probable tokens up to this sum; 1 = all")
    )
    min_p: float = field(
        default=0.05, metadata=_flags(("--min-p",), "drop tokens below this share of the most probable one's; 0 = none")
    )
    repeat_penalty: float = field(
        default=1.0, metadata=_flags(("--repeat-penalty",), "divides the logits of recent tokens; 1 = off")
    )
    repeat_last_n: int = field(
        default=64, metadata=_flags(("--repeat-last-n",), "how many tokens are recent; -1 = the context, 0 = none")
    )
    frequency_penalty: float = field(
        default=0.0, metadata=_flags(("--frequency-penalty",), "subtracted for each recent occurrence")
    )
    presence_penalty: float = field(
        default=0.0, metadata=_flags(("--presence-penalty",), "subtracted if it occurred recently")
    )
    logit_bias: Mapping[int, float] | Mapping[str, float] = field(
        default_factory=dict, metadata=_flags((), "added to the logits of tokens; -inf forbids one")
    )
    grammar: str = field(default="", metadata=_flags((), "the text must match this grammar (GBNF)"))
    json_schema: str | Mapping[str, Any] = field(
        default="", metadata=_flags((), "the text must be JSON of this schema ('{}' = any)")
    )
    seed: int | None = field(
        default=None, metadata=_flags(("-s", "--seed"), "for repeatable draws; -1 or nothing = another one each time")
    )

    def __post_init__(self) -> None:
        bounds = {"temperature": math.inf, "top_p": 1, "min_p": 1, "repeat_penalty": math.inf}
        for name, most in bounds.items():
            expected = f"a number from 0 to {most}"
            value = getattr(self, name)
            if not 0 <= finite(value, name, expected) <= most:
                raise ConfigError(f"{name} is {shown(value)}, expected {expected}")
        for name in ("frequency_penalty", "presence_penalty"):
            finite(getattr(self, name), name)
        for name in ("top_p", "repeat_penalty"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} is 0, expected more (1 = off)")
        if not isinstance(self.grammar, str):
            raise ConfigError(f"grammar is {shown(self.grammar)}, expected text (GBNF)")
        utf8(self.grammar, "grammar")
        if not isinstance(self.json_schema, (str, Mapping)):
            raise ConfigError(f"json_schema is {shown(self.json_schema)}, expected a dict or JSON text")
        if self.grammar and self.json_schema != "":
            raise ConfigError("grammar and json_schema exclude each other")
        _check_int("top_k", self.top_k, 0)
        _check_int("repeat_last_n", self.repeat_last_n, -1)
        if self.seed is not None:
            _check_int("seed", self.seed, -1, 2**32 - 2)

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens matter."""
        return self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


NO_CUTS: SamplingArguments = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Every token of the vocabulary can be drawn."""


def choices(options: type, name: str) -> tuple[Any, ...]:
    """The values that an option of a fixed set can take, else ()."""
    hint = get_type_hints(options)[name]
    return next((get_args(part) for part in (hint, *get_args(hint)) if get_origin(part) is Literal), ())


def takes(source: Callable[..., Any]) -> Callable[[_F], _F]:
    """Decorator: show the keyword-only arguments of ``source`` where the function has ``**name``."""
    fields: Iterable[dataclasses.Field[Any]] = getattr(source, "__dataclass_fields__", {}).values()
    made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
    keywords = [
        parameter.replace(default=made.get(parameter.name, parameter.default))
        for parameter in inspect.signature(source).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate


def _shares(given: object) -> tuple[float, ...]:
    """Of each GPU."""
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise ConfigError(f"tensor_split is {shown(given)}, expected numbers, such as (3, 1)")
    return tuple(finite(share, "tensor_split", "finite numbers, such as (3, 1)") for share in given)


def _check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if not is_whole(value, least, most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} is {shown(value)}, expected a whole number {limits}")


def _check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {shown(value)}, expected one of {', '.join(allowed)}")
