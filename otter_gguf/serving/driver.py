"""A thread that does the steps of an engine, and tells event loops what is new.

One thread for all texts: after each step it wakes every event loop once, whatever number of texts it has news of. What
a caller does with them, and how fast, holds up nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from .._logging import logger
from ..engine import Engine, Handle, News
from ..errors import EngineError

_NO_PROGRESS_SECONDS = 0.001
"""Between two steps that could do nothing, because another thread's call has what these texts wait for."""
_MOST_FAILURES = 3
"""Steps in a row that an unexpected error ends, before the texts are given up."""


class Following:
    """The news of the texts of one call, for one event loop."""

    def __init__(self, driver: Driver, handles: Sequence[Handle]) -> None:
        self.handles = handles
        self.loop = asyncio.get_running_loop()
        self._driver = driver
        self._news: list[News] = []
        self._error: Exception | None = None
        self._is_over = False
        self._changed = asyncio.Event()

    async def next(self) -> list[News]:
        """What is new; nothing when all texts are over. What ended one of them by an error is raised."""
        while not self._news and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, []
        if not news:
            for error in (self._error, *(handle.error for handle in self.handles)):
                if error is not None:
                    raise error
        return news

    def take(self, news: list[News], is_over: bool) -> None:
        """From the driver; in the event loop."""
        self._news += news
        self._is_over = is_over
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """From the driver; in the event loop."""
        self._error = error
        self.take([], True)

    def close(self) -> None:
        """Nobody asks any more: what is not over ends before the next step."""
        self._driver.forget(self)


class Driver:
    """Does steps while there are texts that somebody follows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.in_pieces = True
        self._followed: list[Following] = []
        self._changed = threading.Condition()
        self._has_changed = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="otter-gguf engine", daemon=True)
        self._thread.start()

    def follow(self, handles: Sequence[Handle]) -> Following:
        """From now on steps are done for these texts. ``EngineError`` if the driver is closed."""
        following = Following(self, handles)
        with self._changed:
            if self._is_closing:
                self._engine.abandon(handles)
                raise EngineError(f"{self._engine.session.path}: the model is closed")
            self._followed.append(following)
            self._wake()
        return following

    def forget(self, following: Following) -> None:
        """End what is left of these texts."""
        with self._changed:
            if following in self._followed:
                self._followed.remove(following)
            self._engine.abandon(following.handles)
            self._wake()

    def cut(self, error: Exception) -> None:
        """End all texts by an error, which their callers get at once, also in the middle of a step."""
        with self._changed:
            followed, self._followed = self._followed, []
            for following in followed:
                self._engine.abandon(following.handles)
            self._wake()
        for following in followed:
            with suppress(RuntimeError):  # the event loop is closed
                following.loop.call_soon_threadsafe(following.fail, error)

    def close(self) -> None:
        """End all texts and the thread. Idempotent."""
        self.cut(EngineError(f"{self._engine.session.path}: the model is closed"))
        with self._changed:
            self._is_closing = True
            self._wake()
        self._thread.join()

    def _wake(self) -> None:
        self._has_changed = True
        self._changed.notify()

    def _run(self) -> None:
        n_failures = 0
        while self._wait_for_texts():
            begin = time.perf_counter()
            try:
                self._engine.step()
                n_failures = 0
            except Exception as error:  # the engine ends the texts that it came out of
                logger.exception("a step failed")
                n_failures += 1
                if n_failures == _MOST_FAILURES:
                    self.cut(EngineError(f"{self._engine.session.path}: {type(error).__name__}: {error}"))
            if not self._tell() and time.perf_counter() - begin < _NO_PROGRESS_SECONDS / 4:
                with self._changed:
                    if not self._has_changed:
                        self._changed.wait(_NO_PROGRESS_SECONDS)

    def _wait_for_texts(self) -> bool:
        """False when the driver is closed and nothing is left to be told."""
        with self._changed:
            while not (self._followed or self._has_changed or self._is_closing):
                self._changed.wait()
            self._has_changed = False
            return bool(self._followed) or not self._is_closing

    def _tell(self) -> bool:
        """Wake the event loops that have news. Whether there were any."""
        with self._changed:
            followed = list(self._followed)
        told: dict[asyncio.AbstractEventLoop, list[tuple[Following, list[News], bool]]] = {}
        for following in followed:
            is_over = all(handle.done for handle in following.handles)
            news = [one for handle in following.handles for one in handle.take()]
            if news or is_over:
                told.setdefault(following.loop, []).append((following, news, is_over))
        for loop, parts in told.items():
            try:
                loop.call_soon_threadsafe(_deliver, parts)
            except RuntimeError:  # the event loop is closed
                for following, _, _ in parts:
                    self.forget(following)
        with self._changed:
            over = [following for parts in told.values() for following, _, is_over in parts if is_over]
            self._followed = [following for following in self._followed if following not in over]
        return bool(told)


def _deliver(parts: Sequence[tuple[Following, list[News], bool]]) -> None:
    for following, news, is_over in parts:
        following.take(news, is_over)
