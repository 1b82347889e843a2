"""Many trials of both kinds, in several processes, from one seed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .fleet import REPOSITORY, Fleet, Job
from .trials import GROUP

KEEP = REPOSITORY / "build" / "fuzz"
"""Where the files of bad ends go."""


def campaign(
    counts: dict[str, int],
    seed: int,
    *,
    children: int = 1,
    minutes: float | None = None,
    keep: Path = KEEP,
    seeds: Path | None = None,
) -> Fleet:
    """Run so many trials of each kind; ``seeds``: a folder for the good files, which stays (default: a new one)."""
    return _run(_jobs(counts, seed), children, minutes, keep, seeds)


def again(name: str, keep: Path = KEEP, seeds: Path | None = None) -> Fleet:
    """Run the one trial that a bad end has named ``KIND:SEED:NUMBER``."""
    kind, seed, number = name.split(":")
    return _run([Job(kind, int(seed), [int(number)])], 1, None, keep, seeds)


def _run(jobs: Iterable[Job], children: int, minutes: float | None, keep: Path, seeds: Path | None) -> Fleet:
    with tempfile.TemporaryDirectory(prefix="otter-gguf-fuzz-") as scratch:
        fleet = Fleet(_written(seeds or Path(scratch) / "seeds"), Path(scratch), keep)
        fleet.run(list(jobs), children, minutes)
        return fleet


def _jobs(counts: dict[str, int], seed: int) -> list[Job]:
    """All trials in small lots, the kinds mixed."""
    lots = [
        (begin / count, Job(name, seed, list(range(begin, min(begin + GROUP, count)))))
        for name, count in counts.items()
        for begin in range(0, count, GROUP)
    ]
    return [job for _, job in sorted(lots, key=lambda lot: lot[0])]


def _written(folder: Path) -> Path:
    """Written in a process of its own, which needs torch, unless they are there."""
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", str(folder)], cwd=REPOSITORY, check=True)
    return folder
