"""What rewards cost: a base with its insertion against the same base without, paired in one process.

Clock speeds and neighbours change within seconds, so both sides take turns, one token (or one prompt) each, and the
cost is the median of the ratios of neighbours. All is done twice, with either side loaded first. Table and JSON follow
llama-bench.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import _native
from .config import InsertionConfig
from .context.session import Session
from .engine import Engine, Request
from .errors import ConfigError
from .gguf.base import BaseFiles, is_inserted
from .loading import ModelFiles, check_files, load_model, make_context
from .options import LoadOptions, SamplingOptions
from .threads import default_threads
from .verify import stock_files

Progress = Callable[[str], object]

WARM_UP = 2
"""Tokens, and prompts, run before the clock counts."""


@dataclass(frozen=True)
class BenchOptions:
    """What is measured."""

    n_prompt: int = 512
    """Tokens of a prompt; 0 = no prompt test."""
    n_gen: int = 128
    """Tokens generated; 0 = no generation test."""
    repetitions: int = 5
    """Prompts, and runs of ``n_gen`` tokens."""

    def __post_init__(self) -> None:
        if self.n_prompt < 0 or self.n_gen < 0 or self.repetitions < 1:
            raise ConfigError("bench: -p and -n must be 0 or more, -r at least 1")
        if not self.n_prompt and not self.n_gen:
            raise ConfigError("bench: nothing to measure with -p 0 and -n 0")


@dataclass(frozen=True)
class Rate:
    """One side of a test."""

    seconds: tuple[float, ...]
    """Of each repetition (prompts), or of each run of ``n_gen`` tokens."""
    n_tokens: int
    """Tokens in each."""

    @property
    def tokens_per_second(self) -> float:
        """Mean over the repetitions."""
        return statistics.mean(self._rates())

    @property
    def deviation(self) -> float:
        """Standard deviation over the repetitions; 0 for one."""
        rates = self._rates()
        return statistics.stdev(rates) if len(rates) > 1 else 0.0

    def _rates(self) -> list[float]:
        return [self.n_tokens / seconds for seconds in self.seconds]

    def to_dict(self) -> dict[str, Any]:
        """Fields as llama-bench names them."""
        return {
            "avg_ts": self.tokens_per_second,
            "stddev_ts": self.deviation,
            "samples_ns": [round(seconds * 1e9) for seconds in self.seconds],
        }


@dataclass(frozen=True)
class Measurement:
    """One row pair of the table."""

    name: str
    """As in llama-bench: pp512, tg128."""
    base: Rate
    otter: Rate
    ratios: tuple[float, ...]
    """Time with rewards over time without, of neighbours, round after round."""
    rounds: int = 1
    """How often both sides were loaded anew."""

    @property
    def ratio(self) -> float:
        """Median of the ratios; of several rounds, the mean of their medians."""
        n = len(self.ratios) // self.rounds
        return statistics.mean(statistics.median(self.ratios[i * n : (i + 1) * n]) for i in range(self.rounds))

    def joined(self, other: Measurement) -> Measurement:
        """This round and another of the same size."""
        sides = {
            side: Rate(getattr(self, side).seconds + getattr(other, side).seconds, self.base.n_tokens)
            for side in ("base", "otter")
        }
        return Measurement(self.name, **sides, ratios=self.ratios + other.ratios, rounds=self.rounds + other.rounds)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        quartiles = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [self.ratio] * 3
        return {
            "test": self.name,
            "ratio": self.ratio,
            "ratio_quartiles": [quartiles[0], quartiles[2]],
            "pairs": len(self.ratios),
            "base": self.base.to_dict(),
            "otter": self.otter.to_dict(),
        }


@dataclass(frozen=True)
class Bench:
    """The result of :func:`bench`."""

    model: str
    """llama.cpp's description of the model."""
    base_path: str
    otter_path: str
    base_bytes: int
    otter_bytes: int
    base_params: int
    otter_params: int
    n_rewards: int
    floor: float
    """What memory traffic alone would make of a decode: bytes read a token with the insertion over those without."""
    devices: tuple[str, ...]
    options: LoadOptions
    n_threads: int
    tests: dict[Literal["prefill", "decode"], Measurement]
    python_share: float | None
    """Share of a decode step of :class:`otter_gguf.Otter` that is spent outside llama.cpp; None without tg test."""
    step_ms: float | None
    """Such a step, in milliseconds (median)."""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: keys of llama-bench where they exist."""
        return {
            "build_commit": _native.LLAMA_CPP_COMMIT,
            "model_filename": self.base_path,
            "model_type": self.model,
            "model_size": self.base_bytes,
            "model_n_params": self.base_params,
            "otter_filename": self.otter_path,
            "otter_size": self.otter_bytes,
            "otter_n_params": self.otter_params,
            "n_rewards": self.n_rewards,
            "backends": ",".join(self.devices),
            "n_threads": self.n_threads,
            **{name: getattr(self.options, name) for name in ("n_gpu_layers", "type_k", "type_v", "flash_attn")},
            "floor": self.floor,
            **{name: test.to_dict() for name, test in self.tests.items()},
            "python": {"share": self.python_share, "step_ms": self.step_ms},
        }


def bench(
    model_path: str | Path,
    otter: str | Path | None = None,
    *,
    what: BenchOptions | None = None,
    options: LoadOptions | None = None,
    progress: Progress = lambda message: None,
) -> Bench:
    """Measure a base with and without its insertion.

    Args:
        model_path: The base, or a merged file (its base is split off to a temporary file first).
        otter: The sidecar, unless the file is merged.
        what: Lengths and repetitions.
        options: How both are loaded; the context is made as long as the tests need.
        progress: Called with a line for each thing that is being measured.

    Raises:
        ConfigError: There is no insertion.
    """
    what = what or BenchOptions()
    files = check_files(model_path, otter)
    if files.insertion is None:
        raise ConfigError(f"{model_path}: nothing is inserted, so there is no cost to measure; give --otter")
    options = _fitting(options or LoadOptions(), what)
    with stock_files(files) as stock_file:
        first, second = (
            _round(files, stock_file, what, options, ours_first=ours_first, progress=progress)
            for ours_first in (True, False)
        )
    tests = {name: test.joined(second.tests[name]) for name, test in first.tests.items()}
    return dataclasses.replace(first, tests=tests)


def _round(
    files: ModelFiles,
    stock_file: ModelFiles,
    what: BenchOptions,
    options: LoadOptions,
    *,
    ours_first: bool,
    progress: Progress,
) -> Bench:
    """All tests with both sides loaded anew. Who is loaded first gets the slower memory, by some percent: it has to be
    either side once."""
    with ExitStack() as stack:
        loaded = {}
        for is_ours in (ours_first, not ours_first):
            model = stack.enter_context(closing(load_model(files if is_ours else stock_file, options)))
            loaded[is_ours] = (model, stack.enter_context(closing(make_context(model, options))))
        (ours, ours_context), (stock, stock_context) = loaded[True], loaded[False]
        pair = (ours_context, stock_context)
        tests: dict[Literal["prefill", "decode"], Measurement] = {}
        share = step_ms = None
        if what.n_prompt:
            progress(f"pp{what.n_prompt}")
            tests["prefill"] = measure_prefill(pair, ours.n_vocab, what)
        if what.n_gen:
            progress(f"tg{what.n_gen}")
            tests["decode"] = measure_decode(pair, ours.n_vocab, what)
            if ours_first:
                progress("python's share")
                assert files.insertion is not None
                share, step_ms = measure_python(ours, ours_context, files.insertion, what.n_gen)
        return _result(files, options, ours, stock, tests, share, step_ms)


def _fitting(options: LoadOptions, what: BenchOptions) -> LoadOptions:
    needed = max(what.n_prompt, what.n_gen + WARM_UP) + 1
    return dataclasses.replace(options, n_ctx=needed, n_seq_max=1)


def measure_prefill(pair: Sequence[_native.Context], n_vocab: int, what: BenchOptions) -> Measurement:
    """Prompts, one on each side by turns; rewards of the last token are read."""
    tokens = np.random.default_rng(0).integers(0, n_vocab, what.n_prompt, np.int32)
    for _ in range(WARM_UP):
        for context in pair:
            _prompt_seconds(context, tokens)
    seconds = [_in_turn(pair, i, lambda c: _prompt_seconds(c, tokens)) for i in range(what.repetitions)]
    return _test(f"pp{what.n_prompt}", what.n_prompt, [[pair_of_one] for pair_of_one in seconds])


def measure_decode(pair: Sequence[_native.Context], n_vocab: int, what: BenchOptions) -> Measurement:
    """Single tokens, one on each side by turns; every reward is read."""
    tokens = np.random.default_rng(1).integers(0, n_vocab, (what.repetitions, what.n_gen + WARM_UP), np.int32)
    runs: list[list[tuple[float, float]]] = []
    for row in tokens:
        for context in pair:
            context.clear()
        seconds = [
            _in_turn(pair, i, lambda c, token=token, i=i: _token_seconds(c, token, i))  # type: ignore[misc]
            for i, token in enumerate(row)
        ]
        runs.append(seconds[WARM_UP:])
    return _test(f"tg{what.n_gen}", what.n_gen, runs)


def _test(name: str, n_tokens: int, runs: list[list[tuple[float, float]]]) -> Measurement:
    """From the seconds (ours, stock) of each neighbouring pair in each repetition."""
    ours = tuple(sum(a for a, _ in run) for run in runs)
    stock = tuple(sum(b for _, b in run) for run in runs)
    ratios = tuple(a / b for run in runs for a, b in run)
    return Measurement(name, Rate(stock, n_tokens), Rate(ours, n_tokens), ratios)


def _in_turn(
    pair: Sequence[_native.Context], index: int, measure: Callable[[_native.Context], float]
) -> tuple[float, float]:
    """Both sides, who goes first alternating: (ours, stock)."""
    ours, stock = pair
    if index % 2:
        second = measure(stock)
        return measure(ours), second
    return measure(ours), measure(stock)


def _prompt_seconds(context: _native.Context, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> float:
    context.clear()
    begin = time.perf_counter()
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        outputs = np.zeros(len(part), np.bool_)
        outputs[-1] = start + len(part) == len(tokens)
        positions = np.arange(start, start + len(part), dtype=np.int32)
        context.decode(part, positions, np.zeros_like(part), outputs)
    context.logits()
    return time.perf_counter() - begin


def _token_seconds(context: _native.Context, token: int, position: int) -> float:
    tokens, positions, sequences = (np.array([value], np.int32) for value in (token, position, 0))
    outputs = np.ones(1, np.bool_)
    begin = time.perf_counter()
    context.decode(tokens, positions, sequences, outputs)
    context.logits()
    return time.perf_counter() - begin


def measure_python(
    model: _native.Model, context: _native.Context, insertion: InsertionConfig, n_gen: int
) -> tuple[float, float]:
    """Share of a step of the public step loop that is not llama.cpp's, and the step in milliseconds (medians).

    Tokens are drawn greedily; what llama.cpp's sampler takes is native time too, but counts as Python's here.
    """
    engine = Engine(Session(model, context, "bench", insertion, n_gen + WARM_UP + 1))
    handles = engine.submit([Request([0], SamplingOptions(temperature=0.0))])
    engine.start(handles)
    shares, times = [], []
    end_inside, end = context.timing()["seconds"], time.perf_counter()
    for _ in engine.follow(handles):
        begin_inside, begin = end_inside, end
        end_inside, end = context.timing()["seconds"], time.perf_counter()
        times.append(end - begin)
        shares.append(1 - (end_inside - begin_inside) / (end - begin))
    if not times:
        return 0.0, 0.0
    return statistics.median(shares), statistics.median(times) * 1e3


def bytes_read(path: str, *, inserted: bool) -> int:
    """Bytes of weights that a decode of one token reads: all but the embedding table where it is not the output too.

    ``inserted`` picks the inserted tensors instead of the base's.
    """
    tensors = []
    with BaseFiles.open(path) as files:
        for file in files.files:
            tensors += [tensor for tensor in file.tensors if is_inserted(tensor.name) == inserted]
    tied = not inserted and all(tensor.name != "output.weight" for tensor in tensors)
    return sum(tensor.n_bytes for tensor in tensors if tied or not tensor.name.startswith("token_embd."))


def _result(
    files: ModelFiles,
    options: LoadOptions,
    ours: _native.Model,
    stock: _native.Model,
    tests: dict[Literal["prefill", "decode"], Measurement],
    share: float | None,
    step_ms: float | None,
) -> Bench:
    otter_path = files.sidecar or files.path
    added = bytes_read(otter_path, inserted=True)
    return Bench(
        model=stock.description,
        base_path=files.path,
        otter_path=otter_path,
        base_bytes=stock.n_bytes,
        otter_bytes=ours.n_bytes - stock.n_bytes,
        base_params=stock.n_params,
        otter_params=ours.n_params - stock.n_params,
        n_rewards=ours.n_rewards,
        floor=1 + added / bytes_read(files.path, inserted=False),
        devices=_device_names(options),
        options=options,
        n_threads=options.n_threads or default_threads(),
        tests=tests,
        python_share=share,
        step_ms=step_ms,
    )


def _device_names(options: LoadOptions) -> tuple[str, ...]:
    """What computes: the GPUs if layers go there, else the CPU."""
    gpus = [str(device["name"]) for device in _native.devices() if "GPU" in str(device["type"]).upper()]
    return tuple(gpus) if gpus and options.n_gpu_layers != 0 else ("CPU",)
