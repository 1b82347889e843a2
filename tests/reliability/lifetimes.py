"""Objects that die in another order than they were made: one by one, at the interpreter's end, after a fork.

    python -m tests.reliability.lifetimes                 every ending, 20 orders of each

Each ending runs in a process of its own, which must end by itself, with exit status 0 and nothing on stderr, within
five seconds of its last line: a deadlock, a crash or a message of the runtime is a failure.
"""

from __future__ import annotations

import atexit
import gc
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from otter_gguf import EngineError, Otter, _native
from tests.native.helpers import open_sampler
from tests.reliability.threads import fast_switching, shared_model
from tests.reliability.tree import ROOT
from tests.synthetic_models import pair

ORDERS = 20
SECONDS = 5.0
_READY = "ready"

_LONG = np.resize(np.arange(3, 300, dtype=np.int32), 20_000)


def objects() -> dict[str, object]:
    """One of each kind, each made from one before: file, model, contexts, views, samplers, a stream half read."""
    files = pair()
    file = _native.GgufFile(str(files.base))
    model = shared_model()
    context, twin = (_native.Context(model, n_ctx=64, n_threads=1) for _ in range(2))
    tokens = np.arange(3, 11, dtype=np.int32)
    context.decode(tokens, np.arange(8, dtype=np.int32), np.zeros(8, np.int32), np.ones(8, np.bool_))
    sampler = open_sampler(model, repeat_penalty=1.1)
    llm = Otter(files.base, otter=files.otter, n_ctx=64, n_threads=1)
    stream = llm.create_completion("a", max_tokens=8, stream=True)
    next(stream)
    return {
        "file": file,
        "bytes": file.tensor_data(file.tensors[0].name),
        "model": model,
        "context": context,
        "twin": twin,
        "logits": context.logits(),
        "sampler": sampler,
        "state": sampler.save(),
        "llm": llm,
        "stream": stream,
    }


def _shuffled(order: int) -> list[tuple[str, object]]:
    made = list(objects().items())
    random.Random(order).shuffle(made)
    return made


def _close(thing: object) -> None:
    close = getattr(thing, "close", None)
    if close is not None:
        close()


# ---- endings; each is given the number of the order ------------------------------------------------------------


def freed(order: int) -> None:
    """Forgotten one by one; nothing native is alive then."""
    made = _shuffled(order)
    while made:
        made.pop()
        gc.collect()
    left = {name: count for name, count in _native.live_objects().items() if count}
    assert not left, left


def closed(order: int) -> None:
    """Closed one by one, each twice, while all are still referred to; what is used then is an error or an answer."""
    made = _shuffled(order)
    for _, thing in made * 2:
        _close(thing)
    del thing, made
    gc.collect()
    assert not any(_native.live_objects().values()), _native.live_objects()


def forked(order: int) -> None:
    """The child of a fork uses and frees what its parent made, and ends as a program does; the parent goes on."""
    made = dict(_shuffled(order))
    context = made["twin"]
    assert isinstance(context, _native.Context)
    expected = context.log_probabilities(_LONG[:32])
    child = os.fork()
    context.clear()
    same = np.array_equal(context.log_probabilities(_LONG[:32]), expected)
    if child == 0:
        atexit.unregister(shutil.rmtree)  # the files are the parent's
        for name in list(made):
            _close(made.pop(name))
        sys.exit(0 if same else 3)
    _, status = os.waitpid(child, 0)
    assert same
    assert os.waitstatus_to_exitcode(status) == 0, status


def left_to_the_end(order: int) -> None:
    """Never freed: in modules, in a cycle, in a hook of the interpreter's end."""
    made = _shuffled(order)
    places: list[Callable[[object], object]] = [
        lambda thing: setattr(sys, f"otter_test_{id(thing)}", thing),
        lambda thing: atexit.register(_close, thing),
        lambda thing: (cycle := [thing]).append(cycle),
        lambda thing: globals().update({f"kept_{id(thing)}": thing}),
    ]
    for index, (_, thing) in enumerate(made):
        places[index % len(places)](thing)


def while_computing(order: int) -> None:
    """The interpreter ends while daemon threads compute, wait for each other, and have callbacks running."""
    model = shared_model()
    contexts = [_native.Context(model, n_ctx=len(_LONG) + 8, n_batch=512, n_threads=1 + order % 2) for _ in range(3)]
    begun = threading.Barrier(len(contexts) + 1)

    def compute(context: _native.Context) -> None:
        begun.wait()
        with suppress(EngineError):  # one is closed under its thread
            while True:
                context.clear()
                context.score(_LONG)

    for context in contexts:
        threading.Thread(target=compute, args=(context,), daemon=True).start()
    begun.wait()
    time.sleep(0.01 * (order % 10))
    if order % 3 == 0:
        contexts[0].close()


def callbacks_that_raise(order: int) -> None:
    """What a callback raises arrives, or is reported, and the next call works; the listener is left set."""

    def fail(*_: object) -> Any:
        raise LookupError("from the callback")

    path = str(pair().base)
    try:
        _native.Model(path, progress=fail)
    except LookupError:
        pass
    else:
        raise AssertionError("the callback's exception did not arrive")
    sys.unraisablehook = lambda _: None
    _native.set_log_callback(fail)
    model = _native.Model(path, progress=lambda done: True)
    _native.Context(model, n_ctx=64, n_threads=1).log_probabilities(_LONG[: 8 + order])


def log_callback_exchanged(order: int) -> None:
    """The log's listener is exchanged while threads load and log: both take the log's lock and Python's."""
    path = str(pair().base)
    workers = [threading.Thread(target=lambda: [_native.Model(path) for _ in range(5)]) for _ in range(2)]
    with fast_switching():
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            _native.set_log_callback(lambda level, line: None)
    if order % 2:
        _native.set_log_callback(None)


ENDINGS: dict[str, Callable[[int], None]] = {
    ending.__name__: ending
    for ending in (
        freed,
        closed,
        forked,
        left_to_the_end,
        while_computing,
        callbacks_that_raise,
        log_callback_exchanged,
    )
}
LOOPED = ("freed", "closed", "forked", "callbacks_that_raise", "log_callback_exchanged")
"""Endings that leave the process as it was, so that one process can try all orders."""


# ---- the run ---------------------------------------------------------------------------------------------------


def problem(ending: str, orders: Sequence[int], limit: float = SECONDS) -> str | None:
    """Run an ending in a process; what is wrong, or None. ``limit``: seconds from its last line to its end."""
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "tests.reliability.lifetimes"]
    command += [ending, *map(str, orders)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().strip()
        try:
            _, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"no end within {limit:g} s"
    if ready != _READY or process.returncode != 0 or errors:
        return f"exit status {process.returncode}: {errors.strip()[-500:]}"
    return None


def problems(ending: str, orders: int) -> list[str]:
    """What is wrong with an ending in so many orders: all in one process, or each in its own."""
    runs = [range(orders)] if ending in LOOPED else [range(order, order + 1) for order in range(orders)]
    return [found for run in runs if (found := problem(ending, run)) is not None]


def _child(ending: str, orders: Sequence[int]) -> None:
    for order in orders:
        ENDINGS[ending](order)
    print(_READY, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text; with the name of an ending, be the process that ends so."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given:
        _child(given[0], [int(order) for order in given[1:]])
        return 0
    failed = 0
    for ending in ENDINGS:
        found = problems(ending, ORDERS)
        failed += len(found)
        print(f"{ending:22} {ORDERS} orders: {'; '.join(found) or 'ok'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
