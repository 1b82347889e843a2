"""Measure what rewards cost: the base with its insertion against the same base without, by turns in one process.

The table is llama-bench's, with columns added. ratio: time with rewards over time without, the median of neighbours.
floor: what the bytes read a token alone would make of a decode.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from . import _common

if TYPE_CHECKING:
    from ..bench import Bench, Measurement

HELP = "speed with and without rewards, as llama-bench shows it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama-bench."""
    parser.add_argument("-p", "--n-prompt", type=int, default=512, metavar="N", help="prompt tokens (default: 512)")
    parser.add_argument("-n", "--n-gen", type=int, default=128, metavar="N", help="generated tokens (default: 128)")
    parser.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="repetitions (default: 5)")
    parser.add_argument("--json", action="store_true", help="JSON for machines")
    _common.add_model_arguments(parser, leave_out=("n_ctx", "n_seq_max"))


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from ..bench import BenchOptions, bench

    what = BenchOptions(n_prompt=args.n_prompt, n_gen=args.n_gen, repetitions=args.repetitions)
    options = _common.load_options(args)
    model, otter = _common.model_files(args)
    result = bench(model, otter, what=what, options=options, progress=_say)
    if args.json:
        _common.print_json(result.to_dict())
    else:
        print(table(result))
    return 0


def _say(message: str) -> None:
    if sys.stderr.isatty():
        print(f"measuring {message}", file=sys.stderr)


def table(result: Bench) -> str:
    """Markdown, as llama-bench prints it."""
    head = ["model", "size", "params", "backend", "threads", "otter", "rewards", "test", "t/s", "ratio", "floor"]
    rows = []
    for name, test in result.tests.items():
        rows += _test_rows(result, test, floor=f"{result.floor:.3f}" if name == "decode" else "")
    lines = markdown(head, rows)
    if result.python_share is not None:
        lines += ["", f"python: {result.python_share:.2%} of a decode step of {result.step_ms:.2f} ms"]
    return "\n".join(lines)


def _test_rows(result: Bench, test: Measurement, floor: str) -> list[list[str]]:
    common = [result.model, mebibytes(result.base_bytes), millions(result.base_params)]
    common += [",".join(result.devices), str(result.n_threads)]
    insertion = f"{millions(result.otter_params)}, {mebibytes(result.otter_bytes)}"
    base_rate, otter_rate = (f"{side.tokens_per_second:.2f} ± {side.deviation:.2f}" for side in (test.base, test.otter))
    return [
        [*common, "-", "-", test.name, base_rate, "1.000", ""],
        [*common, insertion, str(result.n_rewards), test.name, otter_rate, f"{test.ratio:.3f}", floor],
    ]


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """An aligned table; numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left = {0, 3, 5}

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]


def mebibytes(n_bytes: int) -> str:
    """As llama-bench: MiB below one GiB, else GiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def millions(count: int) -> str:
    """As llama-bench: M below one billion, else B."""
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.2f} M"
