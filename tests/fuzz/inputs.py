"""Texts, messages, options of sampling and loading, drawn at random: what users give, and what nobody would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from .grammars import grammar
from .schemas import schema
from .strings import odd_length, text, words

__all__ = ["constraint", "load_options", "messages", "odd_length", "sampling_options", "text", "words"]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_SIZES = [1, 2, 3, 5, 8, 16, 31, 32, 33, 48, 64, 100]
_REALS = [
    0,
    0.0,
    1e-30,
    0.5,
    1.0,
    2.0,
    100.0,
    1e38,
    1e300,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    10**400,
    -(10**400),
    -(10**5000),
    "1",
    None,
    1j,
]
_INTEGERS = [
    -1,
    0,
    1,
    2,
    40,
    288,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    -(2**31),
    -(2**63),
    -(10**5000),
    1.0,
    "1",
    None,
    True,
]


def load_options(rng: random.Random) -> dict[str, Any]:
    """Mostly such as can be: small numbers, cache types and flash attention crossed."""
    options: dict[str, Any] = {
        "n_ctx": rng.choice(_SIZES[4:] if rng.random() < 0.8 else [0, *_SIZES]),
        "n_batch": rng.choice(_SIZES),
        "n_ubatch": rng.choice(_SIZES),
        "n_seq_max": rng.choice([1, 2, 3, 4, 5, 8]),
        "n_threads": 1,
        "seed": rng.getrandbits(31),
        "flash_attn": rng.choice(["auto", "on", "off", True]),
    }
    if rng.random() < 0.6:
        options["type_k"], options["type_v"] = rng.choice(CACHE_TYPES), rng.choice(CACHE_TYPES)
        if options["flash_attn"] == "off" and rng.random() < 0.9:
            options["type_v"] = rng.choice(CACHE_TYPES[:3])
    for name in ("use_mmap", "check_tensors", "verify_checksums", "hidden_states"):
        if rng.random() < 0.1:
            options[name] = rng.random() < 0.5
    return options


def sampling_options(rng: random.Random) -> dict[str, Any]:
    """Some options, half of the sets with values that make no sense."""
    odd = rng.random() < 0.5
    draws: dict[str, Callable[[], Any]] = {
        "temperature": lambda: rng.choice(_REALS if odd else [0, 0.5, 1.0, 5.0]),
        "top_k": lambda: rng.choice(_INTEGERS if odd else [0, 1, 40, 1000]),
        "top_p": lambda: rng.choice(_REALS if odd else [0.1, 0.9, 1]),
        "min_p": lambda: rng.choice(_REALS if odd else [0, 0.1, 1]),
        "repeat_penalty": lambda: rng.choice(_REALS if odd else [0.5, 1.0, 1.3]),
        "repeat_last_n": lambda: rng.choice(_INTEGERS if odd else [-1, 0, 64]),
        "frequency_penalty": lambda: rng.choice(_REALS if odd else [-1, 0, 1]),
        "presence_penalty": lambda: rng.choice(_REALS if odd else [-1, 0, 1]),
        "seed": lambda: rng.choice([*_INTEGERS, None] if odd else [0, 1, 2**32 - 2]),
        "logit_bias": lambda: _bias(rng, odd),
        "stop": lambda: _stop(rng, odd),
        "logprobs": lambda: rng.choice(_INTEGERS if odd else [0, 1, 5]),
        "max_tokens": lambda: rng.choice(_INTEGERS[:5] if odd else [1, 3]),
        "n_keep": lambda: rng.choice(_INTEGERS if odd else [0, 1, 4]),
        "context_shift": lambda: rng.random() < 0.5,
        "cache_prompt": lambda: rng.random() < 0.5,
        "echo": lambda: True,
        "prompt_rewards": lambda: True,
        "step_records": lambda: True,
    }
    return {name: draws[name]() for name in rng.sample(list(draws), rng.randint(1, 4))}


def _bias(rng: random.Random, odd: bool) -> Any:
    if odd and rng.random() < 0.2:
        return rng.choice([[], "", 3, None, {math.inf: 1}, {None: 1}, {"x": 1}, {1: None}, {1: "1"}, {(): 2}])
    keys = [*_INTEGERS, "1", "-1", "9" * 400, 1.0] if odd else range(288)
    values = _REALS if odd else [-math.inf, -1, 0, 5, math.inf]
    return {rng.choice(keys): rng.choice(values) for _ in range(rng.choice([1, 3, 300 if not odd else 5]))}


def _stop(rng: random.Random, odd: bool) -> Any:
    if odd and rng.random() < 0.3:
        return rng.choice(["", [""], [None], 3, [b"x"], {"a": 1}, "\ud800", ["a", "\udfff"], [3]])
    return [text(rng, rng.choice([1, 3, 3000])) or "x" for _ in range(rng.choice([1, 2, 500 if odd else 5]))]


def messages(rng: random.Random) -> list[Any]:
    """Of a conversation; a few are none."""
    if rng.random() < 0.1:
        return rng.choice(
            [[], [{}], [{"role": "user"}], [{"role": 3, "content": "x"}], [None], [{"role": "u", "content": []}]]
        )
    return [
        {
            "role": rng.choice(["user", "system", "assistant", text(rng, 5)]),
            "content": text(rng, rng.choice([5, 300, 20_000])),
        }
        for _ in range(rng.choice([1, 1, 2, 5, 50]))
    ]


def constraint(rng: random.Random) -> dict[str, Any]:
    """A grammar or a JSON schema."""
    return {"grammar": grammar(rng)} if rng.random() < 0.4 else {"json_schema": schema(rng)}
