"""Grammars that read one text in many ways: an end in bounded time, at once on a signal, and a sampler that goes on."""

from __future__ import annotations

import functools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError, EngineError
from tests.gguf.test_vocabulary_limits import PLACE, with_token
from tests.native.helpers import Float32, open_sampler
from tests.native.test_grammar import allowed, byte
from tests.native.test_interrupt import StopError
from tests.native.test_sampler import V, make, rows
from tests.refusals import refused

# Each character makes four ways of one.
AMBIGUOUS = "root ::= s\ns ::= [^x] s s s | [^x] s s | [^x] s | [^x]"
LETTER = byte("a")
ALLOWED, FORBIDDEN = PLACE, PLACE + 1


@functools.cache
def model_with_long_tokens() -> _native.Model:
    """The toy model with two tokens for which such a grammar would never end: to find all ways of the one, or none of
    the other."""
    with tempfile.TemporaryDirectory() as folder:
        return _native.Model(str(with_token(Path(folder) / "base.gguf", "a" * 40, "a" * 40 + "x")), use_mmap=False)


def endless() -> _native.Sampler:
    return open_sampler(model_with_long_tokens(), temperature=0.0, grammar=AMBIGUOUS)


def logits_of(token: int) -> Float32:
    logits = np.zeros(V, np.float32)
    logits[token] = 1.0
    return logits


@contextmanager
def on_alarm(handler: Callable[[], None]) -> Iterator[None]:
    """Calls ``handler`` from a signal 0.1 s from now."""
    previous = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def stop() -> None:
    raise StopError


def test_too_many_ways_are_an_error() -> None:
    sampler = make(top_k=V, grammar=AMBIGUOUS)
    with refused(ConfigError, "grammar"):
        for _ in range(12):
            sampler.accept(LETTER)
    sampler.reset()
    assert LETTER in allowed(sampler, rows(1)[0])


def test_one_way_has_no_such_limit() -> None:
    """The negative twin: the same texts, and many of them."""
    sampler = make(top_k=V, grammar="root ::= [^x]+")
    for _ in range(2000):
        sampler.accept(LETTER)
    many = make(top_k=V, grammar="root ::= " + " | ".join(f'"a{i}"' for i in range(5000)))
    many.accept(LETTER)
    assert allowed(many, rows(1)[0]) >= {byte(digit) for digit in "123456789"}


@pytest.mark.slow
def test_a_token_that_takes_for_ever_ends_by_itself() -> None:
    begin = time.process_time()
    with refused(ConfigError, "grammar"):
        endless().sample(logits_of(FORBIDDEN))
    assert 4.0 < time.process_time() - begin < 8.0


@pytest.mark.slow
@pytest.mark.parametrize("grammar", ["root ::= " + "[^x]? " * 2000, "root ::= " + "[^x]* " * 780])
def test_a_text_whose_tokens_each_take_long_ends_by_itself(grammar: str) -> None:
    """One budget for the whole text: none of the tokens would exceed it."""
    begin = time.process_time()
    with refused(ConfigError, "grammar"):
        sampler = make(top_k=V, grammar=grammar)
        for _ in range(20):
            sampler.accept(LETTER)
            allowed(sampler, rows(1)[0])
    assert time.process_time() - begin < 5.0 + 20 * 0.5


@pytest.mark.slow
def test_each_token_gives_time_back() -> None:
    """The negative twin: a text that takes more than the first token may, a tenth of a second each."""
    words = " | ".join(f'"a{number:04d}"' for number in range(4000))
    sampler = make(top_k=V, grammar=f"root ::= ({words})+")
    begin = time.process_time()
    while time.process_time() - begin < 7.0:
        for letter in "a0000":
            assert byte(letter) in allowed(sampler, rows(1)[0])
            sampler.accept(byte(letter))


@pytest.mark.parametrize(
    ("call", "token"), [("accept", ALLOWED), ("accept", FORBIDDEN), ("sample", FORBIDDEN), ("candidates", FORBIDDEN)]
)
def test_a_signal_stops_a_grammar(call: str, token: int) -> None:
    """What was under way is left undone: the sampler goes on where it was."""
    sampler = endless()
    begin = time.monotonic()
    with on_alarm(stop), pytest.raises(StopError):  # noqa: PT012 - any of the calls
        if call == "sample":
            sampler.sample(logits_of(token))
        elif call == "candidates":
            sampler.candidates(logits_of(token), 1)
        else:
            sampler.accept(token)
    assert time.monotonic() - begin < 2.0
    sampler.accept(LETTER)


def test_one_sampler_from_two_threads_is_a_typed_error() -> None:
    """The other thread comes while a call is under way: a signal handler, which runs in its middle, waits for it."""
    sampler = endless()
    errors: list[Exception] = []

    def work() -> None:
        try:
            sampler.accept(LETTER)
        except EngineError as error:
            errors.append(error)

    def beside() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        raise StopError

    with on_alarm(beside), pytest.raises(StopError):
        sampler.accept(FORBIDDEN)
    (error,) = errors
    assert "sampler" in str(error)
    assert "thread" in str(error)
    work()
    assert len(errors) == 1
