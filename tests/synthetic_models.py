"""Random models for tests, made once a run by the generator that users have (benchmarks/synthetic.py)."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import synthetic
from otter_gguf import Otter
from otter_gguf.config import HeadConfig, InsertionConfig

TEXT = "The otter lives in the sea, and eats urchins; 123 of them a day. Ünïcödé: 水獺 🦦.\n"


class Pair(NamedTuple):
    """A base and its sidecar."""

    base: Path
    otter: Path


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="otter-gguf-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def pair(
    type: str = "F32",
    *,
    labels: tuple[str, ...] = ("reward",),
    seed: int = 0,
    activation: Any = "none",
    base_of: int | None = None,
) -> Pair:
    """A tiny base of a weight type and an F32 sidecar; ``base_of`` takes the base of another seed."""
    geometry = synthetic.GEOMETRIES["tiny"]
    head = HeadConfig(labels=labels, activation=activation)
    config = InsertionConfig.uniform(geometry.base, 32, 1, 64, heads=(head,))
    folder = _folder() / f"{type}-{'-'.join(labels)}-{seed}-{activation}-{base_of}"
    folder.mkdir(exist_ok=True)
    paths = Pair(folder / "base.gguf", folder / "synthetic.otter.gguf")
    base_seed = seed if base_of is None else base_of
    synthetic.write_base(paths.base, geometry, type, base_seed)
    synthetic.write_sidecar(paths.otter, paths.base, config, "F32", seed)
    return paths


def load(files: Pair | None = None, **options: Any) -> Otter:
    """The tiny model with one thread: results are then the same on every machine with the same kernels."""
    files = files or pair()
    return Otter(files.base, otter=files.otter, **{"n_ctx": 512, "n_threads": 1, "seed": 1, **options})
