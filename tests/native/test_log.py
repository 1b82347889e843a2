"""llama.cpp has one log for the process; the errors that explain a failure are those of the thread that failed.

The log's callback runs in the thread that logs, in the middle of what llama.cpp is doing there. It stops both threads
where the one would read the other's errors if they were kept together, so nothing here depends on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import EngineError
from tests.gguf.toy_files import write_base
from tests.native.helpers import Float32, feed, open_base, random_tokens
from tests.refusals import names, refused

SECONDS = 30
"""After which a thread waits no longer; the test fails then."""
NO_GGUF, NO_FILE = "magic", "No such file"
"""What llama.cpp logs of a file of another kind, and of none."""


@pytest.fixture
def no_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "text.gguf"
    path.write_text("This is text, not a model.")
    return path


@contextmanager
def listening(listener: Callable[[str, str], None]) -> Iterator[None]:
    _native.set_log_callback(listener)
    try:
        yield
    finally:
        _native.set_log_callback(None)


def reason_of(path: Path) -> str:
    """Why llama.cpp does not load a file."""
    with refused(EngineError, path) as caught:
        _native.Model(str(path))
    return str(caught.value)


def test_each_of_two_failures_has_its_own_reason(no_gguf: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    assert names(reason_of(no_gguf), NO_GGUF)
    assert names(reason_of(missing), NO_FILE)
    both_logged = threading.Barrier(2)
    waited: set[int] = set()

    def listener(level: str, line: str) -> None:
        """Each thread waits at its first error until the other has logged one too."""
        if level == "error" and threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            both_logged.wait(SECONDS)

    with listening(listener), ThreadPoolExecutor(2) as pool:
        of_text, of_nothing = pool.map(reason_of, (no_gguf, missing))
    assert len(waited) == 2
    assert (names(of_text, NO_GGUF), names(of_text, NO_FILE)) == (True, False)
    assert (names(of_nothing, NO_GGUF), names(of_nothing, NO_FILE)) == (False, True)


def test_reasons_stay_apart_over_many_rounds(no_gguf: Path, tmp_path: Path) -> None:
    """Without a listener, as fast as the threads can."""
    missing = tmp_path / "missing.gguf"

    def failures(path: Path) -> set[str]:
        return {reason_of(path) for _ in range(200)}

    with ThreadPoolExecutor(2) as pool:
        of_text, of_nothing = pool.map(failures, (no_gguf, missing))
    assert of_text == {reason_of(no_gguf)}
    assert of_nothing == {reason_of(missing)}


def test_a_listener_that_calls_llama_cpp_takes_no_reason_from_the_call_around_it(no_gguf: Path, tmp_path: Path) -> None:
    missing, nested = tmp_path / "missing.gguf", list[str]()
    alone = reason_of(no_gguf)
    assert names(alone, NO_GGUF)

    def listener(level: str, line: str) -> None:
        if level == "error" and not nested:
            nested.append("")  # its own lines come here too
            nested[0] = reason_of(missing)

    with listening(listener):
        assert reason_of(no_gguf) == alone
    assert (names(nested[0], NO_GGUF), names(nested[0], NO_FILE)) == (False, True)


def shifted(base: Path, shift: Callable[[_native.Context], None]) -> Float32:
    """Logits of a token behind a text whose first half has been dropped."""
    context = open_base(base)
    feed(context, random_tokens(20))
    assert context.sequence_remove(0, 0, 10)
    shift(context)
    assert context.sequence_max_position(0) == 9
    feed(context, [7], 10)
    logits: Float32 = context.logits().copy()
    return logits


def drop_half(context: _native.Context) -> None:
    context.sequence_shift(0, 10, -1, -10)


def test_what_another_thread_logs_is_no_failure_of_a_shift(no_gguf: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    undisturbed = shifted(base, drop_half)
    at_shift, logged, done = threading.Event(), threading.Event(), threading.Event()
    shifting = threading.get_ident()

    def listener(level: str, line: str) -> None:
        """The shift waits in its middle for the other thread's error, and the other thread there for the shift."""
        if threading.get_ident() != shifting:
            if level == "error":
                logged.set()
                done.wait(SECONDS)
        elif "K-shift" in line:
            at_shift.set()
            logged.wait(SECONDS)

    def fail_meanwhile() -> str:
        assert at_shift.wait(SECONDS), "llama.cpp no longer logs in the middle of a shift"
        return reason_of(no_gguf)

    with ThreadPoolExecutor(1) as pool:
        failure = pool.submit(fail_meanwhile)

        def shift(context: _native.Context) -> None:
            with listening(listener):
                try:
                    drop_half(context)
                finally:
                    done.set()

        logits = shifted(base, shift)
        assert names(failure.result(), NO_GGUF)
    assert logged.is_set()
    np.testing.assert_array_equal(logits, undisturbed)
