"""Few rounds of what ``make soak`` does many of: leaks, threads, lifetimes."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from otter_gguf import EngineError, _native
from tests.native.helpers import open_sampler
from tests.refusals import refused
from tests.reliability import leaks, lifetimes, threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


# ---- leaks -----------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kind", leaks.NATIVE_KINDS)
def test_load_and_free_leaves_nothing_behind(kind: str) -> None:
    status, printed = leaks.run_apart(kind, cycles=60, warm=30)
    assert status == 0, printed
    assert "alive: none" in printed


@linux
def test_a_leak_is_seen() -> None:
    kept: list[bytearray] = []
    growth = leaks.measure(lambda: kept.append(bytearray(b"x" * (leaks.resident_bytes() // 100))), 10, 2)
    assert growth.share > leaks.LIMIT


def test_live_objects_are_counted() -> None:
    gc.collect()
    before = _native.live_objects()
    model = threads.shared_model()
    context = _native.Context(model, n_ctx=64, n_threads=1)
    sampler = open_sampler(model)
    twin = sampler.clone(1)
    held = {name: count - before[name] for name, count in _native.live_objects().items()}
    assert held == {"files": 0, "models": 1, "contexts": 1, "samplers": 2}
    model.close()
    assert _native.live_objects()["models"] == before["models"] + 1, "contexts and samplers hold it"
    context.close()
    del sampler, twin
    gc.collect()
    assert _native.live_objects() == before


# ---- threads ---------------------------------------------------------------------------------------------------


def test_contexts_of_their_own_give_what_one_thread_gives() -> None:
    assert threads.differing(rounds=2) == 0


def test_other_work_gives_other_results() -> None:
    model = threads.shared_model()
    assert threads.work(model, 1) == threads.work(model, 1)
    assert threads.work(model, 1) != threads.work(model, 2)


@pytest.fixture
def computing() -> Iterator[_native.Context]:
    """A context in which another thread scores a long text."""
    model = threads.shared_model()
    context = _native.Context(model, n_ctx=8_200, n_batch=512, n_threads=1)
    tokens = np.resize(np.arange(3, 300, dtype=np.int32), 8_000)
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(_score(context, tokens)))
    thread.start()
    while not _is_busy(context) and not done:
        pass
    assert not done
    yield context
    assert not done, "the text was too short for this machine"
    context.close()  # the thread holds what it computes with
    thread.join()


def _score(context: _native.Context, tokens: np.typing.NDArray[np.int32]) -> object:
    """Once it is let in: whoever looks whether it is busy may be there first."""
    while True:
        try:
            return context.score(tokens)
        except EngineError:
            continue


def _is_busy(context: _native.Context) -> bool:
    try:
        context.sequence_max_position(0)
    except EngineError:
        return True
    return False


_FOUR = np.zeros(4, np.int32)
CALLS: dict[str, Callable[[_native.Context], object]] = {
    "decode": lambda context: context.decode(_FOUR, _FOUR, _FOUR, np.zeros(4, np.bool_)),
    "decode_rewards": lambda context: context.decode_rewards(_FOUR, _FOUR, _FOUR),
    "logits": lambda context: context.logits(),
    "rewards": lambda context: context.rewards(),
    "queries": lambda context: context.queries(0),
    "vocabulary_scores": lambda context: context.vocabulary_scores(0, 0),
    "top_k": lambda context: context.top_k(0, 1),
    "score": lambda context: context.score(_FOUR),
    "log_probabilities": lambda context: context.log_probabilities(_FOUR),
    "sequence_copy": lambda context: context.sequence_copy(0, 0),
    "sequence_remove": lambda context: context.sequence_remove(0),
    "sequence_keep": lambda context: context.sequence_keep(0),
    "sequence_max_position": lambda context: context.sequence_max_position(0),
    "sequence_shift": lambda context: context.sequence_shift(0, 0, -1, 1),
    "state": lambda context: context.state(),
    "load_state": lambda context: context.load_state(b""),
    "clear": lambda context: context.clear(),
}


def test_one_context_from_two_threads_is_a_typed_error_in_every_method(computing: _native.Context) -> None:
    for name, call in CALLS.items():
        with refused(EngineError, "thread"):
            call(computing)
        assert name in dir(_native.Context)


# ---- lifetimes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", lifetimes.ENDINGS)
def test_objects_die_in_any_order(ending: str) -> None:
    orders = range(lifetimes.ORDERS) if ending == "freed" else range(3) if ending in lifetimes.LOOPED else [0]
    assert lifetimes.problem(ending, orders) is None


def test_an_ending_that_takes_too_long_or_fails_is_a_problem() -> None:
    assert "no end" in str(lifetimes.problem("left_to_the_end", [0], limit=0.0))
    assert "exit status 1" in str(lifetimes.problem("unknown", [0]))
