"""Exceptions out of signal handlers, at every place of a call: whatever comes later is right."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest

from otter_gguf import ARGS, BestOfN, Otter
from otter_gguf.chat import ChatTemplate
from otter_gguf.guidance.threshold import Threshold
from otter_gguf.isolation import IsolatedOtter
from tests import hostile
from tests.completions import chat_pair, tokens_of, without_end
from tests.guidance.reference import EXACT

OPTIONS: dict[str, Any] = {**EXACT, "n_ctx": 14, "n_threads": 1, "seed": 1, "n_seq_max": 8}
PROMPTS = [[70, 71, 72, 73, 74, 75], [70, 71, 72, 90, 91, 92], [80, 81]]


class OutOfTime(BaseException):
    """What a time limit raises."""


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    files = chat_pair()
    with Otter(files.base, otter=files.otter, **OPTIONS) as llm:
        yield llm


@pytest.fixture
def isolated() -> Iterator[IsolatedOtter]:
    files = chat_pair()
    with IsolatedOtter(files.base, otter=files.otter, **{**OPTIONS, "n_ctx": 256}) as llm:
        yield llm


class Interrupting:
    """A context whose call number ``at`` is interrupted, before or after it has done its work."""

    def __init__(self, context: Any, at: int, *, after: bool) -> None:
        self._context, self._left, self._after = context, at, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise OutOfTime
            answer = found(*args, **options)
            if self._left == 0:
                raise OutOfTime
            return answer

        return call


def shift(llm: Otter) -> Any:
    return llm.create_completion(
        PROMPTS[0], max_tokens=13, temperature=0, context_shift=True, n_keep=2, logit_bias=without_end(llm)
    )


def guided_shift(llm: Otter) -> Any:
    return llm.create_completion(
        PROMPTS[0], max_tokens=10, context_shift=True, n_keep=1, guidance=ARGS(1.0, n_candidates=3), seed=1
    )


ACTIONS: dict[str, Callable[[Otter], Any]] = {
    "shift": shift,
    "guided shift": guided_shift,
    "stream": lambda llm: list(islice(llm.create_completion(PROMPTS[1], temperature=0, stream=True), 4)),
    "batch": lambda llm: llm.create_completion(PROMPTS, max_tokens=3, temperature=0),
    "search": lambda llm: llm.create_completion(PROMPTS[0], max_tokens=4, guidance=BestOfN(3), seed=1),
    "threshold": lambda llm: llm.create_completion(
        PROMPTS[0], max_tokens=4, guidance=Threshold(0.5, "replace", n_candidates=3), seed=1
    ),
    "state": lambda llm: llm.load_state(llm.save_state()),
    "score": lambda llm: llm.score(PROMPTS[1]),
}


STRIDES = {"guided shift": 4}
"""The whole of it takes seconds, and its places are those of the others."""


@pytest.mark.parametrize("name", ACTIONS)
def test_an_exception_at_any_call_of_the_context(llm: Otter, name: str) -> None:
    """The next call builds on what the context holds, as a conversation does after Ctrl-C."""
    expected = [tokens_of(llm.create_completion(prompt, max_tokens=5, temperature=0)) for prompt in PROMPTS]
    scores = llm.score(PROMPTS[1]).rewards.tobytes()
    context = llm.session.streams.context
    for at in range(1, 300, STRIDES.get(name, 1)):
        finished = False
        for after in (False, True):
            llm.create_completion(PROMPTS[0], max_tokens=5, temperature=0)
            llm.session.streams.context = Interrupting(context, at, after=after)  # type: ignore[assignment]
            try:
                ACTIONS[name](llm)
                finished = True
            except OutOfTime:
                pass
            finally:
                llm.session.streams.context = context
            which = at % len(PROMPTS)
            again = llm.create_completion(PROMPTS[which], max_tokens=5, temperature=0, cache_prompt=True)
            assert tokens_of(again) == expected[which], (at, after)
        if finished:
            break
    assert finished
    assert at > 1
    assert llm.score(PROMPTS[1]).rewards.tobytes() == scores


# ---- a process of its own --------------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: float, kind: type[BaseException] = OutOfTime) -> Iterator[None]:
    """Raise an exception out of a signal handler, as servers and test runners do."""

    def raise_it(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except kind:
        return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pytest.fail("nothing was raised in time")


@pytest.mark.parametrize("kind", [OutOfTime, TimeoutError, KeyboardInterrupt, SystemExit])
def test_no_answer_goes_to_another_question(isolated: IsolatedOtter, kind: type[BaseException]) -> None:
    pid = isolated.pid
    expected = tokens_of(isolated.create_completion("b", max_tokens=5, temperature=0))
    begin = time.monotonic()
    with time_limit(0.05, kind):
        isolated.create_completion("the secret of user A", max_tokens=200, logits_processor=hostile.slow)
    assert time.monotonic() - begin < 1
    assert isolated.tokenize("ab") == [*isolated.tokenize("a"), *isolated.tokenize("b", add_bos=False)]
    assert tokens_of(isolated.create_completion("b", max_tokens=5, temperature=0)) == expected
    assert isolated.score("a").n_prompt == 2
    assert isolated.pid == pid


def test_exceptions_one_after_the_other(isolated: IsolatedOtter) -> None:
    """Also while the call before is still being ended there."""
    tokens = {text: isolated.tokenize(text) for text in "abcd"}
    for text in tokens:
        for _ in range(3):
            with time_limit(0.002):
                isolated.create_completion(text, max_tokens=200, logits_processor=hostile.slow)
        assert isolated.tokenize(text) == tokens[text]


def test_a_question_that_was_left_without_a_word(isolated: IsolatedOtter) -> None:
    """As by an exception between two statements that nothing catches: the next question ends it."""
    channel = isolated._process._channel
    put = channel.questions.put

    class Leaving:
        def put(self, question: Any) -> None:
            put(question)
            raise OutOfTime

    channel.questions, questions = Leaving(), channel.questions
    with pytest.raises(OutOfTime):
        isolated.create_completion("a", max_tokens=200, logits_processor=hostile.slow)
    channel.questions = questions
    assert channel._last is not None
    channel._last.abandoned = False
    begin = time.monotonic()
    assert isolated.tokenize("b") == [isolated.tokenize("")[0], *isolated.tokenize("b", add_bos=False)]
    assert time.monotonic() - begin < 3


def test_an_interrupted_step_ends_a_stream_there(isolated: IsolatedOtter, llm: Otter) -> None:
    """As in this process: no item of it is lost in the middle."""
    chunks = isolated.create_completion("a", max_tokens=200, logits_processor=hostile.slow, stream=True)
    next(chunks)
    with time_limit(0.02):
        list(chunks)
    assert list(chunks) == []
    assert isolated.tokenize("a")
    assert isolated._process.dropped == []


def test_what_was_made_for_nobody_is_forgotten_there(isolated: IsolatedOtter) -> None:
    """A model that was open there when its caller had been interrupted."""
    process, files = isolated._process, chat_pair()
    number = process.ask("open", str(files.base), {"n_ctx": 32, "n_threads": 1})["number"]
    assert process.ask("get", number, "n_ctx") == 32
    process._channel._note(({"number": number}, None))
    process._channel._note(({"iterator": 12345}, None))
    process._channel._note(({"number": "a lie"}, None))
    assert isolated.tokenize("a")
    with pytest.raises(KeyError):
        process.ask("get", number, "n_ctx")


def test_a_claim_is_not_left_behind(isolated: IsolatedOtter) -> None:
    with time_limit(0.05):
        isolated.create_completion("a", max_tokens=200, logits_processor=hostile.slow)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(isolated.tokenize("a")))
    thread.start()
    thread.join()
    assert len(answers) == 1


# ---- chat templates --------------------------------------------------------------------------------------------

CHATML = "{{ messages[0]['content'] }}"
LONG_IF_SECRET = (
    "{% if messages[0]['content'] == 'secret' %}{% for i in range(30000) %}{{ i }} {% endfor %}{% endif %}" + CHATML
)


def rendered(template: ChatTemplate, text: str) -> str:
    return template.render([{"role": "user", "content": text}])


def test_no_text_of_a_template_goes_to_another_conversation() -> None:
    template = ChatTemplate(CHATML, path="model.gguf", bos_token="", eos_token="")
    template.source = LONG_IF_SECRET
    assert rendered(template, "a") == "a"
    with time_limit(0.005):
        for _ in range(1000):
            rendered(template, "secret")
    for text in ("a", "b", "c"):
        assert rendered(template, text) == text
    template.close()


def test_an_exception_while_the_process_of_a_template_starts() -> None:
    template = ChatTemplate(CHATML, path="model.gguf", bos_token="", eos_token="")
    template.close()
    before = children()
    with time_limit(0.01):
        rendered(template, "secret")
        time.sleep(1)
    assert rendered(template, "a") == "a"
    end = time.monotonic() + 30
    while len(children() - before) > 1 and time.monotonic() < end:
        time.sleep(0.05)  # the one that nobody waits for is still ending
    assert len(children() - before) == 1
    template.close()


def children() -> set[int]:
    """Running processes that this one has started.

    One that has ended may stay a zombie: where the exception comes between the fork and its return to Python, nobody
    knows its number.
    """
    command = ["ps", "-e", "-o", "pid=,ppid=,stat=,comm="]
    rows = map(str.split, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    own = str(os.getpid())
    return {int(pid) for pid, parent, state, name, *_ in rows if parent == own and state[0] != "Z" and name != "ps"}
