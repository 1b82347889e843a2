"""How a use of a model ends, in the main thread, in a thread with a small stack, or with a timer."""

from __future__ import annotations

import random
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from otter_gguf import OtterError
from otter_gguf.text_model import TextModel

from . import uses

SMALL_STACK = 512 << 10
"""Bytes of a thread's stack on macOS, the smallest that is usual."""
Beat = Callable[[str], None]
"""Told what comes next: so that a signal and a hang have a place."""


class BadEndError(Exception):
    """A trial has ended as none should."""


class OutOfTime(BaseException):
    """What a time limit raises."""


class Counts:
    """How often each use ended how."""

    def __init__(self) -> None:
        self.ends: dict[str, dict[str, int]] = {}

    def add(self, use: str, end: str) -> None:
        """One more."""
        ends = self.ends.setdefault(use, {})
        ends[end] = ends.get(end, 0) + 1


def outcome(action: Callable[[], object]) -> str:
    """``accepted`` or ``refused``; :class:`BadEndError` if it is neither."""
    try:
        action()
    except OtterError as error:
        if "\n" in str(error):
            raise BadEndError(f"a message of several lines: {error!r}"[:400]) from None
        return "refused"
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        place = next(
            (f"{Path(f.filename).name}:{f.lineno}" for f in reversed(places) if "/otter_gguf/" in f.filename), ""
        )
        words = " ".join(str(error).split())
        raise BadEndError(f"{type(error).__name__} at {place}: {words}"[:300]) from error
    return "accepted"


def in_small_thread(action: Callable[[], object]) -> str:
    """:func:`outcome` in a thread with a stack of :data:`SMALL_STACK`."""
    found: list[str | BadEndError] = []

    def run() -> None:
        try:
            found.append(outcome(action))
        except BadEndError as bad:
            found.append(bad)

    before = threading.stack_size(SMALL_STACK)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if not found:
        raise BadEndError("a thread ended by something else than an Exception")
    if isinstance(found[0], BadEndError):
        raise found[0]
    return found[0]


def interrupted(action: Callable[[], object], seconds: float, kind: type[BaseException]) -> str:
    """:func:`outcome` with a timer, whose handler raises once."""
    armed = True

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise kind

    before = signal.signal(signal.SIGALRM, handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return outcome(action)
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (KeyboardInterrupt, OutOfTime):
        return "interrupted"
    finally:
        signal.signal(signal.SIGALRM, before)


def run_use(use: uses.Named, llm: TextModel, rng: random.Random, beat: Beat) -> str:
    """In the main thread, in a thread with a small stack, or with a timer."""
    name, call = use
    place = rng.random()
    inputs = random.Random(rng.getrandbits(64))
    if place < 0.6:
        beat(name)
        return outcome(lambda: call(llm, inputs))
    if place < 0.85:
        beat(f"{name}, small stack")
        return in_small_thread(lambda: call(llm, inputs))
    beat(f"{name}, timer")
    kind = rng.choice((KeyboardInterrupt, OutOfTime))
    return interrupted(lambda: call(llm, inputs), 10 ** rng.uniform(-4.5, -1.5), kind)
