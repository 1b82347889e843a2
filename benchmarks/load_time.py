"""What validation costs: loading files that are checked first, against loading the same files unchecked.

    python benchmarks/load_time.py                                  Llama 3.2 1B's geometry in Q4_0, about a minute
    python benchmarks/load_time.py --geometry tiny --pairs 3        a trial

Loads alternate in one process with the files in the page cache, so that the two of a pair see the same machine; the
figure is the median of the pairs' ratios. Unchecked is the native loader alone, with an insertion read before; checked
is what ``Otter`` does: header, keys, vocabulary, tensor list, the sidecar's values, and the binding to its base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import synthetic
from otter_gguf.config import InsertionConfig
from otter_gguf.loading import ModelFiles, check_files, load_model
from otter_gguf.options import LoadOptions

BAR = 1.1


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def write_files(folder: Path, geometry: str, type: str) -> tuple[Path, Path]:
    """A base and its sidecar of the size that docs/benchmarks.md speaks of."""
    base, sidecar = folder / "base.gguf", folder / "synthetic.otter.gguf"
    shape = synthetic.GEOMETRIES[geometry]
    synthetic.write_base(base, shape, type, 0)
    synthetic.write_sidecar(sidecar, base, InsertionConfig.uniform(shape.base, 64, 1, 256), "Q8_0", 0)
    return base, sidecar


def unchecked(files: ModelFiles) -> None:
    """The native loader alone."""
    load_model(files, LoadOptions()).close()


def checked(base: Path, sidecar: Path) -> None:
    """As ``Otter`` loads."""
    load_model(check_files(base, sidecar), LoadOptions()).close()


def measure(base: Path, sidecar: Path, pairs: int) -> dict[str, float]:
    """Medians over the pairs: seconds of both ways, their ratio, and its quartiles."""
    files = check_files(base, sidecar)
    unchecked(files)  # into the page cache
    plain, full = [], []
    for _ in range(pairs):
        plain.append(seconds(lambda: unchecked(files)))
        full.append(seconds(lambda: checked(base, sidecar)))
    ratios = [with_checks / without for with_checks, without in zip(full, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "unchecked_s": statistics.median(plain),
        "checked_s": statistics.median(full),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON; exit status 1 if the ratio is above the bar."""
    parser = argparse.ArgumentParser(description="Measure what validation adds to the time of loading.")
    parser.add_argument("--geometry", choices=synthetic.GEOMETRIES, default="1b")
    parser.add_argument("--type", default="Q4_0", help="weight type of the base")
    parser.add_argument("--pairs", type=int, default=11)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="otter-gguf-load-") as folder:
        figures = measure(*write_files(Path(folder), given.geometry, given.type), given.pairs)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))
    return int(figures["ratio"] > BAR)


if __name__ == "__main__":
    sys.exit(main())
