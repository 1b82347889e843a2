"""Every writer under kills, faults and Ctrl-C (W1, W2, W4, W7); careless ones are found out."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import watch
from .apart import Examination, clean_process
from .careless import CARELESS
from .watch import unavailable
from .writers import WRITERS

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"watching system calls: {unavailable()}")

# Those whose every operation fails once in the fast tests: Python, C++, a folder, and few operations; of the others
# every fourth does.
EVERY_OPERATION = ("merge", "quantize base", "save adapter", "save state")
SLOW = [name for name, writer in WRITERS.items() if writer.slow]


@pytest.fixture(scope="module")
def examine() -> Iterator[Callable[..., Examination]]:
    with clean_process() as call:
        yield call


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in SLOW])
def test_a_writer_leaves_the_old_or_the_new(name: str, examine: Callable[..., Examination]) -> None:
    found = examine(name, 5, 2, 1 if name in EVERY_OPERATION else 4, len(name))
    assert found.failures() == []
    # The trials took place: nearly all operations come before the writer is done.
    assert found.kills.hits >= 4
    assert found.interrupts.hits >= 1
    assert found.faults.hits == found.faults.trials >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_leaves_the_old_or_the_new_each_time(name: str, examine: Callable[..., Examination]) -> None:
    few = name in SLOW
    found = examine(name, 6 if few else 20, 4 if few else 20, 20 if few else 1, 1)
    assert found.failures() == []


@pytest.mark.parametrize("name", CARELESS)
def test_a_careless_writer_is_found_out(name: str, examine: Callable[..., Examination]) -> None:
    found = examine(name, 8, 2, 1, 0)
    assert found.order is not None or name == "not removed"
    assert found.faults.failures  # a traceback at the least
    assert bool(found.kills.failures) == (name in ("in place", "not removed"))
    assert any("not complete" in failure for failure in found.short_writes.failures) == (name == "half written")
    assert found.interrupts.failures


class _SlowlyFlushed:
    def flush(self) -> None:
        time.sleep(1)


@pytest.mark.parametrize(("seconds", "code"), [(0.5, 0), (None, 70)])
def test_ctrl_c_after_the_writer_stays_in_the_child(tmp_path: Path, seconds: float | None, code: int) -> None:
    """The child is a copy of this process; what left it as an exception would go on as a second run of the tests."""

    def write() -> int:
        (tmp_path / "file").write_bytes(b"")
        if seconds is None:
            signal.raise_signal(signal.SIGINT)
        sys.stdout = _SlowlyFlushed()
        return 0

    outcome = watch.run(write, tmp_path, signal_at=(seconds, signal.SIGINT) if seconds else None, timeout=10)
    assert outcome.code == code, outcome.output
    assert ("KeyboardInterrupt" in outcome.output) == (code == 70)
    assert not outcome.timed_out


def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    def hang() -> int:
        time.sleep(60)
        return 0

    outcome = watch.run(hang, tmp_path, timeout=1)
    assert outcome.timed_out
    assert outcome.code == -signal.SIGKILL


def test_a_process_that_outlives_the_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_ORPHAN_SECONDS", 0.5)

    def leave_one() -> int:
        if os.fork() == 0:
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(60)
        return 0

    assert watch.run(leave_one, tmp_path, timeout=1).timed_out
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_that_ends_soon_after_the_child_is_waited_for(tmp_path: Path) -> None:
    def leave_one() -> int:
        if os.fork() == 0:
            time.sleep(0.3)
            (tmp_path / "late").write_text("written")
            os._exit(0)
        return 0

    assert not watch.run(leave_one, tmp_path, timeout=20).timed_out
    assert (tmp_path / "late").read_text() == "written"
