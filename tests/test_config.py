"""The one configuration: what it accepts, what it refuses, and that it survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError

BASE = BaseGeometry("llama", n_layer=3, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, n_vocab=100)


def config(**changes: Any) -> InsertionConfig:
    fields: dict[str, Any] = {"base": BASE, "width": 8, "n_head_kv": (1, 0, 2), "n_ff": (16, 16, 0)}
    return InsertionConfig(**(fields | changes))


def test_json_round_trip() -> None:
    heads = (HeadConfig(), HeadConfig("safety", ("harm", "help"), "both", "tanh", (2.0, 0.5), (0.0, -1.0)))
    whole = config(heads=heads, state_source="table")
    assert InsertionConfig.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_derived_sizes() -> None:
    whole = config(heads=(HeadConfig(), HeadConfig("safety", ("harm", "help"), "both")))
    assert whole.n_rewards == 3
    assert whole.reward_labels == ("reward", "safety.harm", "safety.help")
    assert [whole.n_query_heads(layer) for layer in range(3)] == [2, 0, 4]
    assert [whole.head_input_size(head) for head in whole.heads] == [8, 72]
    assert InsertionConfig.uniform(BASE, 8, 1, 16).n_ff == (16, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": -1}, "width is -1"),
        ({"width": 1.5}, "width is 1.5"),
        ({"width": 65}, "does not fit"),
        ({"state_offset": 57}, "does not fit"),
        ({"width": 0}, "width is 0, but"),
        ({"n_ff": (16, 16)}, "2 entries, the base has 3"),
        ({"n_ff": (16, -1, 0)}, "n_ff has an entry"),
        ({"n_head_kv": (1, True, 0)}, "n_head_kv has an entry"),
        ({"heads": ()}, "no head"),
        ({"heads": (HeadConfig(), HeadConfig())}, "share a name"),
        ({"state_source": "other"}, "expected slice or table"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_head_only_reads_the_base() -> None:
    nothing = {"width": 0, "n_head_kv": (0, 0, 0), "n_ff": (0, 0, 0)}
    assert config(**nothing, heads=(HeadConfig(input="base"),)).n_rewards == 1
    with pytest.raises(ConfigError, match="must read input 'base'"):
        config(**nothing)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Reward"}, "head name"),
        ({"name": "a" * 17}, "head name"),
        ({"name": "x\x1b[2J"}, "head name"),
        ({"labels": ()}, "at least one"),
        ({"labels": ("a", "a")}, "unique"),
        ({"labels": ("a\x1b[2J",)}, "printable"),
        ({"labels": (1,)}, "printable"),
        ({"input": "h"}, "expected inserted, base or both"),
        ({"activation": "relu"}, "expected none, sigmoid, tanh or softmax"),
        ({"scale": (1.0, 2.0)}, "needs 1 finite"),
        ({"shift": (float("nan"),)}, "needs 1 finite"),
    ],
)
def test_bad_heads_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**fields)


def test_bad_geometry_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_head 4 is not a multiple of n_head_kv 3"):
        BaseGeometry("llama", 3, 64, 4, 3, 16, 96, 100)
    with pytest.raises(ConfigError, match="at most 512"):
        BaseGeometry("llama", 513, 64, 4, 2, 16, 96, 100)
    with pytest.raises(ConfigError, match="n_ff is 0"):
        BaseGeometry("llama", 3, 64, 4, 2, 16, 0, 100)


@pytest.mark.parametrize(
    "wreck", [{"more": 1}, {"base": None}, {"heads": [{"name": 1}]}, {"heads": [{"scale": ["x"]}]}]
)
def test_damaged_json_is_refused(wreck: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InsertionConfig.from_dict(config().to_dict() | wreck)


NEXT = HeadConfig("next", ("safety.help",), "both", kind="vocabulary", rank=8)
SAFETY = HeadConfig("safety", ("harm", "help"), "both")


def test_vocabulary_heads_are_no_rewards() -> None:
    whole = config(heads=(NEXT, HeadConfig(), SAFETY))
    assert whole.n_rewards == 3
    assert whole.reward_labels == ("reward", "safety.harm", "safety.help")
    assert whole.vocabulary_heads == (NEXT,)
    assert whole.value_heads == (HeadConfig(), SAFETY)
    assert [whole.head_rows(head) for head in whole.heads] == [9, 1, 2]
    assert whole.reward_source("safety.help") == (SAFETY, 1)
    assert whole.reward_source("reward") == (HeadConfig(), 0)
    with pytest.raises(KeyError):
        whole.reward_source("help")
    assert InsertionConfig.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_files_from_before_vocabulary_heads_hold_value_heads() -> None:
    whole = config(heads=(HeadConfig(), SAFETY))
    old = whole.to_dict()
    for head in old["heads"]:
        del head["kind"], head["rank"]
    assert InsertionConfig.from_dict(old) == whole


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "draft"}, "kind 'draft', expected value or vocabulary"),
        ({"kind": "vocabulary"}, "rank is 0, expected at least 1"),
        ({"kind": "vocabulary", "rank": -1}, "rank is -1"),
        ({"kind": "vocabulary", "rank": 1.5}, "rank is 1.5"),
        ({"kind": "vocabulary", "rank": True}, "rank is True"),
        ({"rank": 8}, "rank is 8, expected at least 1 for a vocabulary head and 0"),
        ({"kind": "vocabulary", "rank": 8, "labels": ("a", "b")}, "exactly one label"),
        ({"kind": "vocabulary", "rank": 8, "activation": "softmax"}, "softmax needs a value head"),
        ({"activation": "softmax"}, "at least 2 labels"),
        ({"labels": ("x" * 65,)}, "of 1 to 64 characters"),
    ],
)
def test_bad_kinds_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**fields)


def test_softmax_over_labels() -> None:
    assert HeadConfig(labels=("a", "b"), activation="softmax").activation == "softmax"


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((NEXT,), "predicts 'safety.help', which is no reward of a value head .none."),
        ((HeadConfig(), NEXT), "no reward of a value head .reward."),
        ((SAFETY, HeadConfig("next", ("safety",), kind="vocabulary", rank=8)), "'safety', which is no reward"),
        ((HeadConfig(), HeadConfig("next", ("next",), kind="vocabulary", rank=8)), "'next', which is no reward"),
        ((HeadConfig(), HeadConfig("next", kind="vocabulary", rank=65)), "rank 65 exceeds the base's width 64"),
        (
            (HeadConfig(), HeadConfig("next", activation="tanh", kind="vocabulary", rank=8)),
            "activation tanh, expected that of the reward, or none",
        ),
    ],
)
def test_a_vocabulary_head_predicts_a_reward_that_is_there(heads: tuple[HeadConfig, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(heads=heads)


def test_the_longest_reward_can_be_predicted() -> None:
    label = "x" * 64
    heads = (
        HeadConfig("y" * 16, (label, "short")),
        HeadConfig("n", ("y" * 16 + f".{label}",), kind="vocabulary", rank=1),
    )
    assert config(heads=heads).vocabulary_heads == heads[1:]
