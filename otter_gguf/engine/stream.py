"""An iterator that callers hold."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from ..context.turns import Turn

_T = TypeVar("_T")


class Stream(Iterator[_T]):
    """Items one by one, also for several threads, which take turns."""

    def __init__(self, items: Generator[_T, None, None]) -> None:
        self._items = items
        self._turn = Turn("this stream")

    def __next__(self) -> _T:
        return self._turn.call(lambda: next(self._items))

    def close(self) -> None:
        """End it early."""
        self._turn.call(self._items.close)
