"""Threshold: the same tokens and refusals as its formula, for each action; its cost; messages; errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.guidance.threshold import Threshold
from tests.guidance.search_reference import (
    PROMPT,
    Limit,
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


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as model:
        yield model


def agree(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """All refusals are the same."""
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        assert record["kind"] == "token"
        for name in ("step", "candidates", "choice"):
            assert record[name] == other[name], name
        np.testing.assert_allclose(record["rewards"], other["rewards"], atol=1e-4)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("action", ["resample", "replace"])
def test_same_tokens_as_the_formula(llm: Otter, action: Any, temperature: float) -> None:
    bias = never_ending(llm)
    rule = Threshold(-1.0, action, n_candidates=16, tries=30)
    out = complete(llm, rule, 200, logit_bias=bias, temperature=temperature)
    world = World(llm, 200, bias=bias, temperature=temperature)
    reference = Limit(-1.0, action, n_candidates=16, tries=30)
    text, refusals, reason = reference.write(world)
    assert tokens_of(out) == text
    assert len(text) == 200
    agree(out["steps"], refusals)
    assert len(refusals) > 10
    assert out["finish_reason"] == reason == "length"
    assert min(reward for (reward,) in out["rewards"]["token_rewards"]) >= -1.0
    wrong = replace(reference, worst=True, limit=-9.0) if action == "replace" else replace(reference, tries=1)
    assert wrong.write(world.again())[0] != text
    assert replace(reference, below=True).write(world.again())[0] != text


@pytest.mark.parametrize("action", ["resample", "replace"])
def test_texts_end_where_no_token_passes(llm: Otter, action: Any) -> None:
    reasons = set()
    for seed in range(8):
        out = complete(llm, Threshold(-0.2, action, n_candidates=6, tries=4), 100, seed=seed)
        text, refusals, reason = Limit(-0.2, action, n_candidates=6, tries=4).write(World(llm, 100, seed=seed))
        assert tokens_of(out) == text
        agree(out["steps"], refusals)
        assert out["finish_reason"] == reason
        reasons.add(reason)
    assert "content_filter" in reasons


def test_stop_leaves_the_token_out(llm: Otter) -> None:
    plain = complete(llm, None, 200, logit_bias=never_ending(llm))
    rewards = [reward for (reward,) in plain["rewards"]["token_rewards"]]
    limit = sorted(rewards)[3]
    first = next(index for index, reward in enumerate(rewards) if reward < limit)
    out = complete(llm, Threshold(limit), 200, logit_bias=never_ending(llm))
    assert tokens_of(out) == tokens_of(plain)[:first]
    assert first > 5
    assert out["finish_reason"] == "content_filter"
    (record,) = out["steps"]
    assert record["step"] == first
    assert record["candidates"] == tokens_of(plain)[first : first + 1]
    assert record["rewards"] == pytest.approx(rewards[first : first + 1])
    assert record["choice"] is None
    text, refusals, reason = Limit(limit).write(World(llm, 200, bias=never_ending(llm)))
    assert (text, reason) == (tokens_of(out), "content_filter")
    agree(out["steps"], refusals)


def test_the_limit_itself_passes(llm: Otter) -> None:
    plain = complete(llm, None, 40, temperature=0)
    lowest = min(reward for (reward,) in plain["rewards"]["token_rewards"])
    assert tokens_of(complete(llm, Threshold(lowest), 40, temperature=0)) == tokens_of(plain)
    above = float(np.nextafter(np.float32(lowest), np.float32(9)))
    assert complete(llm, Threshold(above), 40, temperature=0)["finish_reason"] == "content_filter"


def counted(llm: Otter, rule: Threshold | None, n_tokens: int, **options: Any) -> tuple[Any, float]:
    """A completion, and the batches that it took."""
    outs: list[Any] = []
    cost = count_calls(llm, lambda: outs.append(complete(llm, rule, n_tokens, **options)))
    return outs[0], cost


@pytest.mark.parametrize("action", ["stop", "resample", "replace"])
def test_without_refusals_it_costs_and_gives_plain_decoding(llm: Otter, action: Any) -> None:
    plain, cost = counted(llm, None, 100)
    guarded, cost_guarded = counted(llm, Threshold(-99.0, action), 100)
    assert cost_guarded == cost
    assert tokens_of(guarded) == tokens_of(plain)
    assert guarded["finish_reason"] == plain["finish_reason"]
    assert guarded["rewards"] == plain["rewards"]
    assert guarded["steps"] == []


@pytest.mark.parametrize("action", ["resample", "replace"])
def test_a_refusal_costs_a_batch_for_each_try(llm: Otter, action: Any) -> None:
    bias = never_ending(llm)
    plain = counted(llm, None, 60, logit_bias=bias)[1]
    out, cost = counted(llm, Threshold(-1.0, action, n_candidates=16, tries=30), 60, logit_bias=bias)
    tries = [1 if action == "replace" else len(record["candidates"]) - 1 for record in out["steps"]]
    assert cost == plain + sum(tries) > plain


def test_message_ends_a_stopped_text_and_no_other(llm: Otter) -> None:
    stopped = complete(llm, Threshold(0.0), 50)
    out = complete(llm, Threshold(0.0, message="Sorry."), 50)
    assert out["text"] == stopped["text"] + "Sorry."
    assert out["finish_reason"] == stopped["finish_reason"] == "content_filter"
    tokens = tokens_of(out)[len(tokens_of(stopped)) :]
    as_tokens = complete(llm, Threshold(0.0, message=tokens), 50)
    assert tokens_of(as_tokens) == tokens_of(out)
    whole = complete(llm, Threshold(-99.0, message="Sorry."), 50)
    assert tokens_of(whole) == tokens_of(complete(llm, None, 50))


def test_message_stays_within_max_tokens(llm: Otter) -> None:
    out = complete(llm, Threshold(99.0, message="A long message."), 3)
    assert len(tokens_of(out)) == 3
    assert out["finish_reason"] == "content_filter"
    assert "A long message.".startswith(out["text"])


def test_binding_takes_off_what_begins_every_text() -> None:
    rule = Threshold(0.0, message="no").with_tokens(lambda text: [1, *text.encode()])
    assert rule == Threshold(0.0, message=tuple(b"no"))
    assert Threshold(0.0, message="no").with_tokens(lambda text: list(text.encode())) == rule
    assert rule.with_tokens(lambda text: [0]) == rule


def test_tokens_are_streamed_one_by_one(llm: Otter) -> None:
    prompt = llm.tokenize(PROMPT, special=True)
    steps = llm.generate(prompt, guidance=Threshold(-99.0), temperature=1.0, seed=11)
    assert [count_calls(llm, lambda: next(steps)) for _ in range(3)] == [1, 1, 1]


def test_an_end_that_is_drawn_again_ends_the_text(llm: Otter) -> None:
    """With a strong bias the text ends at once where a token is refused, for its own reason."""
    bias = dict.fromkeys(ends_of(llm), 9.0)
    reasons = set()
    for seed in range(12):
        out = complete(llm, Threshold(0.5, "resample"), 40, seed=seed, logit_bias=bias)
        text, refusals, reason = Limit(0.5, "resample").write(World(llm, 40, seed=seed, bias=bias))
        assert (tokens_of(out), out["finish_reason"]) == (text, reason)
        agree(out["steps"], refusals)
        reasons.add((reason, bool(refusals)))
    assert ("stop", True) in reasons


def test_stop_strings_and_logit_bias(llm: Otter) -> None:
    rule = Threshold(-1.0, "replace", n_candidates=16)
    free = complete(llm, rule, 60, logit_bias=never_ending(llm))
    stop = free["text"][15:17]
    out = complete(llm, rule, 60, logit_bias=never_ending(llm), stop=[stop])
    assert out["text"] == free["text"][: free["text"].index(stop)]
    assert out["finish_reason"] == "stop"
    forbidden = dict.fromkeys(tokens_of(free)[:20], -1e9)
    other = complete(llm, rule, 60, logit_bias={**never_ending(llm), **forbidden})
    assert not set(forbidden) & set(tokens_of(other))
    assert other["steps"]


@pytest.mark.parametrize("action", ["resample", "replace"])
def test_rewards_of_another_model(llm: Otter, action: Any) -> None:
    with open_exact(pair(seed=3, base_of=0)) as judge:
        prompt = llm.tokenize(PROMPT, special=True)

        def judged(rule: Threshold | None) -> tuple[Any, Any]:
            out = complete(llm, rule, 40, logit_bias=never_ending(llm), **({"reward_model": judge} if rule else {}))
            return out, judge.score([*prompt, *tokens_of(out)]).rewards[len(prompt) :, 0]

        limit = float(np.median(judged(None)[1]))
        out, rewards = judged(Threshold(limit, action, n_candidates=16, tries=30))
        assert len(rewards) == 40
        assert rewards.min() >= limit - 1e-4
        assert len(out["steps"]) > 5


def test_errors_are_one_clear_line(llm: Otter) -> None:
    for limit in (math.nan, math.inf, None):
        with refused(ConfigError, "Threshold", "limit", limit):
            Threshold(limit)  # type: ignore[arg-type]
    with refused(ConfigError, "Threshold", "action", "'halt'", "stop, resample, replace"):
        Threshold(0.0, "halt")  # type: ignore[arg-type]
    for options in ({"n_candidates": -1}, {"tries": 0}):
        ((name, value),) = options.items()
        with refused(ConfigError, "Threshold", name, value, 1):
            Threshold(0.0, **options)  # type: ignore[arg-type]
    with refused(ConfigError, "Threshold", "message", ["a"]):
        Threshold(0.0, message=["a"])  # type: ignore[list-item]
    with refused(ConfigError, "Threshold", "message", 5000, 320):
        complete(llm, Threshold(0.0, message=[5000]), 5)
    with refused(ConfigError, "'kindness'", "reward"):
        complete(llm, Threshold(0.0, label="kindness"), 5)
    with refused(ConfigError, "Threshold", "n_seq_max=40", "-np", 16):
        complete(llm, Threshold(0.0, "replace", n_candidates=40), 5)
