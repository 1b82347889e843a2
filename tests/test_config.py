"""The one configuration: what it accepts, what it refuses, and that it survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError
from tests.refusals import refused

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
    ("changes", "names"),
    [
        ({"width": -1}, ("width", -1)),
        ({"width": 1.5}, ("width", 1.5)),
        ({"width": 65}, ("slice", 65, 64)),
        ({"state_offset": 57}, ("slice", 8, 57, 64)),
        ({"width": 0}, ("width", 0, "'base'", "FFN", "table")),
        ({"n_ff": (16, 16)}, ("n_ff", 2, 3)),
        ({"n_ff": (16, -1, 0)}, ("n_ff", "entry")),
        ({"n_head_kv": (1, True, 0)}, ("n_head_kv", "entry")),
        ({"heads": ()}, ("no head",)),
        ({"heads": (HeadConfig(), HeadConfig())}, ("heads", "reward")),
        ({"state_source": "other"}, ("'other'", "slice", "table")),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        config(**changes)


def test_head_only_reads_the_base() -> None:
    nothing = {"width": 0, "n_head_kv": (0, 0, 0), "n_ff": (0, 0, 0)}
    assert config(**nothing, heads=(HeadConfig(input="base"),)).n_rewards == 1
    with refused(ConfigError, "width", 0, "'base'"):
        config(**nothing)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"name": "Reward"}, ("'Reward'", 1, 16)),
        ({"name": "a" * 17}, ("a" * 17, 1, 16)),
        ({"name": "x\x1b[2J"}, (r"'x\x1b[2J'", 1, 16)),
        ({"labels": ()}, ("'reward'", "labels", "one")),
        ({"labels": ("a", "a")}, ("'reward'", "labels", "unique")),
        ({"labels": ("a\x1b[2J",)}, ("'reward'", "labels", "printable")),
        ({"labels": (1,)}, ("'reward'", "labels", "printable")),
        ({"input": "h"}, ("'reward'", "input", "'h'", "inserted", "base", "both")),
        ({"activation": "relu"}, ("'reward'", "activation", "'relu'", "none", "sigmoid", "tanh", "softmax")),
        ({"scale": (1.0, 2.0)}, ("'reward'", "scale", 1)),
        ({"shift": (float("nan"),)}, ("'reward'", "shift", 1)),
    ],
)
def test_bad_heads_are_refused(fields: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        HeadConfig(**fields)


def test_bad_geometry_is_refused() -> None:
    with refused(ConfigError, "n_head", 4, "n_head_kv", 3):
        BaseGeometry("llama", 3, 64, 4, 3, 16, 96, 100)
    with refused(ConfigError, "n_layer", 513, 512):
        BaseGeometry("llama", 513, 64, 4, 2, 16, 96, 100)
    with refused(ConfigError, "n_ff", 0, 1):
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
    ("fields", "names"),
    [
        ({"kind": "draft"}, ("'reward'", "kind", "'draft'", "value", "vocabulary")),
        ({"kind": "vocabulary"}, ("'reward'", "rank", 0, 1)),
        ({"kind": "vocabulary", "rank": -1}, ("'reward'", "rank", -1)),
        ({"kind": "vocabulary", "rank": 1.5}, ("'reward'", "rank", 1.5)),
        ({"kind": "vocabulary", "rank": True}, ("'reward'", "rank", True)),
        ({"rank": 8}, ("'reward'", "rank", 8, 0)),
        ({"kind": "vocabulary", "rank": 8, "labels": ("a", "b")}, ("'reward'", "label", "one")),
        ({"kind": "vocabulary", "rank": 8, "activation": "softmax"}, ("'reward'", "softmax", "value")),
        ({"activation": "softmax"}, ("'reward'", "softmax", 2, "labels")),
        ({"labels": ("x" * 65,)}, ("'reward'", "labels", 1, 64)),
    ],
)
def test_bad_kinds_are_refused(fields: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        HeadConfig(**fields)


def test_softmax_over_labels() -> None:
    assert HeadConfig(labels=("a", "b"), activation="softmax").activation == "softmax"


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        ((NEXT,), ("'next'", "'safety.help'", "(none)")),
        ((HeadConfig(), NEXT), ("'next'", "'safety.help'", "(reward)")),
        (
            (SAFETY, HeadConfig("next", ("safety",), kind="vocabulary", rank=8)),
            ("'next'", "'safety'", "safety.harm, safety.help"),
        ),
        ((HeadConfig(), HeadConfig("next", ("next",), kind="vocabulary", rank=8)), ("'next'", "(reward)")),
        ((HeadConfig(), HeadConfig("next", kind="vocabulary", rank=65)), ("'next'", "rank", 65, "width", 64)),
        (
            (HeadConfig(), HeadConfig("next", activation="tanh", kind="vocabulary", rank=8)),
            ("'next'", "activation", "tanh", "none"),
        ),
    ],
)
def test_a_vocabulary_head_predicts_a_reward_that_is_there(
    heads: tuple[HeadConfig, ...], names: tuple[object, ...]
) -> None:
    with refused(ConfigError, *names):
        config(heads=heads)


def test_the_longest_reward_can_be_predicted() -> None:
    label = "x" * 64
    heads = (
        HeadConfig("y" * 16, (label, "short")),
        HeadConfig("n", ("y" * 16 + f".{label}",), kind="vocabulary", rank=1),
    )
    assert config(heads=heads).vocabulary_heads == heads[1:]
