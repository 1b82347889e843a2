"""The process that runs trials: ``python -m tests.fuzz --worker`` (see :mod:`tests.fuzz.fleet`)."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from tests import peak_memory

from .outcomes import BadEndError, Beat, Counts
from .planted import PlantedTrials
from .seeds import Seeds
from .trials import FileTrials, TextTrials

SPARE_MEMORY = 512 << 20
"""Bytes that a trial may need beyond twice its files."""


class Trials(Protocol):
    """A kind of trials."""

    def run(self, seed: int, number: int, beat: Beat) -> tuple[str, int, Counts]:
        """Kind, bytes of the files, and how the uses ended; or :class:`BadEndError`."""

    def close(self) -> None:
        """Free what is open."""


def work(folder: Path, scratch: Path) -> None:
    """Answer line by line: ``> what comes next``, then ``= `` and a list in JSON: kind, bad end, counts."""
    np.seterr(all="ignore")  # weights may be infinite
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seeds = Seeds(folder)
    trials: dict[str, Trials] = {}
    kinds: dict[str, Callable[[Seeds, Path], Trials]]
    kinds = {"files": FileTrials, "texts": TextTrials, "planted": PlantedTrials}
    for name, kind in kinds.items():
        (scratch / name).mkdir(parents=True, exist_ok=True)
        trials[name] = kind(seeds, scratch / name)
    for line in sys.stdin:
        name, seed, number = line.split()
        answer = _answer(trials[name], int(seed), int(number), lambda what: print(f"> {what}", file=answers))
        print("= " + json.dumps(answer), file=answers)


def _answer(trials: Trials, seed: int, number: int, beat: Beat) -> tuple[str, str, dict[str, dict[str, int]]]:
    with memory() as peak:
        try:
            kind, size, counts = trials.run(seed, number, beat)
        except BadEndError as bad:
            trials.close()
            return "", str(bad), {}
        except Exception as error:  # a mistake of the fuzzer's own
            traceback.print_exc()
            return "", f"harness: {type(error).__name__}: {error}", {}
        used = peak()
    return kind, f"{used >> 20} MB of memory" if used > 2 * size + SPARE_MEMORY else "", counts.ends


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many bytes the process has needed at most since then, beyond what it had."""
    before = peak_memory.reset_peak()
    yield lambda: max(0, peak_memory.peak() - before)
