"""Every writer under kills, faults and Ctrl-C (W1, W2, W4, W7); careless ones are found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .apart import Examination, clean_process
from .careless import CARELESS
from .watch import unavailable
from .writers import WRITERS

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"watching system calls: {unavailable()}")

# Those whose every operation fails once in the fast tests: Python, C++, and a folder; of the others every fourth does.
EVERY_OPERATION = ("merge", "quantize base", "save adapter")
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
