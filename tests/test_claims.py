"""One Otter from several threads: one call at a time, the others are refused at once, and no text is wrong."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, ConfigError, DExperts, EngineError, Otter
from otter_gguf.claims import Claimable, Stream, claimed
from tests.completions import chat_pair, choice_of, joined, tokens_of
from tests.guidance.reference import EXACT
from tests.refusals import refused
from tests.synthetic_models import pair

OPTIONS: dict[str, Any] = {**EXACT, "n_ctx": 128, "n_threads": 1, "seed": 1}
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    files = chat_pair()
    with Otter(files.base, otter=files.otter, **OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def judge() -> Iterator[Otter]:
    files = pair(seed=5)
    with Otter(files.base, otter=files.otter, **OPTIONS) as judge:
        yield judge


def elsewhere(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


class Pause:
    """A logits processor that stops a call in its second step until it may go on."""

    def __init__(self) -> None:
        self.there, self.go_on = threading.Event(), threading.Event()
        self.steps = 0

    def __call__(self, tokens: Any, logits: Any) -> Any:
        self.steps += 1
        if self.steps == 2:
            self.there.set()
            assert self.go_on.wait(30)
        return logits


# ---- claims ----------------------------------------------------------------------------------------------------


def test_another_thread_is_refused_while_a_claim_lasts() -> None:
    one = Claimable("one")

    def claim() -> None:
        with claimed(one):
            pass

    with claimed(one):
        with refused(EngineError, "one", "thread"):
            elsewhere(claim)
        claim()  # of the same thread
        with refused(EngineError, "one", "thread"):
            elsewhere(claim)
    elsewhere(claim)
    assert one.uses == []


def test_what_does_not_nest_is_refused_to_its_own_thread_too() -> None:
    one = Claimable("one", nests=False)
    with claimed(one):
        with refused(EngineError, "one"), claimed(one):
            pass
        assert len(one.uses) == 1
    with claimed(one):
        pass


def test_of_several_all_or_none_are_claimed() -> None:
    first, second = Claimable("first"), Claimable("second")

    def both() -> None:
        with claimed(first, second):
            pass

    with claimed(second):
        with refused(EngineError, "second", "thread"):
            elsewhere(both)
        assert first.uses == []
    both()


def test_a_claim_that_an_exception_left_behind_counts_nothing() -> None:
    """As one between the claim and the block does."""
    one = Claimable("one")

    def abandon() -> None:
        claimed(one).__enter__()
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            abandon()
    assert one.uses

    def claim() -> int:
        with claimed(one):
            return len(one.uses)

    assert elsewhere(claim) == 1
    assert claim() == 1
    assert one.uses == []


def test_a_stream_claims_in_its_steps_alone() -> None:
    one = Claimable("one")
    seen: list[int] = []

    def items() -> Any:
        try:
            for item in range(5):
                seen.append(len(one.uses))
                yield item
        except ZeroDivisionError:
            yield -1

    stream = Stream((one,), items())
    assert [next(stream), stream.send(None)] == [0, 1]
    assert one.uses == []
    with claimed(one), refused(EngineError, "one", "thread"):
        elsewhere(lambda: next(stream))
    assert next(stream) == 2  # nothing was lost
    assert stream.throw(ZeroDivisionError) == -1
    stream.close()
    assert list(stream) == []
    assert set(seen) == {1}


def test_many_threads_never_have_it_together() -> None:
    one, inside, together, had = Claimable("one"), [0], [0], [0]

    def work() -> None:
        for _ in range(300):
            try:
                with claimed(one):
                    inside[0] += 1
                    together[0] += inside[0] != 1
                    sum(range(20))
                    inside[0] -= 1
                    had[0] += 1
            except EngineError:
                pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert together == [0]
    assert had[0] > 0
    assert one.uses == []


# ---- a model ---------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Otter], Any]] = {
    "completion": lambda llm: llm.create_completion("b", max_tokens=1),
    "stream": lambda llm: llm.create_completion("b", max_tokens=1, stream=True),
    "chat": lambda llm: llm.create_chat_completion(MESSAGES, max_tokens=1),
    "generate": lambda llm: llm.generate([66]),
    "score": lambda llm: llm.score("b"),
    "log-probabilities": lambda llm: llm.lanes.log_probabilities([66, 67]),
    "save_state": lambda llm: llm.save_state(),
    "last_rewards": lambda llm: llm.last_rewards,
    "close": lambda llm: llm.close(),
}


def run_beside(llm: Otter, other: Callable[[], Any], **options: Any) -> Any:
    """The answer of a call in another thread, during which ``other`` is called."""
    pause = Pause()
    with ThreadPoolExecutor(1) as pool:
        options |= {"max_tokens": 8, "temperature": 0, "logits_processor": pause}
        call = pool.submit(lambda: llm.create_completion("a", **options))
        assert pause.there.wait(30)
        try:
            other()
        finally:
            pause.go_on.set()
        return choice_of(call.result(30))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_refused_while_another_thread_calls(llm: Otter, name: str) -> None:
    expected = choice_of(llm.create_completion("a", max_tokens=8, temperature=0))
    state = llm.save_state()

    def other() -> None:
        with refused(EngineError, llm.model_path, "thread"):
            CALLS[name](llm)
        with refused(EngineError, llm.model_path, "thread"):
            llm.load_state(state)

    assert run_beside(llm, other) == expected
    if name != "close":
        CALLS[name](llm)  # now it may


def test_what_needs_no_context_can_be_asked_meanwhile(llm: Otter) -> None:
    def other() -> None:
        assert llm.detokenize(llm.tokenize("otter")) == b"otter"
        assert llm.tokenize_chat(MESSAGES)
        assert llm.n_vocab

    run_beside(llm, other)


@pytest.mark.parametrize("kind", ["reward_model", "follower"])
def test_what_guides_a_call_is_claimed_with_it(llm: Otter, judge: Otter, kind: str) -> None:
    rule: dict[str, Any] = (
        {"guidance": ARGS(5.0, n_candidates=3), "reward_model": judge}
        if kind == "reward_model"
        else {"guidance": DExperts(expert=judge)}
    )
    expected = choice_of(llm.create_completion("a", max_tokens=8, temperature=0, **rule))

    def other() -> None:
        with refused(EngineError, judge.model_path, "thread"):
            judge.score("b")

    assert run_beside(llm, other, **rule) == expected

    def during_a_call_of_the_judge() -> None:
        with refused(EngineError, judge.model_path, "thread"):
            llm.create_completion("a", max_tokens=8, temperature=0, **rule)
        assert tokens_of(llm.create_completion("a", max_tokens=2))  # it is free itself

    run_beside(judge, during_a_call_of_the_judge)


def test_a_call_between_two_steps_ends_a_stream(llm: Otter) -> None:
    """From whatever thread; the stream says so, and gives no wrong text."""
    for call in (lambda make: make(), elsewhere):
        chunks = llm.create_completion("a", max_tokens=20, temperature=0, stream=True)
        next(chunks)
        call(lambda: llm.score("b"))
        with refused(ConfigError, "stream"):
            list(chunks)
    chunks = llm.create_completion("a", max_tokens=8, temperature=0, stream=True)
    first = [next(chunks)]
    rest = elsewhere(lambda: list(chunks))  # a stream may go on in another thread
    expected = choice_of(llm.create_completion("a", max_tokens=8, temperature=0))
    assert joined([*first, *rest])["text"] == expected["text"]


def test_a_call_of_the_reward_model_ends_a_stream_that_it_guides(llm: Otter, judge: Otter) -> None:
    for rule in (
        {"guidance": ARGS(5.0, n_candidates=3), "reward_model": judge},
        {"guidance": DExperts(expert=judge)},
    ):
        chunks = llm.create_completion("a", max_tokens=20, temperature=0, stream=True, **rule)
        next(chunks)
        judge.score("b")
        with refused(ConfigError, "stream"):
            list(chunks)


def test_a_refused_call_does_not_end_a_stream(llm: Otter) -> None:
    expected = choice_of(llm.create_completion("a", max_tokens=8, temperature=0))["text"]
    pause = Pause()
    chunks = llm.create_completion("a", max_tokens=8, temperature=0, stream=True, logits_processor=pause)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(joined, chunks)
        assert pause.there.wait(30)
        with refused(EngineError, "thread"):
            llm.score("b")
        with refused(EngineError, "thread"):
            next(chunks)  # the stream itself
        pause.go_on.set()
        assert whole.result(30)["text"] == expected


def test_a_callback_may_call_its_own_model(llm: Otter) -> None:
    """It ends the call that it is part of; the answers of both are right or refused."""
    expected = llm.score("b").rewards
    found = []

    def call(tokens: Any, logits: Any) -> Any:
        found.append(llm.score("b").rewards)
        return logits

    for options in ({}, {"guidance": ARGS(1.0, n_candidates=3)}, {"stream": True}):
        with refused(ConfigError, "stream"):
            list(llm.create_completion("a", max_tokens=4, logits_processor=call, **options))
    for rewards in found:
        np.testing.assert_array_equal(rewards, expected)
    for step in range(3):

        def only_tokens(tokens: Any, logits: Any) -> Any:
            assert llm.tokenize("otter")
            return logits

        assert tokens_of(llm.create_completion("a", max_tokens=step + 1, logits_processor=only_tokens))
