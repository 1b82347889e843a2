"""Waiting for a pipe or a socket, however many files the process has open (``select`` ends at 1,024)."""

from __future__ import annotations

import selectors
from typing import Protocol

# Without a descriptor of its own, so that it works where there is none left; where the system has no poll, as it can.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class HasFileno(Protocol):
    """A file, pipe or socket."""

    def fileno(self) -> int: ...


def readable(file: HasFileno, seconds: float) -> bool:
    """Whether there is something to read, or the other end is closed, within so many seconds."""
    with _Selector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(seconds))
