"""Whose turn it is: a model is used by one thread at a time, and others wait.

A turn lasts for one step of the engine, or for one call that needs a whole context. It is taken with ``with``, so that
no exception out of a signal handler can leave a lock behind, and never held across the steps of a stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from ..errors import EngineError

_T = TypeVar("_T")


class Turn:
    """What one thread at a time may use.

    Args:
        name: What messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._thread = 0

    @property
    def is_mine(self) -> bool:
        """Whether it is this thread's turn. No other thread writes this thread's number."""
        return self._thread == threading.get_ident() and self._lock.locked()

    def call(self, work: Callable[[], _T]) -> _T:
        """Do some work when it is this thread's turn. ``EngineError`` if it already is: a callback may not use the
        model that calls it."""
        if self.is_mine:
            raise EngineError(f"{self.name} is in use by the call that this one was made from")
        with self._lock:
            self._thread = threading.get_ident()
            try:
                return work()
            finally:
                self._thread = 0


def in_turn(turns: Collection[Turn], work: Callable[[], _T]) -> _T:
    """Do some work when it is this thread's turn at all of them.

    They are taken in one order by everybody, so that no two threads wait for each other.
    """
    first, *others = turns if len(turns) == 1 else sorted(turns, key=id)
    return first.call((lambda: in_turn(others, work)) if others else work)
