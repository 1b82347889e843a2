"""RAD against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_gguf import RAD, Candidates, ConfigError, Otter, Signal
from otter_gguf.guidance.base import Capabilities
from tests.guidance.reference import Float64, Int64, Rule, Text, best, guided_tokens, open_exact, write
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

N, K = 200, 8


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact(pair())


def rad_rule(beta: float, low: float, high: float, *, inverse: bool = False) -> Rule:
    """Top-k of the logits, then logit + beta * rho."""

    def rule(text: Text) -> tuple[Int64, Float64]:
        logits = text.logits
        tokens = best(logits, K)
        rho = np.minimum(np.maximum(text.reward(tokens), low), high)
        return tokens, logits[tokens] + beta * (1 - rho if inverse else rho)

    return rule


@pytest.mark.parametrize(
    ("policy", "rule", "temperature"),
    [
        (RAD(4.0, K), rad_rule(4.0, 0, 1), 0.0),
        (RAD(4.0, K), rad_rule(4.0, 0, 1), 1.0),
        (RAD(4.0, K, low=-0.5, high=0.5, inverse=True), rad_rule(4.0, -0.5, 0.5, inverse=True), 1.0),
    ],
    ids=["greedy", "stochastic", "inverse"],
)
def test_tokens_are_those_of_the_definition(llm: Otter, policy: RAD, rule: Rule, temperature: float) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, N, temperature=temperature, seed=3, guidance=policy)
    assert len(tokens) == N
    assert write(Text(llm, prompt), rule, N, temperature, 3) == tokens


@pytest.mark.parametrize(
    "wrong",
    [rad_rule(4.0, -100, 100), rad_rule(-4.0, 0, 1), rad_rule(4.0, 0, 1, inverse=True)],
    ids=["without the clip", "sign", "inverse"],
)
def test_other_definitions_give_other_tokens(llm: Otter, wrong: Rule) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=RAD(4.0, K))
    assert write(Text(llm, prompt), wrong, 60, 0, 0) != tokens


def test_beta_zero_is_plain_decoding(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    plain = llm.create_completion(TEXT, **options)["choices"]
    assert llm.create_completion(TEXT, guidance=RAD(0.0), **options)["choices"] == plain
    assert llm.create_completion(TEXT, guidance=RAD(4.0, K), **options)["choices"] != plain


def test_scores() -> None:
    rewards = np.asarray([[-2.0], [0.25], [7.0]], np.float32)
    step = Candidates(np.arange(3, dtype=np.int32), np.asarray([3.0, 2.0, 1.0], np.float32), ("r",), rewards)
    np.testing.assert_array_equal(RAD(10.0).scores(step), [3.0, 4.5, 11.0])
    np.testing.assert_array_equal(RAD(10.0, inverse=True).scores(step), [13.0, 9.5, 1.0])
    np.testing.assert_array_equal(RAD(10.0, low=-1, high=2).scores(step), [-7.0, 4.5, 21.0])
    np.testing.assert_array_equal(rewards[:, 0], [-2.0, 0.25, 7.0])


def test_what_is_asked_for(llm: Otter) -> None:
    assert RAD().signal() is Signal.VALUE
    assert (RAD(0).is_noop, RAD().is_noop) == (True, False)
    RAD(label="b").check(Capabilities(("a", "b")))
    with refused(ConfigError, "'x'", "reward"):
        llm.create_completion(TEXT, guidance=RAD(label="x"))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"beta": float("nan")}, ("beta", float("nan"))),
        ({"low": float("-inf")}, ("low", float("-inf"))),
        ({"n_candidates": -1}, ("n_candidates", -1, 1)),
        ({"low": 1, "high": 1}, ("low", "high", 1)),
    ],
)
def test_wrong_policies_are_refused(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "RAD", *names):
        RAD(**options)
