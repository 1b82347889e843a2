"""Changed files, and strange texts, constraints and options, through the public API: ``python -m tests.fuzz --help``.

Good ends: it works, or is refused with an ``OtterError`` of one line. Bad ends: a signal, another exception, more than
10 seconds without an answer, more memory than twice the files and 512 MB, a wrong answer after an interrupt. A bad end
leaves its files in ``build/fuzz`` and the line that does it again.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from .campaign import KEEP, again, campaign
from .worker import work


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--files", type=int, default=20_000, metavar="N", help="changed files (default: 20000)")
    made.add_argument("--texts", type=int, default=4_000, metavar="N", help="texts and options (default: 4000)")
    made.add_argument("--seed", type=int, default=None, help="default: another one each time")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (default: 1)")
    made.add_argument("--minutes", type=float, default=None, metavar="M", help="end after so many at the latest")
    made.add_argument("--again", metavar="KIND:SEED:NUMBER", help="this one trial, as a bad end names it")
    made.add_argument("--keep", type=Path, default=KEEP, help="where files of bad ends go (default: build/fuzz)")
    made.add_argument("--seeds", type=Path, default=None, help="folder for the good files, kept (default: a new one)")
    made.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    return made


def main() -> int:
    """Exit code 1 if a trial ended badly."""
    args = parser().parse_args()
    if args.worker:
        work(*args.worker)
        return 0
    if args.again:
        return again(args.again, args.keep, args.seeds).tell()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    counts = {"files": args.files, "texts": args.texts}
    fleet = campaign(counts, seed, children=args.jobs, minutes=args.minutes, keep=args.keep, seeds=args.seeds)
    return fleet.tell()


if __name__ == "__main__":
    sys.exit(main())
