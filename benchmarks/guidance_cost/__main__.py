"""What guided decoding costs: time, memory and Python's share of a step, against plain decoding without Otter.

    python -m benchmarks.guidance_cost --geometry 1b --work DIR --json FILE --document docs/benchmarks.md

Random weights of a real model's geometry (benchmarks/synthetic.py): a Q4_0 base, a Q4_0 and a Q8_0 sidecar with a value
and a vocabulary head, and a second model of the base's size with a head, as ``otter-gguf train --full`` makes it. At
1b: some ten minutes on two cores, 2 GB in ``--work`` (kept for the next run) and 5 GB of memory.

Every policy takes turns, token by token, with llama.cpp's own loop over a stock context in the same process; the cost
is the median of the ratios of neighbours. All is loaded anew for each round, in reversed order.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import processor
from otter_gguf import _native
from otter_gguf.errors import OtterError
from otter_gguf.gguf.atomic import atomic_path

from .batch import measure_batch
from .memory import KINDS, measure_memory, memory_of
from .report import PARTS, write_document
from .settings import SIDECAR_TYPES, Settings, make_files
from .timing import measure_time, saved


def measure(work: Path, settings: Settings, parts: Sequence[str]) -> dict[str, Any]:
    """Everything, as ``--json`` has it."""
    files = make_files(work, settings)
    result: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "llama_cpp": _native.LLAMA_CPP_COMMIT,
    }
    if "time" in parts:
        result["time"] = measure_time(files, settings)
        result["time_saved"] = saved(result["time"])
    if "batch" in parts:
        result["batch"] = measure_batch(files, settings)
    if "memory" in parts:
        memory = measure_memory(work, settings)
        result["memory"] = memory
        result["memory_saved"] = {
            type: {what: 1 - memory[type][what] / memory["second"][what] for what in ("counted", "resident")}
            for type in SIDECAR_TYPES
        }
    return result


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in dataclasses.fields(Settings):
        flag = f"--{option.name.replace('_', '-')}"
        default: Any = option.default
        parser.add_argument(flag, type=type(default), default=default, help=f"{option.metadata['help']} ({default})")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where the models are kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    parser.add_argument("--read", type=Path, metavar="FILE", help="figures of an earlier --json: measure nothing")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the section and its figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures (default: to stdout)")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    args = parse_arguments(arguments)
    try:
        settings = Settings(**{option.name: getattr(args, option.name) for option in dataclasses.fields(Settings)})
        if args.kind:
            print(json.dumps(memory_of(args.kind, make_files(args.work, settings), settings)))
            return 0
        if args.read:
            result = dict(json.loads(args.read.read_text(encoding="utf-8")))
        else:
            result = measure(args.work, settings, args.parts)
            write_json(result, args.json)
        if args.document:
            write_document(result, args.document)
    except OtterError as error:
        print(f"guidance_cost: {error}", file=sys.stderr)
        return 2
    return 0


def write_json(result: dict[str, Any], path: Path | None) -> None:
    """To a file or to stdout."""
    text = json.dumps(result, indent=1) + "\n"
    if path is None:
        print(text, end="")
        return
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
