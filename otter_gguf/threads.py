"""How many threads compute where nobody says it.

llama.cpp's threads wait for each other by spinning, some hundred times per token. While one of them is not running,
because another process has its core, the others burn theirs: with one thread more than there are free cores, decoding
is not a bit slower but a hundred times. So one core is left to others. The number does not depend on what runs at the
moment: long contexts are summed in as many parts as there are threads, and the same seed shall give the same text.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import ConfigError

_ALWAYS_ALLOWED = 16
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """The threads of a context: one less than there are cores for this process, at least 1."""
    return max(1, usable_cores() - 1)


def check_threads(name: str, count: int) -> int:
    """The number, or ``ConfigError`` where it is so far above that of the processors that no step would ever end."""
    most = max(_ALWAYS_ALLOWED, os.cpu_count() or 1)
    if count > most:
        raise ConfigError(f"{name} is {count}, expected at most {most}: more would wait for each other all the time")
    return count


def usable_cores() -> int:
    """Physical cores that this process may run on, within its group's share of processor time."""
    logical = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_siblings(number) for number in logical})
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))  # "max" is no number
    return max(1, cores)


def _siblings(number: int) -> str:
    """What logical processors of one core have in common."""
    try:
        return (_CPUS / f"cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(number)
