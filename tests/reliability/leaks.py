"""Leaks: what is loaded and freed a thousand times must leave nothing behind.

    python -m tests.reliability.leaks                     1,000 cycles of each kind
    python -m tests.reliability.leaks --cycles 60 base    one kind, fewer cycles

After the first 50 cycles the caches of allocator and interpreter are warm; from there on resident memory may grow by
1%. At the end no native object may be alive. Exit status 1 if either fails.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from otter_gguf import ARGS, Otter, OtterError, _native
from otter_gguf.gguf.merge import merge
from otter_gguf.loading import check_files, load_model
from otter_gguf.options import LoadOptions
from tests.guidance.reference import vocabulary_pair
from tests.native.helpers import open_sampler
from tests.reliability.tree import ROOT
from tests.synthetic_models import pair

WARM = 50
LIMIT = 0.01
_OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "n_seq_max": 4}
_TOKENS = np.arange(3, 35, dtype=np.int32)


def resident_bytes() -> int:
    """Resident memory of this process (Linux with glibc), without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- what is done over and over --------------------------------------------------------------------------------


def base() -> None:
    """A base alone: loaded, asked for a token, closed."""
    with Otter(pair().base, **_OPTIONS) as llm:
        llm.create_completion("a", max_tokens=1)


def sidecar() -> None:
    """A base with its sidecar: guided, scored, and left to the garbage collector."""
    files = vocabulary_pair()
    llm = Otter(files.base, otter=files.otter, **_OPTIONS)
    llm.create_completion("a", max_tokens=2, guidance=ARGS(n_candidates=4))
    llm.score("some text")


@functools.cache
def _merged() -> Path:
    files = pair()
    path = files.base.with_name("leaks-merged.gguf")
    merge(files.base, files.otter, path, force=True)
    return path


def merged() -> None:
    """A merged file."""
    with Otter(_merged(), **_OPTIONS) as llm:
        llm.score("some text")


@functools.cache
def _model() -> _native.Model:
    return load_model(check_files(*pair()), LoadOptions())


def context() -> None:
    """A context and a sampler of a model that stays; a view of logits outlives both names."""
    model = _model()
    made = _native.Context(model, n_ctx=64, n_threads=1)
    drawn = open_sampler(model, repeat_penalty=1.1)
    made.log_probabilities(_TOKENS)
    made.clear()
    made.decode(_TOKENS, np.arange(32, dtype=np.int32), np.zeros(32, np.int32), np.ones(32, np.bool_))
    view = made.logits()
    made.close()
    drawn.sample(view[0])
    made.close()


def refused() -> None:
    """What fails: a damaged file, a sidecar as the base, a context that cannot be, a batch that does not fit."""
    for path in (__file__, pair().otter):
        _expect_error(functools.partial(Otter, path, **_OPTIONS))
    _expect_error(lambda: _native.Model(__file__))
    _expect_error(lambda: _native.Context(_model(), type_v="q4_0", flash_attn="off"))
    made = _native.Context(_model(), n_ctx=64, n_threads=1)
    _expect_error(lambda: made.score(np.zeros(10_000, np.int32)))


def _expect_error(call: Callable[[], object]) -> None:
    try:
        call()
    except OtterError:
        return
    raise AssertionError("nothing was raised")


def train() -> None:
    """One training step of a widened toy model, on the CPU."""
    import torch

    from tests.training.toy import toy_otter

    model = toy_otter()
    optimizer = torch.optim.SGD(list(model.inserted_parameters().values()), lr=0.1)
    model.rewards(torch.arange(32)[None]).square().mean().backward()
    optimizer.step()


KINDS: dict[str, Callable[[], None]] = {
    "base": base,
    "sidecar": sidecar,
    "merged": merged,
    "context": context,
    "refused": refused,
    "train": train,
}
NATIVE_KINDS = tuple(kind for kind in KINDS if kind != "train")
"""Those that do not import torch."""


# ---- measuring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Resident memory of a run."""

    warm: int
    """Bytes after the first cycles."""
    end: int
    """Bytes after the last."""

    @property
    def share(self) -> float:
        """Growth as a share of the warm process."""
        return self.end / self.warm - 1


def measure(cycle: Callable[[], object], cycles: int, warm: int = WARM) -> Growth:
    """Run ``cycle`` so often; memory after ``warm`` of them and at the end."""
    for _ in range(warm):
        cycle()
    begin = resident_bytes()
    for _ in range(cycles - warm):
        cycle()
    return Growth(begin, resident_bytes())


def alive() -> dict[str, int]:
    """The native objects that are still there once the model that stays has been closed too."""
    _model().close()
    _model.cache_clear()
    gc.collect()
    return {name: count for name, count in _native.live_objects().items() if count}


def run_apart(kind: str, cycles: int, warm: int = WARM) -> tuple[int, str]:
    """One kind in a process of its own: its exit status, and what it printed in one line."""
    command = [sys.executable, "-m", "tests.reliability.leaks", "--cycles", str(cycles), "--warm", str(warm), kind]
    # Fixed, where glibc would adjust it: one block that moves into the heap for good is half a megabyte.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, "; ".join(ran.stdout.split("\n")).strip("; ")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Load and free, over and over, and look for what is left.")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="which (default: all)")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--warm", type=int, default=WARM)
    given = parser.parse_args(arguments)
    failed = False
    for kind in given.kinds or KINDS:
        growth = measure(KINDS[kind], given.cycles, given.warm)
        failed |= growth.share > LIMIT
        sizes = f"{growth.warm / 2**20:6.1f} MiB after {given.warm}, {growth.end / 2**20:6.1f} MiB after {given.cycles}"
        print(f"{kind:8} {sizes} cycles: {growth.share:+.2%}", flush=True)
    left = alive()
    print(f"native objects alive: {left or 'none'}")
    return int(failed or bool(left))


if __name__ == "__main__":
    sys.exit(main())
