"""Guidance by a vocabulary head against its formula, in both orders of cut and bonus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_gguf import Candidates, ConfigError, Otter, Signal, Vocabulary
from otter_gguf.guidance.base import State
from otter_gguf.steps import Float32, Int32
from tests.guidance.reference import (
    END,
    Float64,
    Int64,
    Text,
    best,
    guided_tokens,
    open_exact,
    token_table,
    vocabulary_pair,
    write,
)
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

N, K = 200, 12


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact()


class Rule:
    """logit + weight * clip(q), cut to the best K by the logits or by the sum."""

    def __init__(
        self,
        weight: float,
        *,
        bonus_first: bool,
        clip: tuple[float, float] | None = None,
        head: str = "next",
        forbidden: tuple[int, ...] = (END,),
    ) -> None:
        self.weight, self.bonus_first, self.clip, self.forbidden = weight, bonus_first, clip, forbidden
        self.index = ("next", "second").index(head)
        files = vocabulary_pair() if head == "next" else vocabulary_pair(others=("second",))
        self.table = token_table(files.otter, head)

    def __call__(self, text: Text) -> tuple[Int64, Float64]:
        q = text.vocabulary(self.table, self.index)
        if self.clip is not None:
            q = np.minimum(np.maximum(q, self.clip[0]), self.clip[1])
        sums = text.logits + self.weight * q
        tokens = best(sums if self.bonus_first else text.logits, K, self.forbidden)
        return tokens, sums[tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("options", "bonus_first"),
    [
        ({}, False),
        ({"center": True}, False),
        ({"order": "bonus_first"}, True),
        ({"order": "bonus_first", "clip": (-0.5, 0.5)}, True),
    ],
    ids=["cut first", "centred", "bonus first", "clipped"],
)
def test_tokens_are_those_of_the_definition(
    llm: Otter, options: dict[str, Any], bonus_first: bool, temperature: float
) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Vocabulary(2.0, K, **options)
    tokens = guided_tokens(llm, prompt, N, temperature=temperature, seed=3, guidance=policy)
    assert len(tokens) == N
    rule = Rule(2.0, bonus_first=bonus_first, clip=options.get("clip"))
    assert write(Text(llm, prompt), rule, N, temperature, 3) == tokens


def test_texts_end_where_those_of_the_definition_do(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Vocabulary(2.0, K, order="bonus_first")
    lengths = []
    for seed in range(4):
        tokens = guided_tokens(llm, prompt, N, temperature=1, seed=seed, guidance=policy, logit_bias={})
        rule = Rule(2.0, bonus_first=True, forbidden=())
        assert write(Text(llm, prompt), rule, N, 1, seed) == tokens
        lengths.append(len(tokens))
    assert 0 < min(lengths) < N


def test_other_definitions_give_other_tokens(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=Vocabulary(2.0, K))
    wrong = [
        Rule(-2.0, bonus_first=False),
        Rule(2.0, bonus_first=True),
        Rule(2.0, bonus_first=False, clip=(-0.5, 0.5)),
    ]
    for rule in wrong:
        assert write(Text(llm, prompt), rule, 60, 0, 0) != tokens


def test_a_named_head_guides() -> None:
    files = vocabulary_pair(others=("second",))
    with open_exact(files) as llm:
        prompt = llm.tokenize(TEXT)
        tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=Vocabulary(2.0, K, head="second"))
        assert write(Text(llm, prompt), Rule(2.0, bonus_first=False, head="second"), 60, 0, 0) == tokens
        other = guided_tokens(llm, prompt, 60, temperature=0, guidance=Vocabulary(2.0, K, head="next"))
        assert other != tokens
        with refused(ConfigError, "vocabulary head", "next, second"):
            llm.create_completion(TEXT, guidance=Vocabulary())


@pytest.mark.parametrize("order", ["cut_first", "bonus_first"])
def test_weight_zero_is_plain_decoding(llm: Otter, order: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    plain = llm.create_completion(TEXT, **options)["choices"]
    assert llm.create_completion(TEXT, guidance=Vocabulary(0.0, order=order), **options)["choices"] == plain
    assert llm.create_completion(TEXT, guidance=Vocabulary(2.0, order=order), **options)["choices"] != plain


def test_only_the_winner_is_fed(llm: Otter) -> None:
    """A forward pass of one token a step: the text's own, however many candidates there are."""
    calls = []
    for guidance in (None, Vocabulary(2.0)):
        before = llm.context.timing()["calls"]
        llm.create_completion(TEXT, max_tokens=20, temperature=0, guidance=guidance)
        calls.append(llm.context.timing()["calls"] - before)
    assert calls[0] == calls[1] > 0


# ---- the formula -----------------------------------------------------------------------------------------------


def step(scores: list[float]) -> Candidates:
    logits = np.arange(len(scores), 0, -1).astype(np.float32)
    return Candidates(np.arange(len(scores), dtype=np.int32), logits, vocabulary=np.asarray(scores, np.float32))


def test_scores() -> None:
    np.testing.assert_array_equal(Vocabulary(2.0).scores(step([0.0, 1.0, 3.0])), [3.0, 4.0, 7.0])
    np.testing.assert_array_equal(Vocabulary(2.0, clip=(0.5, 2)).scores(step([0.0, 1.0, 3.0])), [4.0, 4.0, 5.0])
    centred = Vocabulary(3.0, center=True).scores(step([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(centred, [-1.0, 1.0, 6.0], atol=1e-6)


def test_the_bonus_is_of_the_named_head_over_the_vocabulary() -> None:
    asked = []

    def scores(head: str | None, tokens: Int32 | None) -> Float32:
        asked.append((head, tokens))
        return np.asarray([-1.0, 0.5, 2.0], np.float32)

    state = State(np.zeros(3, np.float32), np.empty(0, np.float32), 0, scores)
    assert Vocabulary(2.0, head="x").bonus(state) is None
    bonus = Vocabulary(2.0, head="x", order="bonus_first", clip=(0.0, 1.0)).bonus(state)
    assert asked == [("x", None)]
    np.testing.assert_array_equal(np.asarray(bonus), [0.0, 1.0, 2.0])


def test_what_is_asked_for(llm: Otter) -> None:
    policy = Vocabulary(head="next")
    assert (policy.signal(), policy.vocabulary_head(), policy.reads(("reward",))) == (Signal.VOCABULARY, "next", ())
    assert (Vocabulary(0).is_noop, policy.is_noop) == (True, False)
    with refused(ConfigError, "vocabulary head", "'x'", "next"):
        llm.create_completion(TEXT, guidance=Vocabulary(head="x"))
    with open_exact(pair()) as plain, refused(ConfigError, "vocabulary head", "--vocabulary-rank"):
        plain.create_completion(TEXT, guidance=Vocabulary())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"weight": float("nan")}, ("weight", float("nan"))),
        ({"n_candidates": -1}, ("n_candidates", -1, 1)),
        ({"order": "sum"}, ("order", "'sum'", "cut_first, bonus_first")),
        ({"clip": (1.0, 0.0)}, ("clip", (1.0, 0.0))),
        ({"clip": (1.0,)}, ("clip", (1.0,))),
        ({"clip": (0.0, float("nan"))}, ("clip[1]", float("nan"))),
    ],
)
def test_wrong_policies_are_refused(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "Vocabulary", *names):
        Vocabulary(**options)
