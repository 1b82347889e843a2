"""Ensembles of rewards: the combinations, and where their members come from."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, RAD, ConfigError, Ensemble, Otter
from otter_gguf.guidance.base import Capabilities, check_reward, labels_of, pick_reward
from tests.guidance.reference import Float64, Int64, Rule, Text, best, guided_tokens, open_exact, write
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

N, K = 200, 6
KIND, TRUE = "reward.kind", "reward.true"
REWARDS = np.asarray([[1.0, 4.0], [-2.0, 0.5], [3.0, -1.0]], np.float32)


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact(pair(labels=("kind", "true")))


def ensemble_rule(combination: str, weights: tuple[float, float], caution: float = 1.0) -> Rule:
    """logit + 3 * the combination of the weighted rewards."""

    def combined(weighted: Float64) -> Float64:
        mean = weighted.mean(axis=1)
        variance = ((weighted - mean[:, np.newaxis]) ** 2).mean(axis=1)
        values: dict[str, Float64] = {
            "sum": weighted[:, 0] + weighted[:, 1],
            "mean": (weighted[:, 0] + weighted[:, 1]) / sum(weights),
            "min": np.minimum(weighted[:, 0], weighted[:, 1]),
            "cautious": mean - caution * np.sqrt(variance),
        }
        return values[combination]

    def rule(text: Text) -> tuple[Int64, Float64]:
        logits = text.logits
        tokens = best(logits, K)
        return tokens, logits[tokens] + 3.0 * combined(text.rewards(tokens) * np.asarray(weights))

    return rule


@pytest.mark.parametrize("combination", ["sum", "mean", "min", "cautious"])
def test_tokens_are_those_of_the_definition(llm: Otter, combination: Any) -> None:
    prompt = llm.tokenize(TEXT)
    # in another order than the model's labels
    label = Ensemble({TRUE: 1.5, KIND: 0.5}, combination, caution=2.0)
    tokens = guided_tokens(llm, prompt, N, temperature=1, seed=3, guidance=ARGS(3.0, K, label=label))
    assert len(tokens) == N
    assert write(Text(llm, prompt), ensemble_rule(combination, (0.5, 1.5), 2.0), N, 1, 3) == tokens


def test_other_definitions_give_other_tokens(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    label = Ensemble({KIND: 0.5, TRUE: 1.5})
    tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=ARGS(3.0, K, label=label))
    for wrong in (
        ensemble_rule("sum", (1.5, 0.5)),
        ensemble_rule("min", (0.5, 1.5)),
        ensemble_rule("sum", (-0.5, -1.5)),
    ):
        assert write(Text(llm, prompt), wrong, 60, 0, 0) != tokens


def test_one_member_is_its_label(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = [
        guided_tokens(llm, prompt, 40, temperature=0, guidance=RAD(5.0, K, label=label))
        for label in (KIND, Ensemble({KIND: 1.0}), Ensemble({KIND: 1.0}, "cautious"), TRUE)
    ]
    assert tokens[0] == tokens[1] == tokens[2] != tokens[3]


def test_members_may_be_of_several_reward_models(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    label = Ensemble({"a:reward": 2.0, "b:reward": 1.0})

    def rule_of(texts: list[Text], weights: tuple[float, float]) -> Rule:
        def rule(text: Text) -> tuple[Int64, Float64]:
            tokens = best(text.logits, K)
            rewards = [weight * reader.reward(tokens) for weight, reader in zip(weights, texts, strict=True)]
            return tokens, text.logits[tokens] + 2.0 * (rewards[0] + rewards[1])

        return rule

    with open_exact(pair(seed=1)) as a, open_exact(pair(seed=2)) as b:
        tokens = guided_tokens(
            llm, prompt, 60, temperature=1, seed=3, guidance=ARGS(2.0, K, label=label), reward_model={"a": a, "b": b}
        )
        for weights, same in (((2.0, 1.0), True), ((1.0, 2.0), False)):
            texts = [Text(a, prompt), Text(b, prompt)]
            assert (write(Text(llm, prompt), rule_of(texts, weights), 60, 1, 3, texts) == tokens) == same


# ---- the combinations ------------------------------------------------------------------------------------------


def test_combinations() -> None:
    weights = {"a": 2.0, "b": -1.0}
    np.testing.assert_allclose(Ensemble(weights).combine(REWARDS), [-2.0, -4.5, 7.0])
    np.testing.assert_allclose(Ensemble(weights, "mean").combine(REWARDS), [-2.0, -4.5, 7.0])
    np.testing.assert_allclose(Ensemble({"a": 3, "b": 1}, "mean").combine(REWARDS), [1.75, -1.375, 2.0])
    np.testing.assert_allclose(Ensemble(weights, "min").combine(REWARDS), [-4.0, -4.0, 1.0])
    # members 2 and -4: mean -1, deviation 3
    cautious = Ensemble(weights, "cautious", caution=0.5).combine(REWARDS)
    np.testing.assert_allclose(cautious, [-1 - 1.5, -2.25 - 0.875, 3.5 - 1.25])
    assert cautious.dtype == np.float32


def test_members_are_found_by_label() -> None:
    labels = ("x", "a", "b")
    rewards = np.concatenate([np.full((3, 1), np.nan, np.float32), REWARDS], axis=1)
    np.testing.assert_array_equal(pick_reward(rewards, labels, Ensemble({"b": 1.0, "a": 10.0})), [14.0, -19.5, 29.0])
    assert labels_of(Ensemble({"b": 1.0, "a": 10.0}), labels) == ("b", "a")


def test_a_label_that_is_not_there_is_named(llm: Otter) -> None:
    check_reward(Capabilities(("a", "b")), Ensemble({"b": 1.0}))
    with refused(ConfigError, "'x'", f"{KIND}, {TRUE}"):
        llm.create_completion(TEXT, guidance=ARGS(label=Ensemble({KIND: 1.0, "x": 1.0})))


def test_weights_cannot_be_changed_later() -> None:
    given = {"a": 1.0}
    ensemble = Ensemble(given)
    given["a"] = 2.0
    assert dict(ensemble.weights) == {"a": 1.0}
    with pytest.raises(TypeError):
        ensemble.weights["a"] = 2.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("weights", "options", "names"),
    [
        ({}, {}, ("weights", {})),
        ({"a": float("nan")}, {}, ("weights", {"a": float("nan")})),
        ({"a": 1}, {"combination": "max"}, ("combination", "'max'", "sum, mean, min, cautious")),
        ({"a": 1, "b": -1}, {"combination": "mean"}, ("weights", "mean", 0)),
        ({"a": 1}, {"caution": float("inf")}, ("caution", float("inf"))),
    ],
)
def test_wrong_ensembles_are_refused(
    weights: dict[str, float], options: dict[str, Any], names: tuple[object, ...]
) -> None:
    with refused(ConfigError, "Ensemble", *names):
        Ensemble(weights, **options)


def test_ensembles_can_be_copied_pickled_and_hashed() -> None:
    ensemble = Ensemble({"kind": 1.0, "true": -0.5}, "cautious", 2.0)
    policy = ARGS(2.0, label=ensemble)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert twin == policy
        assert hash(twin) == hash(policy)
    assert hash(Ensemble({"kind": 1.0, "true": 0.5})) != hash(ensemble)


@pytest.mark.parametrize("weight", ["2", None, True, float("nan")])
def test_weights_that_are_no_numbers_are_refused(weight: Any) -> None:
    with refused(ConfigError, "Ensemble", "weights", {"kind": weight}):
        Ensemble({"kind": weight})
