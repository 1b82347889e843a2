"""The gate against its formula, around policies of every kind of signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Contrast, Gated, Otter, Policy, Signal, Vocabulary
from otter_gguf.guidance.base import State
from tests.guidance.reference import (
    Float64,
    Int64,
    Text,
    best,
    entropy,
    guided_tokens,
    open_exact,
    softmax,
    token_table,
    vocabulary_pair,
    write,
)
from tests.refusals import refused
from tests.synthetic_models import TEXT

N, K = 200, 8


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact()


class Rule:
    """logit + 3 * reward where the text is unsure, else the logit alone. Counts the guided steps."""

    def __init__(self, least_entropy: float, below: float = 2.0, *, of_candidates: bool = False) -> None:
        self.least_entropy, self.below, self.of_candidates = least_entropy, below, of_candidates
        self.n_guided = 0

    def __call__(self, text: Text) -> tuple[Int64, Float64]:
        logits = text.logits
        tokens = best(logits, K)
        h = entropy(logits[best(logits, K, ())] if self.of_candidates else logits)
        if h < self.least_entropy or softmax(logits).max() >= self.below:
            return tokens, logits[tokens]
        self.n_guided += 1
        return tokens, logits[tokens] + 3.0 * self.bonus(text, tokens)

    def bonus(self, text: Text, tokens: Int64) -> Float64:
        """Of the candidates."""
        return text.reward(tokens)


class VocabularyRule(Rule):
    """By the vocabulary head."""

    table = token_table(vocabulary_pair().otter)

    def bonus(self, text: Text, tokens: Int64) -> Float64:
        return text.vocabulary(self.table)[tokens]


class ContrastRule(Rule):
    """Against another prompt."""

    def __init__(self, least_entropy: float, other: Text) -> None:
        super().__init__(least_entropy)
        self.other = other

    def bonus(self, text: Text, tokens: Int64) -> Float64:
        difference: Float64 = text.logits[tokens] - self.other.logits[tokens]
        return difference


# Near the medians of the toy, whose next tokens are almost equally likely: ln 320 is 5.77, ln 8 is 2.08.
THRESHOLD, OF_CANDIDATES, PROBABILITY = 5.315, 2.045, 0.03


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"entropy": THRESHOLD}, Rule(THRESHOLD)),
        ({"probability": PROBABILITY}, Rule(0, PROBABILITY)),
        ({"entropy": THRESHOLD, "probability": PROBABILITY}, Rule(THRESHOLD, PROBABILITY)),
        ({"entropy": OF_CANDIDATES, "support": "candidates"}, Rule(OF_CANDIDATES, of_candidates=True)),
    ],
    ids=["entropy", "probability", "both", "candidates"],
)
def test_tokens_are_those_of_the_definition(
    llm: Otter, options: dict[str, Any], rule: Rule, temperature: float
) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Gated(ARGS(3.0, K), **options)
    tokens = guided_tokens(llm, prompt, N, temperature=temperature, seed=3, guidance=policy)
    rule.n_guided = 0
    assert len(tokens) == N
    assert write(Text(llm, prompt), rule, N, temperature, 3) == tokens
    assert 0.1 * N < rule.n_guided < 0.9 * N


def test_around_a_vocabulary_head(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Gated(Vocabulary(3.0, K), entropy=THRESHOLD)
    tokens = guided_tokens(llm, prompt, N, temperature=1, seed=3, guidance=policy)
    rule = VocabularyRule(THRESHOLD)
    assert write(Text(llm, prompt), rule, N, 1, 3) == tokens
    assert 0.1 * N < rule.n_guided < 0.9 * N


def test_around_a_contrast(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Gated(Contrast("Quite another text.", weight=3.0, n_candidates=K), entropy=THRESHOLD)
    tokens = guided_tokens(llm, prompt, N, temperature=1, seed=3, guidance=policy)
    other = Text(llm, llm.tokenize("Quite another text."))
    rule = ContrastRule(THRESHOLD, other)
    assert write(Text(llm, prompt), rule, N, 1, 3, [other]) == tokens
    assert 0.1 * N < rule.n_guided < 0.9 * N


def test_other_definitions_give_other_tokens(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=Gated(ARGS(3.0, K), entropy=THRESHOLD))
    wrong = [Rule(0), Rule(99), Rule(THRESHOLD, of_candidates=True), Rule(0, PROBABILITY)]
    for rule in wrong:
        assert write(Text(llm, prompt), rule, 60, 0, 0) != tokens


def test_an_open_gate_is_the_policy_and_a_shut_one_plain_decoding(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    policy = ARGS(3.0, K)
    args = guided_tokens(llm, prompt, 60, temperature=0, guidance=policy)
    plain = guided_tokens(llm, prompt, 60, temperature=0)
    assert args != plain
    for gate in (Gated(policy, entropy=0.0), Gated(policy, probability=1.0)):
        assert guided_tokens(llm, prompt, 60, temperature=0, guidance=gate) == args
    for gate in (Gated(policy, entropy=6.0), Gated(policy, probability=0.0)):
        assert guided_tokens(llm, prompt, 60, temperature=0, guidance=gate) == plain


def test_weight_zero_is_plain_decoding(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    plain = llm.create_completion(TEXT, **options)["choices"]
    assert llm.create_completion(TEXT, guidance=Gated(ARGS(0), entropy=1.0), **options)["choices"] == plain


def test_records_say_which_steps_are_guided(llm: Otter) -> None:
    policy = Gated(ARGS(3.0, K), entropy=THRESHOLD)
    out = llm.create_completion(TEXT, max_tokens=40, temperature=0, guidance=policy, step_records=True)
    steps: Any = out["choices"][0]["steps"]
    text = Text(llm, llm.tokenize(TEXT))
    for step in steps:
        assert step["guided"] == (entropy(text.logits) >= THRESHOLD) == ("rewards" in step)
        text.append(step["token"])
    assert {step["guided"] for step in steps} == {True, False}


# ---- the gate alone --------------------------------------------------------------------------------------------


def state(probabilities: list[float]) -> State:
    return State(np.log(np.asarray(probabilities, np.float32)), np.empty(0, np.float32), 0)


def test_when_it_opens() -> None:
    unsure, sure = state([0.25] * 4), state([0.97, 0.01, 0.01, 0.01])
    assert Gated(ARGS(), entropy=1.38).applies_to(unsure)
    assert not Gated(ARGS(), entropy=1.39).applies_to(unsure)
    assert not Gated(ARGS(), entropy=1.0).applies_to(sure)
    assert Gated(ARGS(), probability=0.26).applies_to(unsure)
    assert not Gated(ARGS(), probability=0.25).applies_to(unsure)
    assert not Gated(ARGS(), entropy=0.0, probability=0.5).applies_to(sure)
    # two candidates of the four: ln 2
    assert Gated(ARGS(n_candidates=2), entropy=0.69, support="candidates").applies_to(unsure)
    assert not Gated(ARGS(n_candidates=2), entropy=0.70, support="candidates").applies_to(unsure)
    assert Gated(ARGS(n_candidates=9), entropy=1.38, support="candidates").applies_to(unsure)


def test_gates_in_a_row_must_all_open() -> None:
    inner = Gated(ARGS(), probability=0.3)
    assert Gated(inner, entropy=1.0).applies_to(state([0.25] * 4))
    assert not Gated(inner, entropy=1.0).applies_to(state([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    "policy",
    [ARGS(label="b", n_candidates=7), Vocabulary(head="x", order="bonus_first"), Contrast([1, 2]), ARGS(0)],
)
def test_all_else_is_the_policys(policy: Policy) -> None:
    gated = Gated(policy, entropy=1.0)
    assert gated.n_candidates == policy.n_candidates
    assert gated.signal() is policy.signal()
    assert gated.is_noop == policy.is_noop
    assert gated.reads(("a", "b")) == policy.reads(("a", "b"))
    assert gated.vocabulary_head() == policy.vocabulary_head()
    assert gated.auxiliary_streams() == policy.auxiliary_streams()


def test_texts_are_bound_within() -> None:
    bound = Gated(Contrast("ab"), entropy=1.0).with_tokens(lambda text: [ord(letter) for letter in text])
    assert isinstance(bound, Gated)
    assert bound.policy == Contrast([97, 98])
    assert bound.signal() is Signal.NONE


def test_what_the_policy_refuses_is_refused(llm: Otter) -> None:
    with refused(ConfigError, "'x'", "reward"):
        llm.create_completion(TEXT, guidance=Gated(ARGS(label="x"), entropy=1.0))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("entropy", "probability")),
        ({"entropy": float("nan")}, ("entropy", float("nan"))),
        ({"probability": float("inf")}, ("probability", float("inf"))),
        ({"entropy": 1.0, "support": "all"}, ("support", "'all'", "vocabulary, candidates")),
        ({"probability": 0.5, "support": "candidates"}, ("support", "'candidates'", "entropy")),
        ({"policy": BestOfN(2), "entropy": 1.0}, ("policy", BestOfN(2), "ARGS()")),
    ],
)
def test_wrong_gates_are_refused(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "Gated", *names):
        Gated(**{"policy": ARGS(), **options})
