"""Exceptions out of signal handlers at random moments of calls: every later answer is right, no object is lost.

    python -m tests.reliability.alarms                    10,000 interrupted calls, a tenth of them in isolated models

A timer interrupts completions, streams, guided and shifted texts, searches, batches, scores, saved states and chats, by
KeyboardInterrupt or by an exception as time limits have it. After each call one of four texts is asked for, fresh or
with what the context still holds of it, or a score. Exit status 1 if a single one differs from that of a model that
nothing has interrupted, or if one is refused.
"""

from __future__ import annotations

import argparse
import collections
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from otter_gguf import ARGS, BestOfN, Otter
from otter_gguf.guidance.threshold import Threshold
from otter_gguf.isolation import open_model
from otter_gguf.steps import Float32
from tests.completions import chat_pair, tokens_of
from tests.guidance.reference import EXACT

INTERRUPTS = 10_000
ISOLATED_SHARE = 10
"""One interrupted call of so many is one of an isolated model."""
PROMPTS = ([70, 71, 72, 73, 74], [70, 71, 72, 90, 91, 92], [80, 81], [70, 71, 72, 73, 74, 75, 76, 77])
MESSAGES = [{"role": "user", "content": "a"}]
_BEYOND = 1.1
"""The last moment at which the timer ends, in durations of an action that is not interrupted."""


class OutOfTime(BaseException):
    """What a time limit raises."""


ACTIONS: dict[str, Callable[[Otter, list[int]], Any]] = {
    "plain": lambda llm, prompt: _answer(llm, prompt),
    "cached": lambda llm, prompt: _answer(llm, prompt, cache_prompt=True),
    "guided": lambda llm, prompt: _answer(llm, prompt, guidance=ARGS(1.0, n_candidates=4)),
    "shift": lambda llm, prompt: llm.create_completion(
        prompt, max_tokens=70, temperature=0, context_shift=True, n_keep=1
    ),
    "guided shift": lambda llm, prompt: llm.create_completion(
        prompt, max_tokens=60, context_shift=True, n_keep=2, guidance=ARGS(1.0, n_candidates=3), seed=1
    ),
    "batch": lambda llm, prompt: llm.create_completion(list(PROMPTS), max_tokens=6, temperature=0),
    "search": lambda llm, prompt: llm.create_completion(prompt, max_tokens=6, guidance=BestOfN(4), seed=1),
    "threshold": lambda llm, prompt: llm.create_completion(
        prompt, max_tokens=6, guidance=Threshold(0.0, "replace", n_candidates=4), seed=1
    ),
    "stream": lambda llm, prompt: list(islice(llm.create_completion(prompt, temperature=0, stream=True), 5)),
    "chat": lambda llm, prompt: llm.create_chat_completion(MESSAGES, max_tokens=4, temperature=0),
    "score": lambda llm, prompt: llm.score(prompt),
    "state": lambda llm, prompt: llm.load_state(llm.save_state()),
    "schema": lambda llm, prompt: llm.create_completion(prompt, max_tokens=4, json_schema={}, temperature=0),
}


def _answer(llm: Otter, prompt: list[int], **options: Any) -> list[int]:
    return tokens_of(llm.create_completion(prompt, max_tokens=8, temperature=0, **options))


class Timer:
    """Raises an exception out of a signal handler, once, while it is armed."""

    def __init__(self) -> None:
        self._kind: type[BaseException] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """As the handler of SIGALRM."""
        before = signal.signal(signal.SIGALRM, self._raise)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def interrupts(self, action: Callable[[], Any], seconds: float, kind: type[BaseException]) -> bool:
        """Whether the action was interrupted."""
        try:
            try:
                self._kind = kind
                signal.setitimer(signal.ITIMER_REAL, seconds)
                action()
            finally:
                self._kind = None
        except (KeyboardInterrupt, OutOfTime):
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    def _raise(self, *_: object) -> None:
        kind, self._kind = self._kind, None
        if kind is not None:
            raise kind


class Report:
    """What came of it."""

    def __init__(self) -> None:
        self.interrupted: collections.Counter[str] = collections.Counter()
        self.calls = 0
        self.problems: list[str] = []


def run(interrupts: int, *, isolate: bool = False, seed: int = 0) -> Report:
    """Interrupt so many calls of one object."""
    report, rng, timer = Report(), random.Random(seed), Timer()
    files = chat_pair()
    options: dict[str, Any] = {**EXACT, "n_ctx": 48, "n_threads": 1, "n_seq_max": 8, "isolate": isolate}
    with open_model(files.base, otter=files.otter, **options) as llm, timer.installed():
        answers = [_answer(llm, prompt) for prompt in PROMPTS]
        scores = [llm.score(prompt).rewards for prompt in PROMPTS]
        durations = {name: max(_seconds(action, llm) for _ in range(2)) for name, action in ACTIONS.items()}
        while report.interrupted.total() < interrupts and len(report.problems) < 20:
            name, prompt = rng.choice(list(ACTIONS)), rng.choice(PROMPTS)
            seconds, kind = rng.random() * _BEYOND * durations[name] + 1e-5, rng.choice((KeyboardInterrupt, OutOfTime))
            report.calls += 1
            try:
                interrupted = timer.interrupts(lambda: ACTIONS[name](llm, prompt), seconds, kind)  # noqa: B023
                report.interrupted[name] += interrupted
                _check(llm, rng, answers, scores)
            except Exception as error:
                report.problems.append(f"after call {report.calls}, {name}: {type(error).__name__}: {error}")
        _check_in_another_thread(llm, answers, report)
    return report


def _seconds(action: Callable[[Otter, list[int]], Any], llm: Otter) -> float:
    begin = time.monotonic()
    action(llm, PROMPTS[0])
    return time.monotonic() - begin


def _check(llm: Otter, rng: random.Random, answers: list[list[int]], scores: list[Float32]) -> None:
    """One later call: ``AssertionError`` if it is wrong."""
    index, how = rng.randrange(len(PROMPTS)), rng.random()  # most of them have their beginning in common
    if how < 0.1:
        # Up to rounding: what is left of an interrupted stream may stand in the cache beside it.
        assert np.allclose(llm.score(PROMPTS[index]).rewards, scores[index], atol=1e-4), (
            f"a wrong score of text {index}"
        )
    else:
        found = _answer(llm, PROMPTS[index], cache_prompt=how < 0.7)
        assert found == answers[index], f"text {index} is {found}, expected {answers[index]}, cached: {how < 0.7}"


def _check_in_another_thread(llm: Otter, answers: list[list[int]], report: Report) -> None:
    """Nothing holds the object any more."""

    def ask() -> None:
        try:
            assert _answer(llm, PROMPTS[0]) == answers[0]
        except Exception as error:
            report.problems.append(f"in another thread: {type(error).__name__}: {error}")

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Interrupt calls at random moments.")
    parser.add_argument("--interrupts", type=int, default=INTERRUPTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    isolated = given.interrupts // ISOLATED_SHARE
    failed = False
    for isolate, number in ((False, given.interrupts - isolated), (True, isolated)):
        begin = time.monotonic()
        report = run(number, isolate=isolate, seed=given.seed)
        failed |= bool(report.problems)
        where = "in a process of its own" if isolate else "in this process"
        print(
            f"{where}: {report.interrupted.total():,} of {report.calls:,} calls interrupted in "
            f"{time.monotonic() - begin:.0f} s, {len(report.problems)} wrong or refused afterwards",
            flush=True,
        )
        for problem in report.problems:
            print(problem, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
