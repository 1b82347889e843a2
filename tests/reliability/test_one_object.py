"""One object under several threads and interrupts: a small part of what ``make soak`` does."""

from __future__ import annotations

import pytest

from otter_gguf import ConfigError
from tests.reliability import alarms, calls


def test_calls_from_four_threads() -> None:
    count = calls.run(400)
    assert count.problems == []
    assert count.outcomes["right"] > len(calls.KINDS) * len(calls.PROMPTS)
    assert count.outcomes["EngineError"] > 0


def test_the_tool_sees_what_is_wrong() -> None:
    count = calls.Count()
    count.add("plain", 1, 2)
    count.add("score", [0.5], [0.501])
    count.add("score", [0.5], [0.50001])
    count.refuse("plain", IndexError("list index out of range"))
    count.refuse("plain", ConfigError("this stream is over"))  # of a call that is none
    assert len(count.problems) == 4


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
def test_interrupts_at_random_moments(isolate: bool) -> None:
    report = alarms.run(20 if isolate else 60, isolate=isolate, seed=1)
    assert report.problems == []
    assert len(report.interrupted) > 3
