"""Turns: one thread at a time, others wait, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otter_gguf import EngineError
from otter_gguf.context.turns import Turn, in_turn
from tests.refusals import refused


def test_another_thread_waits() -> None:
    one, order = Turn("one"), []
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        inside.set()
        assert go_on.wait(30)
        order.append("first")

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(one.call, first)]
        assert inside.wait(30)
        calls.append(pool.submit(one.call, lambda: order.append("second")))
        assert order == []
        go_on.set()
        for call in calls:
            call.result(30)
    assert order == ["first", "second"]


def test_the_same_thread_is_refused() -> None:
    one, other = Turn("one"), Turn("other")
    with refused(EngineError, "one"):
        one.call(lambda: one.call(lambda: None))
    assert one.call(lambda: other.call(lambda: 3)) == 3
    assert not one.is_mine


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_ends_the_turn(error: type[BaseException]) -> None:
    one, other = Turn("one"), Turn("other")

    def fail() -> None:
        assert one.is_mine
        assert other.is_mine
        raise error

    with pytest.raises(error):
        in_turn([one, other], fail)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_turn, [one, other], lambda: 3).result(30) == 3
    assert not one.is_mine


def test_many_threads_never_have_it_together() -> None:
    """Of two turns, wanted in either order: nobody waits for one who waits for him."""
    turns, together, had = [Turn("one"), Turn("other")], [0, 0], [0]

    def once() -> None:
        together[0] += 1
        together[1] = max(together)
        sum(range(20))
        together[0] -= 1
        had[0] += 1

    def work(wanted: list[Turn]) -> None:
        for _ in range(300):
            in_turn(wanted, once)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        orders: list[Any] = [turns, turns[::-1], turns, turns[::-1]]
        threads = [threading.Thread(target=work, args=(order,)) for order in orders]
        run: Callable[[threading.Thread], None] = threading.Thread.start
        for thread in threads:
            run(thread)
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert had == [1200]
    assert together == [0, 1]
