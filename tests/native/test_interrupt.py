"""Long native calls: Ctrl-C stops them, other threads run beside them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_gguf import _native
from tests.native.helpers import feed, open_otter, random_tokens
from tests.native.test_non_disruption import CONFIG, make

LONG = 20000


class StopError(Exception):
    """Raised by the signal handler, as KeyboardInterrupt is by Python's own."""


@pytest.fixture
def context(tmp_path: Path) -> _native.Context:
    return open_otter(*make(tmp_path), CONFIG, n_ctx=LONG + 256, n_batch=LONG)


@pytest.fixture
def alarm() -> Iterator[None]:
    """A signal 0.3 s from now, whose handler raises."""

    def handler(*_: object) -> None:
        raise StopError

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("call", ["score", "decode", "log_probabilities"])
def test_a_signal_stops_the_call_and_leaves_the_cache_as_it_was(
    call: str, context: _native.Context, request: pytest.FixtureRequest
) -> None:
    tokens = random_tokens(LONG)
    feed(context, tokens[:10], outputs=False)
    request.getfixturevalue("alarm")
    with pytest.raises(StopError):  # noqa: PT012 - any of the calls
        if call == "score":
            context.score(tokens, position=10)
        elif call == "log_probabilities":
            context.log_probabilities(tokens, position=10)
        else:
            feed(context, tokens, 10, outputs=False)
    assert context.sequence_max_position(0) == 9
    feed(context, tokens[10:20], 10)
    assert context.rewards().shape == (10, CONFIG.n_rewards)


def test_other_threads_run_during_a_call(context: _native.Context) -> None:
    thread = threading.Thread(target=context.score, args=(random_tokens(4000),))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
    assert turns > 1000
