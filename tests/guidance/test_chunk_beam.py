"""ChunkBeam: the same chunks and choices as its formula; best-of-N as a special case; streaming; errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.guidance.best_of_n import BestOfN
from otter_gguf.guidance.chunk_beam import ChunkBeam, _agreed
from tests.guidance.search_reference import (
    PROMPT,
    World,
    chunk_beam,
    complete,
    count_calls,
    never_ending,
    open_exact,
    tokens_of,
)
from tests.refusals import refused


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as model:
        yield model


@pytest.mark.parametrize(("width", "expansions"), [(2, 2), (1, 4)])
def test_same_chunks_and_choices_as_the_formula(llm: Otter, width: int, expansions: int) -> None:
    bias = never_ending(llm)
    out = complete(llm, ChunkBeam(width, expansions, 10), 200, logit_bias=bias)
    world = World(llm, 200, bias=bias)
    text, chunks = chunk_beam(world, width, expansions, 10)
    assert tokens_of(out) == text
    assert len(out["steps"]) == len(chunks)
    for record, expected in zip(out["steps"], chunks, strict=True):
        assert record.pop("kind") == "segment"
        np.testing.assert_allclose(record.pop("rewards"), expected.pop("rewards"), atol=1e-4)
        assert record == expected
    wrong, _ = chunk_beam(world.again(), width, expansions, 10, worst=True)
    assert wrong != text


def test_beams_that_have_ended_stand_as_they_are(llm: Otter) -> None:
    out = complete(llm, ChunkBeam(3, 2, 10), 200, seed=2)
    text, chunks = chunk_beam(World(llm, 200, seed=2), 3, 2, 10)
    assert tokens_of(out) == text
    assert [record["kept"] for record in out["steps"]] == [chunk["kept"] for chunk in chunks]
    assert any([] in record["candidates"] for record in out["steps"])
    assert len({len(record["candidates"]) for record in out["steps"]}) > 1


@pytest.mark.parametrize("n", [1, 5])
def test_one_beam_without_chunks_is_best_of_n(llm: Otter, n: int) -> None:
    whole = complete(llm, ChunkBeam(1, n, None), 60)
    assert tokens_of(whole) == tokens_of(complete(llm, BestOfN(n), 60))
    if n > 1:
        assert tokens_of(complete(llm, ChunkBeam(1, n, 10), 60)) != tokens_of(whole)


def test_tokens_are_streamed_when_all_beams_agree(llm: Otter) -> None:
    """With one beam, each chunk; the first token comes after the first chunk's batches, not after the last's."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 11, "logit_bias": never_ending(llm)}
    prompt = llm.tokenize(PROMPT, special=True)
    steps = llm.generate(prompt, guidance=ChunkBeam(1, 3, 10), **options)
    first = count_calls(llm, lambda: next(steps))
    assert first <= 10
    assert count_calls(llm, lambda: [next(steps) for _ in range(9)]) == 0
    assert count_calls(llm, lambda: next(steps)) >= 10


def test_agreement_is_the_common_beginning() -> None:
    assert _agreed([[1, 2, 3], [1, 2, 4], [1, 2, 3, 9]]) == 2
    assert _agreed([[1, 2], [1, 2, 3]]) == 2
    assert _agreed([[1, 2, 3]]) == 3
    assert _agreed([[], [1]]) == 0
    assert _agreed([[5], [1]]) == 0


def test_stop_strings_and_greedy_choice(llm: Otter) -> None:
    free = complete(llm, ChunkBeam(), 60)
    stop = free["text"][8:10]
    out = complete(llm, ChunkBeam(), 60, stop=[stop])
    assert stop not in out["text"]
    greedy = complete(llm, ChunkBeam(), 40, temperature=0)
    assert tokens_of(greedy) == tokens_of(complete(llm, None, 40, temperature=0))
    assert tokens_of(greedy) != tokens_of(free)[:40]


def test_rewards_of_another_model(llm: Otter) -> None:
    with open_exact() as same, open_exact() as plain:
        own = complete(plain, ChunkBeam(), 40)
        assert tokens_of(complete(llm, ChunkBeam(), 40, reward_model=same)) == tokens_of(own)


def test_errors_are_one_clear_line(llm: Otter) -> None:
    for options in ({"width": 0}, {"expansions": -1}, {"chunk": 0}, {"chunk": float("nan")}):
        ((name, value),) = options.items()
        with refused(ConfigError, "ChunkBeam", name, value, 1):
            ChunkBeam(**options)
    with refused(ConfigError, "'kindness'", "reward"):
        complete(llm, ChunkBeam(label="kindness"), 5)
    with refused(ConfigError, "ChunkBeam", "n_seq_max=25", "-np", 16):
        complete(llm, ChunkBeam(5, 5), 5)
