"""SpeculativeRejection: the same texts, cuts and choice as its formula; its pauses; errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.guidance.best_of_n import BestOfN
from otter_gguf.guidance.speculative_rejection import SpeculativeRejection
from tests.guidance.search_reference import (
    World,
    complete,
    never_ending,
    open_exact,
    speculative_rejection,
    tokens_of,
)
from tests.refusals import refused


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as model:
        yield model


def same_records(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether all pauses and the end agree."""
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        record = {name: value for name, value in record.items() if name != "kind"}
        for name in record.keys() & {"rewards", "cutoff"}:
            np.testing.assert_allclose(record.pop(name), other.pop(name), atol=1e-4)
        assert record == other
    return True


def lengths(records: list[dict[str, Any]]) -> list[int]:
    """Tokens of each record's first candidate."""
    return [len(record["candidates"][0]) for record in records]


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_same_texts_and_cuts_as_the_formula(llm: Otter, alpha: float) -> None:
    bias = never_ending(llm)
    out = complete(llm, SpeculativeRejection(8, alpha, 12), 200, logit_bias=bias)
    world = World(llm, 200, bias=bias)
    text, pauses = speculative_rejection(world, 8, alpha, 12)
    assert tokens_of(out) == text
    assert len(text) == 200
    assert same_records(out["steps"], pauses)
    assert [record["kind"] for record in out["steps"]] == ["segment"] * (len(pauses) - 1) + ["text"]
    wrong, _ = speculative_rejection(world.again(), 8, alpha, 12, keep_worst=True)
    assert wrong != text
    _, evenly = speculative_rejection(world.again(), 8, alpha, 12, even=True)
    assert lengths(evenly) != lengths(out["steps"])


def test_texts_that_end_by_themselves(llm: Otter) -> None:
    search = SpeculativeRejection(12, 0.25, 16)
    out = complete(llm, search, 200, seed=5)
    text, pauses = speculative_rejection(World(llm, 200, seed=5), 12, 0.25, 16)
    assert tokens_of(out) == text
    assert same_records(out["steps"], pauses)
    finished = out["steps"][-1]
    assert len(finished["candidates"]) > 1
    assert finished["rewards"][finished["choice"]] == max(finished["rewards"]) == out["rewards"]["reward"]
    assert len({len(candidate) for candidate in finished["candidates"]}) > 1


def test_half_of_the_texts_go_at_each_doubling(llm: Otter) -> None:
    search = SpeculativeRejection(16, 0.5, 8)
    out = complete(llm, search, 128, logit_bias=never_ending(llm))
    pauses = out["steps"][:-1]
    ends = [pause["begin"] + len(pause["candidates"][0]) for pause in pauses]
    assert ends == [8, 16, 32, 64]
    assert [len(pause["kept"]) for pause in pauses] == [8, 4, 2, 1]
    assert all(np.median(pause["rewards"]) == pytest.approx(pause["cutoff"]) for pause in pauses)


def test_the_default_costs_what_the_docstring_says(llm: Otter) -> None:
    out = complete(llm, SpeculativeRejection(), 128, logit_bias=never_ending(llm))
    *pauses, end = out["steps"]
    drawn = sum(len(tokens) for pause in pauses for tokens in pause["candidates"])
    begin = pauses[-1]["begin"] + len(pauses[-1]["candidates"][0])
    assert drawn + sum(len(tokens) - begin for tokens in end["candidates"]) == 640


def test_nothing_is_dropped_before_a_late_pause(llm: Otter) -> None:
    """With a pause behind the end it is best-of-N."""
    late, best = SpeculativeRejection(5, 0.5, 100), BestOfN(5)
    outs = [complete(llm, search, 60) for search in (late, best)]
    assert tokens_of(outs[0]) == tokens_of(outs[1])
    assert sorted(outs[0]["steps"][-1]["candidates"]) == sorted(outs[1]["steps"][-1]["candidates"])
    early = complete(llm, SpeculativeRejection(5, 0.5, 4), 60)
    assert len(early["steps"]) > 1


def test_one_text_is_plain_decoding(llm: Otter) -> None:
    assert tokens_of(complete(llm, SpeculativeRejection(1), 60)) == tokens_of(complete(llm, None, 60))


def test_pauses_always_come_later() -> None:
    search = SpeculativeRejection(16, 0.5, 1)
    assert search.next_pause(16, 0) == 1
    assert search.next_pause(16, 1) == 2
    assert search.next_pause(2, 7) == 8
    assert search.next_pause(2, 8) == 9
    assert search.next_pause(1, 9) is None


def test_errors_are_one_clear_line(llm: Otter) -> None:
    for alpha in (0, 1, -0.5, float("nan"), float("inf")):
        with refused(ConfigError, "SpeculativeRejection", "alpha", alpha):
            SpeculativeRejection(alpha=alpha)
    wrong: list[dict[str, Any]] = [{"n": 0}, {"n": -1}, {"pause": 0}]
    for options in wrong:
        ((name, value),) = options.items()
        with refused(ConfigError, "SpeculativeRejection", name, value, 1):
            SpeculativeRejection(**options)
    with refused(ConfigError, "'kindness'", "reward"):
        complete(llm, SpeculativeRejection(4, label="kindness"), 5)
    with refused(ConfigError, "SpeculativeRejection", "n_seq_max=20", "-np", 16):
        complete(llm, SpeculativeRejection(20), 5)
