"""Calls from several threads on one :class:`otter_gguf.Otter`: each is right, or refused in the documented way.

    python -m tests.reliability.calls                     50,000 calls from 4 threads

Completions (plain, with a cached prompt, guided, in a stream), chat, scores, saved states and tokens are asked of one
object while the interpreter changes threads every microsecond. Calls run side by side; one that loads a state may end
with the ``EngineError`` of a context that it needs alone, and a stream with the ``ConfigError`` of one that has given
way. Everything else must be what one thread gets alone: the same tokens and texts, and rewards up to the rounding of
batches of another shape. Exit status 1 if a single answer is not.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from otter_gguf import ARGS, ConfigError, EngineError, Otter
from tests.completions import chat_pair, choice_of, joined
from tests.guidance.reference import EXACT

from .threads import fast_switching

THREADS = 4
CALLS = 50_000
PROMPTS = ("The otter", "a", "Tom and Lily", "123")
_PAUSE = 2e-3
"""Seconds that a thread rests at most before a call."""
ROUNDING = 1e-4
"""Of rewards, in F32."""


def _text(llm: Otter, prompt: str, **options: Any) -> Any:
    return choice_of(llm.create_completion(prompt, max_tokens=6, temperature=0, **options))


def _slowly(chunks: Iterator[Any]) -> Iterator[Any]:
    """Now and then with a pause between two steps, in which others may call."""
    for index, chunk in enumerate(chunks):
        yield chunk
        if index == 2:
            time.sleep(_PAUSE)


def _chat(llm: Otter, prompt: str) -> Any:
    answer = llm.create_chat_completion([{"role": "user", "content": prompt}], max_tokens=4, temperature=0)
    return answer["choices"][0]


def _restored(llm: Otter, prompt: str) -> Any:
    llm.load_state(llm.save_state())
    return _text(llm, prompt)


KINDS: dict[str, Callable[[Otter, str], Any]] = {
    "plain": _text,
    "cached": lambda llm, prompt: _text(llm, prompt, cache_prompt=True)["text"],
    "guided": lambda llm, prompt: _text(llm, prompt, guidance=ARGS(2.0, n_candidates=3)),
    "stream": lambda llm, prompt: joined(
        _slowly(llm.create_completion(prompt, max_tokens=6, temperature=0, stream=True))
    ),
    "tokens": lambda llm, prompt: [step.token for step in islice(llm.generate(llm.tokenize(prompt), seed=1), 4)],
    "chat": _chat,
    "score": lambda llm, prompt: llm.score(prompt, " and more").rewards.tolist(),
    "state": _restored,
    "tokenize": lambda llm, prompt: (llm.tokenize(prompt), llm.detokenize(llm.tokenize(prompt))),
}


def same(found: Any, expected: Any) -> bool:
    """Whether two answers are the same, numbers up to rounding."""
    if isinstance(found, float) and isinstance(expected, float):
        return abs(found - expected) <= ROUNDING
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in found)
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


class Count:
    """What came of the calls."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def add(self, name: str, found: Any, expected: Any) -> None:
        """An answer."""
        is_right = same(found, expected)
        self.outcomes["right" if is_right else "wrong"] += 1
        if not is_right:
            self.problems.append(f"{name}: {found!r:.200}, expected {expected!r:.200}")

    def refuse(self, name: str, error: Exception) -> None:
        """An error: a documented one, or a problem."""
        is_documented = (isinstance(error, EngineError) and "needs alone" in str(error) and name == "state") or (
            isinstance(error, ConfigError) and "stream is over" in str(error) and name in ("stream", "tokens")
        )
        self.outcomes[type(error).__name__ if is_documented else "other error"] += 1
        if not is_documented:
            self.problems.append(f"{name}: {type(error).__name__}: {error}")


def run(calls: int, *, threads: int = THREADS, seed: int = 0) -> Count:
    """Ask one object from all threads, then once more from this one."""
    files = chat_pair()
    count = Count()
    with Otter(files.base, otter=files.otter, n_ctx=128, n_threads=1, **EXACT) as llm:
        expected = {(name, prompt): kind(llm, prompt) for name, kind in KINDS.items() for prompt in PROMPTS}

        def work(number: int) -> None:
            rng = random.Random(seed * threads + number)
            for _ in range(calls // threads):
                name, prompt = rng.choice(list(expected))
                time.sleep(rng.random() * _PAUSE)
                try:
                    count.add(name, KINDS[name](llm, prompt), expected[name, prompt])
                except Exception as error:
                    count.refuse(name, error)

        with fast_switching():
            workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        for (name, prompt), answer in expected.items():
            count.add(f"{name} afterwards", KINDS[name](llm, prompt), answer)
    return count


def summary(count: Count) -> str:
    """The outcomes in a line."""
    return ", ".join(f"{number:,} {what}" for what, number in count.outcomes.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Ask one Otter from many threads.")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    count = run(given.calls, threads=given.threads, seed=given.seed)
    print(f"{given.calls:,} calls from {given.threads} threads in {time.monotonic() - begin:.0f} s: {summary(count)}")
    for problem in count.problems[:20]:
        print(problem, file=sys.stderr)
    return int(bool(count.problems))


if __name__ == "__main__":
    sys.exit(main())
