"""The native layer without the Python API around it: contexts over toy files, batches as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_gguf import _native
from otter_gguf.config import InsertionConfig
from otter_gguf.gguf.sidecar import to_native_spec
from otter_gguf.options import SamplingOptions

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

# One thread (a barrier of several costs more than these models), an exact cache, kernels that do not round to F16.
EXACT: dict[str, Any] = {"n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn": "off"}

# The native sampler has no defaults of its own; a grammar is all that it knows of a schema.
SAMPLING: dict[str, Any] = {**vars(SamplingOptions()), "seed": -1, "logit_bias": ()}
del SAMPLING["json_schema"]


def open_sampler(model: _native.Model, **options: Any) -> _native.Sampler:
    """With the package's defaults."""
    return _native.Sampler(model, **{**SAMPLING, **options})


def open_base(base: Path, **options: Any) -> _native.Context:
    """llama.cpp's own model class, loaded by llama.cpp's own function."""
    return _context(_native.Model(str(base)), options)


def open_otter(base: Path, sidecar: Path | None, config: InsertionConfig, **options: Any) -> _native.Context:
    """The same base with the inserted part of a sidecar; ``None``: the base is a merged file."""
    hidden_states = options.pop("hidden_states", False)
    spec = to_native_spec(config)
    model = _native.Model(str(base), sidecar=str(sidecar or ""), insertion=spec, hidden_states=hidden_states)
    return _context(model, options)


def _context(model: _native.Model, options: dict[str, Any]) -> _native.Context:
    defaults = {"n_ctx": 512, "n_batch": 512, "n_seq_max": 4, "n_outputs_max": 512}
    return _native.Context(model, **{**defaults, **EXACT, **options})


def feed(
    context: _native.Context,
    tokens: Sequence[int] | Int32,
    first: int = 0,
    *,
    sequences: Sequence[int] | int = 0,
    positions: Sequence[int] | None = None,
    outputs: bool | Sequence[bool] = True,
    rewards: bool = True,
) -> None:
    """One batch of consecutive positions, all marked as outputs unless said otherwise."""
    count = len(tokens)
    context.decode(
        np.asarray(tokens, np.int32),
        np.asarray(range(first, first + count) if positions is None else positions, np.int32),
        np.broadcast_to(np.asarray(sequences, np.int32), count).copy(),
        np.broadcast_to(np.asarray(outputs, np.bool_), count).copy(),
        rewards=rewards,
    )


def feed_chunks(context: _native.Context, tokens: Int32, size: int) -> tuple[Float32, Float32]:
    """Logits and rewards (tokens, ...) of a text fed ``size`` tokens at a time."""
    logits, rewards = [], []
    for first in range(0, len(tokens), size):
        feed(context, tokens[first : first + size], first)
        logits.append(context.logits().copy())
        rewards.append(context.rewards())
    return np.concatenate(logits), np.concatenate(rewards)


def base_logits(context: _native.Context, tokens: Int32, size: int) -> Float32:
    """Logits (tokens, n_vocab) of a text fed ``size`` tokens at a time, from a context without rewards."""
    logits = []
    for first in range(0, len(tokens), size):
        feed(context, tokens[first : first + size], first)
        logits.append(context.logits().copy())
    return np.concatenate(logits)


def random_tokens(count: int, n_vocab: int = 288, seed: int = 0) -> Int32:
    """Tokens behind the special ones."""
    return np.random.default_rng(seed).integers(3, n_vocab, count).astype(np.int32)
