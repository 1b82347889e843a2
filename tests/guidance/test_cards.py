"""CARDS: the same draws, tests and segments as its formula; thresholds by hand; errors; what it leaves as it was."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.guidance.cards import CARDS
from tests.guidance.search_reference import (
    PROMPT,
    Cards,
    World,
    complete,
    count_calls,
    ends_of,
    never_ending,
    open_exact,
    tokens_of,
)
from tests.refusals import refused
from tests.synthetic_models import pair

UNSURE = 5.2
"""An entropy that about a third of the tiny model's next tokens have."""


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as model:
        yield model


def agree(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """All draws of all segments are the same."""
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        assert record["kind"] == "segment"
        for name in ("begin", "candidates", "choice", "accepted"):
            assert record[name] == other[name], name
        for name in ("rewards", "thresholds"):
            np.testing.assert_allclose(record[name], other[name], atol=1e-4)


SETTINGS = {
    "soft": (CARDS(0.5, beta=0.3, entropy=UNSURE), Cards(0.5, beta=0.3, entropy=UNSURE)),
    "hard": (
        CARDS(0.0, alpha=0.3, entropy=UNSURE, min_segment=2, max_segment=12, n_tokens=60, hard=True),
        Cards(0.0, alpha=0.3, entropy=UNSURE, shortest=2, longest=12, horizon=60, hard=True),
    ),
    "tries are spent": (
        CARDS(3.0, entropy=UNSURE, max_segment=8, max_tries=3, hard=True),
        Cards(3.0, entropy=UNSURE, longest=8, tries=3, hard=True),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_same_segments_as_the_formula(llm: Otter, name: str) -> None:
    rule, reference = SETTINGS[name]
    bias = never_ending(llm)
    out = complete(llm, rule, 200, logit_bias=bias)
    world = World(llm, 200, bias=bias)
    text, segments = reference.write(world)
    assert tokens_of(out) == text
    assert len(text) == 200
    agree(out["steps"], segments)
    assert len({len(record["candidates"][0]) for record in out["steps"]}) > 1
    wrongs = [replace(reference, ends_when_sure=True), replace(reference, beta=30.0, hard=False)]
    wrongs += [replace(reference, worst=True)] if name == "tries are spent" else [replace(reference, rising=False)]
    for wrong in wrongs:
        assert wrong.write(world.again())[0] != text


def test_same_segments_with_ends_top_k_and_temperature(llm: Otter) -> None:
    rule = CARDS(0.8, entropy=UNSURE, max_tries=4, hard=True)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "seed": 4}
    out = complete(llm, rule, 200, **options)
    text, segments = Cards(0.8, entropy=UNSURE, tries=4, hard=True).write(World(llm, 200, **options))
    assert tokens_of(out) == text
    agree(out["steps"], segments)
    assert not all(record["accepted"] for record in out["steps"])


def test_segments_join_to_the_text(llm: Otter) -> None:
    out = complete(llm, CARDS(1.0, beta=0.3, entropy=UNSURE), 120)
    taken = [record["candidates"][record["choice"]] for record in out["steps"]]
    assert functools.reduce(operator.iadd, taken, []) == tokens_of(out)
    begins = [record["begin"] for record in out["steps"]]
    assert begins == np.cumsum([0, *map(len, taken)])[:-1].tolist()
    assert max(len(record["candidates"]) for record in out["steps"]) > 1


def test_hard_acceptance_is_at_the_threshold_or_above(llm: Otter) -> None:
    out = complete(llm, CARDS(0.0, entropy=UNSURE, hard=True, max_tries=6), 120, logit_bias=never_ending(llm))
    for record in out["steps"]:
        passed = np.asarray(record["rewards"]) >= record["thresholds"]
        if record["accepted"]:
            assert passed.tolist() == [False] * record["choice"] + [True]
        else:
            assert len(passed) == 7
            assert not passed[:-1].any()
            assert record["choice"] == int(np.argmax(record["rewards"]))


def test_threshold_rises_to_the_target_by_the_formula() -> None:
    rule = CARDS(8.5, alpha=0.25, n_tokens=100)
    first = 0.75 * -1.5 + 0.25 * 8.5
    assert rule.threshold(-1.5, 0) == pytest.approx(first)
    assert rule.threshold(-1.5, 30) == pytest.approx(first + 0.3 * (8.5 - first))
    assert rule.threshold(-1.5, 100) == rule.threshold(-1.5, 500) == pytest.approx(8.5)


def test_threshold_is_the_target_where_the_prompt_is_above_it() -> None:
    rule = CARDS(1.0, alpha=0.5, n_tokens=100)
    assert [rule.threshold(4.0, t) for t in (0, 50, 100, 300)] == [1.0] * 4


def test_acceptance_by_the_formula() -> None:
    soft, hard = CARDS(1.0, beta=0.5), CARDS(1.0, hard=True)
    assert soft.accept_probability(0.2, 0.6) == pytest.approx(math.exp(-0.8))
    assert soft.accept_probability(0.6, 0.6) == soft.accept_probability(7, 0.6) == 1
    assert soft.accept_probability(-1e6, 0.6) == 0
    assert [hard.accept_probability(reward, 0.6) for reward in (0.59, 0.6, 0.61)] == [0, 1, 1]


def test_a_higher_target_gives_a_higher_reward_for_more_tokens(llm: Otter) -> None:
    final, drawn = [], []
    for target in (-2.0, 2.0):
        outs = [complete(llm, CARDS(target, entropy=UNSURE, hard=True), 60, seed=seed) for seed in range(6)]
        final.append(np.mean([out["rewards"]["reward"] for out in outs]))
        drawn.append(sum(len(tokens) for out in outs for record in out["steps"] for tokens in record["candidates"]))
    assert final[1] > final[0] + 0.5
    assert drawn[1] > 2 * drawn[0]


def test_without_tries_or_rejections_it_is_plain_decoding(llm: Otter) -> None:
    plain = tokens_of(complete(llm, None, 80))
    assert CARDS(9.0, max_tries=0).is_noop
    assert tokens_of(complete(llm, CARDS(9.0, max_tries=0), 80)) == plain
    assert tokens_of(complete(llm, CARDS(-9.0, entropy=UNSURE), 80)) == plain
    assert tokens_of(complete(llm, CARDS(9.0, entropy=UNSURE), 80)) != plain


def test_segments_are_streamed(llm: Otter) -> None:
    options: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 11,
        "logit_bias": never_ending(llm),
    }
    rule = CARDS(-9.0, entropy=0.0, min_segment=5)
    steps = llm.generate(llm.tokenize(PROMPT, special=True), guidance=rule, **options)
    assert count_calls(llm, lambda: next(steps)) == 5
    assert count_calls(llm, lambda: [next(steps) for _ in range(4)]) == 0
    assert count_calls(llm, lambda: next(steps)) == 5


def test_stop_strings_end_a_segment_and_are_judged(llm: Otter) -> None:
    rule = CARDS(0.5, beta=0.3, entropy=UNSURE)
    free = complete(llm, rule, 80)
    stop = free["text"][12:14]
    out = complete(llm, rule, 80, stop=[stop])
    assert out["finish_reason"] == "stop"
    assert stop not in out["text"]
    shared = tokens_of(out)
    assert len(shared) < len(tokens_of(free))


def test_a_text_may_end_in_the_draw_that_was_kept(llm: Otter) -> None:
    """A bias makes ends frequent; the taken draw's reason is the text's."""
    bias = dict.fromkeys(ends_of(llm), 6.0)
    reasons = set()
    for seed in range(6):
        out = complete(llm, CARDS(3.0, entropy=UNSURE, hard=True, max_tries=3), 40, seed=seed, logit_bias=bias)
        world = World(llm, 40, seed=seed, bias=bias)
        text, segments = Cards(3.0, entropy=UNSURE, hard=True, tries=3).write(world)
        assert tokens_of(out) == text
        agree(out["steps"], segments)
        assert out["finish_reason"] == ("stop" if len(text) < 40 else "length")
        reasons.add(out["finish_reason"])
    assert "stop" in reasons


def test_rewards_of_another_model(llm: Otter) -> None:
    with open_exact(pair(seed=3, base_of=0)) as judge:
        out = complete(llm, CARDS(0.5, entropy=UNSURE, hard=True, max_tries=5), 60, reward_model=judge)
        prompt = llm.tokenize(PROMPT, special=True)
        before: list[int] = []
        for record in out["steps"]:
            expected = [judge.score([*prompt, *before, *tokens]).rewards[-1, 0] for tokens in record["candidates"]]
            np.testing.assert_allclose(record["rewards"], expected, atol=1e-4)
            before += record["candidates"][record["choice"]]
        assert before == tokens_of(out)


def test_errors_are_one_clear_line(llm: Otter) -> None:
    with refused(ConfigError, "CARDS", "target", "0.9-quantile"):
        CARDS()
    for name in ("target", "alpha", "beta", "entropy"):
        options: dict[str, Any] = {"target": 1.0, name: math.nan}
        with refused(ConfigError, "CARDS", name, math.nan):
            CARDS(**options)
    wrong: list[tuple[dict[str, Any], tuple[object, ...]]] = [
        ({"alpha": 1.5}, ("alpha", 1.5, 0, 1)),
        ({"alpha": -0.1}, ("alpha", -0.1, 0, 1)),
        ({"beta": 0.0}, ("beta", 0.0, "hard=True")),
        ({"beta": -1}, ("beta", -1, "hard=True")),
        ({"min_segment": 0}, ("min_segment", 0, 1)),
        ({"min_segment": 9, "max_segment": 8}, ("max_segment", 8, 9)),
        ({"n_tokens": 0}, ("n_tokens", 0, 1)),
        ({"max_tries": -1}, ("max_tries", -1, 0)),
    ]
    for options, names in wrong:
        with refused(ConfigError, "CARDS", *names):
            CARDS(1.0, **options)
    with refused(ConfigError, "'kindness'", "reward"):
        complete(llm, CARDS(1.0, label="kindness"), 5)


def test_a_context_that_is_full() -> None:
    """All draws have the same room, whatever was drawn before, and rewards are those of the text."""
    with open_exact(n_ctx=254, n_seq_max=1) as llm:
        rule = CARDS(9.0, entropy=99.0, max_segment=60, max_tries=4, hard=True)
        out = complete(llm, rule, None, logit_bias=never_ending(llm))
        lengths = [{len(tokens) for tokens in record["candidates"]} for record in out["steps"]]
        prompt = llm.tokenize(PROMPT, special=True)
        assert lengths == [{60}, {60}, {60}, {254 - len(prompt) - 180}]
        assert out["finish_reason"] == "length"
        score = llm.score([*prompt, *tokens_of(out)])
        np.testing.assert_allclose(out["rewards"]["token_rewards"], score.rewards[len(prompt) :], atol=1e-4)
