"""Trials that end badly on purpose, each in a way of its own, and good ones: to see that the fuzzer sees them."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from otter_gguf import ConfigError

from .outcomes import Beat, Counts, in_small_thread, interrupted, outcome
from .seeds import Seeds


def _fill_memory() -> None:
    np.ones(80_000_000)


def _refuse() -> None:
    raise ConfigError("no")


def _fail() -> None:
    raise ValueError("not documented")


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


PLANTED: dict[str, Callable[[], object]] = {
    "accepted": lambda: outcome(lambda: None),
    "refused": lambda: outcome(_refuse),
    "interrupted": lambda: interrupted(lambda: time.sleep(5), 0.01, KeyboardInterrupt),
    "foreign": lambda: outcome(_fail),
    "foreign in a thread": lambda: in_small_thread(_fail),
    "recursion": lambda: outcome(_recurse),
    "signal": lambda: ctypes.string_at(0),
    "signal in a thread": lambda: in_small_thread(lambda: ctypes.string_at(0)),
    "memory": _fill_memory,
    "hang": lambda: threading.Event().wait(),
}
"""By name; ``number`` of a trial is the place in this table."""


class PlantedTrials:
    """As :class:`tests.fuzz.trials.FileTrials`, without files."""

    def __init__(self, seeds: Seeds, scratch: Path) -> None:
        pass

    def close(self) -> None:
        """Nothing stays open."""

    def run(self, seed: int, number: int, beat: Beat) -> tuple[str, int, Counts]:
        """The planted end of that number."""
        name = list(PLANTED)[number]
        beat(name)
        counts = Counts()
        counts.add(name, str(PLANTED[name]()))
        return name, 0, counts
