"""Threads: contexts of their own give what one thread gives, bit for bit.

    python -m tests.reliability.threads                   100 rounds of 8 threads

In every round each thread makes a context of one shared model, scores a text, decodes another one by one with a
sampler, and saves and loads its state, while the interpreter changes threads every microsecond. Exit status 1 if a
single bit differs from what one thread computed alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from otter_gguf import _native
from otter_gguf.loading import check_files, load_model
from otter_gguf.options import LoadOptions
from tests.guidance.reference import vocabulary_pair
from tests.native.helpers import open_sampler

THREADS = 8
ROUNDS = 100
_PROMPT, _NEW = 24, 8


def shared_model() -> _native.Model:
    """The tiny model with a value head and a vocabulary head."""
    return load_model(check_files(*vocabulary_pair()), LoadOptions())


def work(model: _native.Model, seed: int) -> bytes:
    """Everything that a context of its own computes for a seed, as bytes."""
    context = _native.Context(model, n_ctx=128, n_seq_max=2, n_threads=1)
    sampler = open_sampler(model, seed=seed, repeat_penalty=1.2)
    tokens = np.random.default_rng(seed).integers(3, model.n_vocab, _PROMPT).astype(np.int32)
    seen = [context.score(tokens).tobytes(), context.log_probabilities(tokens, position=_PROMPT).tobytes()]
    context.clear()
    _feed(context, tokens, 0)
    for position in range(_PROMPT, _PROMPT + _NEW):
        logits = context.logits()[-1]
        token = sampler.sample(logits)
        seen += [logits.tobytes(), context.rewards().tobytes(), context.vocabulary_scores(0, 0).tobytes()]
        _feed(context, np.asarray([token], np.int32), position)
    state = context.state()
    context.load_state(state)
    seen += [state, model.detokenize(model.tokenize(bytes(tokens % 128).replace(b"\0", b"a")))]
    context.close()
    return b"".join(seen)


def _feed(context: _native.Context, tokens: np.typing.NDArray[np.int32], first: int) -> None:
    positions = np.arange(first, first + len(tokens), dtype=np.int32)
    outputs = np.zeros(len(tokens), np.bool_)
    outputs[-1] = True
    context.decode(tokens, positions, np.zeros_like(tokens), outputs)


@contextmanager
def fast_switching() -> Iterator[None]:
    """The interpreter offers its lock every microsecond instead of every five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def differing(rounds: int, threads: int = THREADS) -> int:
    """Results of all rounds that are not those of a single thread."""
    model = shared_model()
    expected = [work(model, seed) for seed in range(threads)]
    wrong = 0
    with fast_switching(), ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            found = pool.map(lambda seed: work(model, seed), range(threads))
            wrong += sum(ours != theirs for ours, theirs in zip(found, expected, strict=True))
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Compute in many threads what one thread computes.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    given = parser.parse_args(arguments)
    wrong = differing(given.rounds, given.threads)
    print(f"{given.rounds} rounds of {given.threads} threads: {wrong} results differ from one thread's")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
