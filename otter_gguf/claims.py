"""One call at a time: a thread claims what its call works with, and another thread is refused meanwhile.

A claim is good as long as the function that made it runs. So nothing is lost where an exception out of a signal handler
(Ctrl-C, a time limit) comes between the claim and its end: the next call sees that nobody uses it any more. For the
same reason there is no lock: nobody waits, so nobody waits for ever.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from .errors import EngineError

_T = TypeVar("_T")


class Claimable:
    """What one thread at a time may use.

    Args:
        name: What messages call it.
        nests: Whether the thread that uses it may use it again, as a callback in a call does.
    """

    __slots__ = ("name", "nests", "uses")

    def __init__(self, name: str, *, nests: bool = True) -> None:
        self.name = name
        self.nests = nests
        self.uses: list[claimed] = []
        """The first one has it. A list, because its methods are atomic."""

    def settle(self, use: claimed) -> None:
        """Decide about a use that is not the first one: ``EngineError`` if another call has it."""
        while (first := self.uses[0]) is not use:
            if not first.goes_on():
                self.leave(first)
                continue
            self.leave(use)
            if first.thread == use.thread and self.nests:
                return
            whose = "another call of this thread" if first.thread == use.thread else "another thread"
            raise EngineError(f"{self.name} is in use by {whose}: give each thread one of its own, or take turns")

    def leave(self, use: claimed) -> None:
        """The end of a use; nothing happens if it is none."""
        try:  # contextlib.suppress would cost as much as the whole claim
            self.uses.remove(use)
        except ValueError:
            return


class claimed:  # noqa: N801 (reads like a function where it is used)
    """``with claimed(a, b):`` uses both, or raises ``EngineError`` at once. It costs half a microsecond.

    Not for generators, whose frames do not run between their steps.
    """

    __slots__ = ("_frame", "_wanted", "thread")

    def __init__(self, *wanted: Claimable) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        self._frame = sys._getframe(1)
        try:
            for one in self._wanted:
                one.uses.append(self)
                if one.uses[0] is not self:
                    one.settle(self)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in self._wanted:
            one.leave(self)

    def goes_on(self) -> bool:
        """Whether the function that claimed is still running, in whatever thread."""
        try:
            self._frame.clear()  # refused for a frame that runs; to one that does not, nobody will come back
        except RuntimeError:
            return True
        return False


class Stream(Generator[_T, None, None]):
    """A generator that claims what it works with in each of its steps, and leaves it to others between them."""

    def __init__(self, wanted: Sequence[Claimable], items: Generator[_T, None, None]) -> None:
        self._wanted = wanted
        self._items = items

    def __next__(self) -> _T:
        with claimed(*self._wanted):
            return next(self._items)

    def send(self, value: None, /) -> _T:
        """The next item; generators of ours take no values."""
        with claimed(*self._wanted):
            return self._items.send(value)

    def throw(self, *error: Any) -> _T:
        """As a generator's."""
        with claimed(*self._wanted):
            return self._items.throw(*error)
