"""``make soak``: what takes too long for the tests. ``python -m tests.reliability.soak [PART ...]``; a table on stdout.

A part is a function that yields rows; it is put into ``PARTS`` with what it shows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has no thread pools
os.environ["HF_HUB_OFFLINE"] = "1"

from ..fuzz.campaign import campaign
from ..gguf.sizes import compare_headers
from . import alarms, calls, leaks, lifetimes, planted_faults, threads, trials
from .fault_table import FAULTS
from .harness import Stage, stage
from .watch import unavailable
from .writers import WRITERS


class Row(NamedTuple):
    """One line of the table."""

    what: str
    trials: int
    result: str
    failures: list[str]


Part = Callable[[argparse.Namespace], Iterable[Row]]


def kills(args: argparse.Namespace) -> Iterator[Row]:
    """W1: every writer killed, half the times at an operation, half at a time."""
    for made in _stages(args):
        half = args.count // 2
        reports = [trials.kills(made, half, seed=args.seed), trials.kills(made, half, timed=True, seed=args.seed + 1)]
        hits = sum(report.hits for report in reports)
        yield _row(made, reports, f"{hits} killed before the end")


def faults(args: argparse.Namespace) -> Iterator[Row]:
    """W2: every operation of every writer fails, with every error number, once and from then on."""
    for made in _stages(args):
        if made.writer.slow:
            reports = [trials.faults(made, trials.ERRORS[:1], persistent=False)]
        else:
            reports = [trials.faults(made, (*trials.ERRORS, 0), persistent=persistent) for persistent in (False, True)]
        yield _row(made, reports, f"{sum(report.hits for report in reports)} faults")


def interrupts(args: argparse.Namespace) -> Iterator[Row]:
    """W7: Ctrl-C in every writer."""
    for made in _stages(args):
        half = max(args.count // 5, 1)
        reports = [trials.interrupts(made, half, timed=timed, seed=args.seed) for timed in (False, True)]
        slowest = max(report.slowest for report in reports)
        hits = sum(report.hits for report in reports)
        yield _row(made, reports, f"{hits} with code 130, slowest {slowest:.2f} s")


def headers(args: argparse.Namespace) -> Iterator[Row]:
    """F4: random headers, accepted and refused as Python's integers have it; the first other one is the failure."""
    count = 1_000_000
    try:
        yield Row("headers", count, f"{compare_headers(count, args.seed)} accepted, the others refused", [])
    except AssertionError as error:
        yield Row("headers", count, "not as Python's integers have it", [str(error)])


def memory(args: argparse.Namespace) -> Iterator[Row]:
    """M2: load and free 20 times for each of ``--count``, each kind in a process of its own."""
    cycles = 20 * args.count
    for kind in leaks.KINDS:
        status, line = leaks.run_apart(kind, cycles)
        yield Row(kind, cycles, line, [line] if status else [])


def contexts(args: argparse.Namespace) -> Iterator[Row]:
    """M4: contexts of their own in eight threads, two rounds for each of ``--count``."""
    rounds = 2 * args.count
    wrong = threads.differing(rounds)
    failures = [f"{wrong} results differ"] if wrong else []
    yield Row(f"{threads.THREADS} threads", rounds, f"{wrong} results differ from one thread's", failures)


def shared(args: argparse.Namespace) -> Iterator[Row]:
    """M4: one object asked from four threads, 1,000 calls for each of ``--count``."""
    number = 1000 * args.count
    count = calls.run(number, seed=args.seed)
    yield Row(f"{calls.THREADS} threads", number, calls.summary(count), count.problems)


def interrupted(args: argparse.Namespace) -> Iterator[Row]:
    """Exceptions out of signal handlers in calls, 200 for each of ``--count``, a tenth of them in isolated models."""
    number = 200 * args.count
    isolated = number // alarms.ISOLATED_SHARE
    for what, isolate, share in (("calls", False, number - isolated), ("isolated calls", True, isolated)):
        report = alarms.run(share, isolate=isolate, seed=args.seed)
        done = f"{report.interrupted.total():,} of {report.calls:,} calls interrupted"
        yield Row(what, report.calls, f"{done}, {len(report.problems)} wrong or refused afterwards", report.problems)


def endings(args: argparse.Namespace) -> Iterator[Row]:
    """M5: objects that die in 20 orders, in each way."""
    for ending in lifetimes.ENDINGS:
        problems = lifetimes.problems(ending, lifetimes.ORDERS)
        yield Row(ending, lifetimes.ORDERS, "no crash, no deadlock", problems)


def fuzzed(args: argparse.Namespace) -> Iterator[Row]:
    """F2: changed files and strange texts, 400 and 80 for each of ``--count``."""
    fleet = campaign({"files": 400 * args.count, "texts": 80 * args.count}, args.seed)
    for name, total in fleet.trials.items():
        yield Row(f"fuzzed {name}", total, "worked, or refused in a line", fleet.problems(name))


def planted(args: argparse.Namespace) -> Iterator[Row]:
    """X12: mistakes planted in a copy of the sources."""
    survivors = planted_faults.run(FAULTS, planted_faults.BUILD)
    caught = len(FAULTS) - len(survivors)
    too_many = planted_faults.too_many(survivors, FAULTS)
    yield Row("planted faults", len(FAULTS), f"{caught} caught", [f.name for f in survivors] if too_many else [])


PARTS: dict[str, Part] = {
    "kills": kills,
    "faults": faults,
    "interrupts": interrupts,
    "headers": headers,
    "memory": memory,
    "threads": contexts,
    "calls": shared,
    "alarms": interrupted,
    "endings": endings,
    "fuzz": fuzzed,
    "planted": planted,
}


def _stages(args: argparse.Namespace) -> Iterator[Stage]:
    if reason := unavailable():
        sys.exit(f"soak: {reason}")
    for name, writer in WRITERS.items():
        if not args.writer or name in args.writer:
            with stage(writer) as made:
                yield made


def _row(made: Stage, reports: list[trials.Report], result: str) -> Row:
    failures = [failure for report in reports for failure in report.failures]
    return Row(made.writer.name, sum(report.trials for report in reports), result, failures)


def main() -> int:
    """Exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--writer", action="append", metavar="NAME", help="only this writer (may be repeated)")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="kills of each writer (50)")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="N", help="of the moments (the time)")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(f"seed {args.seed}\n\n| part | what | trials | result | failures |\n|---|---|---|---|---|")
    failed = 0
    for part in args.parts or PARTS:
        for row in PARTS[part](args):
            print(f"| {part} | {row.what} | {row.trials:,} | {row.result} | {len(row.failures)} |", flush=True)
            for failure in row.failures[:5]:
                print(f"{part}: {row.what}: {failure}", file=sys.stderr, flush=True)
            failed += bool(row.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
