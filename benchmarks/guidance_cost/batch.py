"""Throughput of several prompts in one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from otter_gguf import Otter, _native
from otter_gguf.guidance.base import Policy

from .settings import SIDECAR_TYPES, Files, Settings, say
from .timing import ARMS

BOUND_TURNS = 9


def measure_batch(files: Files, settings: Settings) -> list[dict[str, Any]]:
    """Tokens a second of several prompts in one call over those of single calls, by turns."""
    rows = []
    with ExitStack() as stack:
        otter = files.sidecar(SIDECAR_TYPES[0])
        llm = stack.enter_context(Otter(files.base, otter=otter, **settings.load_options))
        stock = stack.enter_context(Otter(files.base, **settings.load_options))
        for n_texts in (settings.texts, 2 * settings.texts):
            for name in ("plain", "vocabulary"):
                say(f"batch of {n_texts}: {name}")
                guidance = ARMS[name].guidance
                turns = [batch_turn(llm, n_texts, guidance, settings, turn) for turn in range(-1, settings.turns)][1:]
                row = {"texts": n_texts, "title": ARMS[name].title, "bound": batch_bound(stock, n_texts)}
                for index, rate in enumerate(("batch_tokens_per_second", "single_tokens_per_second")):
                    row[rate] = statistics.median(turn[index] for turn in turns)
                ratios = [batch / single for batch, single in turns]
                rows.append({**row, "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]})
    return rows


def batch_turn(llm: Otter, n_texts: int, guidance: Policy | None, settings: Settings, turn: int) -> tuple[float, float]:
    """Tokens a second of one call, and of single calls with the same prompts; who goes first alternates."""
    prompts = np.random.default_rng(turn + 1).integers(0, llm.n_vocab, (n_texts, settings.prompt)).tolist()
    sides = [prompts], [[prompt] for prompt in prompts]
    if turn % 2:
        single = throughput(llm, sides[1], guidance, settings)
        return throughput(llm, sides[0], guidance, settings), single
    return throughput(llm, sides[0], guidance, settings), throughput(llm, sides[1], guidance, settings)


def batch_bound(stock: Otter, n_texts: int) -> float:
    """What llama.cpp's kernels give: the time of single tokens over that of one batch of them, without Otter."""
    context, ratios = stock.context, []
    for turn in range(BOUND_TURNS):
        single = sum(decode_seconds(context, [sequence], turn) for sequence in range(n_texts))
        ratios.append(single / decode_seconds(context, range(n_texts), turn))
    return statistics.median(ratios)


def decode_seconds(context: _native.Context, sequences: Sequence[int], token: int) -> float:
    """One batch of a token for each sequence, from the beginning."""
    for sequence in sequences:
        context.sequence_remove(sequence)
    tokens = np.full(len(sequences), token, np.int32)
    begin = time.perf_counter()
    context.decode(tokens, np.zeros_like(tokens), np.array(sequences, np.int32), np.ones(len(tokens), np.bool_))
    return time.perf_counter() - begin


def throughput(llm: Otter, calls: Sequence[list[list[int]]], guidance: Policy | None, settings: Settings) -> float:
    """Tokens a second of some calls one after the other, prompts included."""
    begin, tokens = time.perf_counter(), 0
    for prompts in calls:
        answer = llm.create_completion(
            prompts, max_tokens=settings.batch_tokens, guidance=guidance, seed=settings.seed, stream=False
        )
        assert answer["usage"] is not None
        tokens += answer["usage"]["completion_tokens"]
    return tokens / (time.perf_counter() - begin)
