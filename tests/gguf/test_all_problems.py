"""A damaged base: every key with a problem is named in one message, and every tensor whose type does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf import _native, errors
from tests.refusals import assert_names

from .gguf_builder import Gguf, Tensor, toy_llama


def message_of(file: Gguf, path: Path, kind: type[errors.OtterError] = errors.FileError) -> str:
    name = file.write(path / "bad.gguf")
    with pytest.raises(errors.OtterError) as caught, _native.GgufFile(name) as opened:
        _native.check_base(opened)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.startswith(f"{name}: ")
    assert message.count(name) == 1
    assert message.isprintable()
    return message.removeprefix(f"{name}: ")


def test_one_problem_is_the_whole_message(tmp_path: Path) -> None:
    message = message_of(toy_llama().drop("llama.block_count"), tmp_path)
    assert_names(message, "llama.block_count", "u32")
    assert ";" not in message


def test_keys_of_every_kind_are_named(tmp_path: Path) -> None:
    file = (
        toy_llama()
        .set("general.type", "str", "adapter")
        .set("llama.context_length", "u32", 0)
        .set("llama.expert_count", "str", "8")
        .set("llama.attention.layer_norm_rms_epsilon", "f32", -1.0)
        .set("llama.rope.scaling.type", "str", "spiral")
        .set("tokenizer.ggml.add_bos_token", "u32", 1)
        .set("tokenizer.ggml.eos_token_id", "u32", 9999)
    )
    problems = message_of(file, tmp_path).split("; ")
    assert [problem.split("'")[1] for problem in problems] == [
        "general.type",
        "llama.context_length",
        "llama.expert_count",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.scaling.type",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.eos_token_id",
    ]


def test_what_rests_on_a_wrong_key_is_not_judged(tmp_path: Path) -> None:
    """Heads are one a layer: without the number of layers nothing is said of them."""
    file = toy_llama().set("llama.block_count", "u32", 2**31).set("llama.attention.head_count", "u32", 3)
    message = message_of(file, tmp_path)
    assert_names(message, "llama.block_count", 2**31, 512)
    assert "head_count" not in message
    assert_names(
        message_of(toy_llama().set("llama.attention.head_count", "u32", 3), tmp_path), "llama.attention.head_count"
    )


def test_a_key_that_two_checks_read_is_named_once(tmp_path: Path) -> None:
    message = message_of(toy_llama().set("tokenizer.ggml.bos_token_id", "str", "1"), tmp_path)
    assert message.count("bos_token_id") == 1


def test_what_is_not_handled_yields_to_what_is_wrong(tmp_path: Path) -> None:
    file = toy_llama().set("llama.attention.causal", "bool", False)
    assert_names(message_of(file, tmp_path, errors.UnsupportedError), "llama.attention.causal", "false")
    both = message_of(file.set("llama.context_length", "u32", 0), tmp_path)
    assert_names(both, "llama.context_length", 0, "llama.attention.causal", "false")


def test_vectors_of_another_type_are_named_together(tmp_path: Path) -> None:
    file = toy_llama()
    names = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight")
    for name in names:
        file = file.tensor(name, Tensor((64,), "F16"))
    message = message_of(file, tmp_path)
    for name, problem in zip(names, message.split("; "), strict=True):
        assert_names(problem, name, "F16", "F32")


def test_a_long_list_ends_with_a_number(tmp_path: Path) -> None:
    file = toy_llama()
    for i in range(30):
        file = file.tensor(f"odd.{i}.weight", Tensor((33, 2), "Q8_0", data=b""))
    message = message_of(file, tmp_path)
    assert message.count("odd.") == 24
    assert_names(message, *(f"odd.{i}.weight" for i in range(24)), 33, 32, "Q8_0", "6 more")


def test_what_an_architecture_takes_for_granted_is_said_at_once(tmp_path: Path) -> None:
    """Keys that are right by themselves, and wrong for the graph."""
    file = (
        toy_llama()
        .drop("llama.attention.layer_norm_rms_epsilon")
        .set("llama.pooling_type", "u32", 1)
        .set("llama.embedding_length_out", "u32", 48)
    )
    problems = message_of(file, tmp_path).split("; ")
    assert [problem.split("'")[1] for problem in problems] == [
        "llama.attention.layer_norm_rms_epsilon",
        "llama.pooling_type",
        "llama.embedding_length_out",
    ]
    alone = toy_llama().set("llama.pooling_type", "u32", 1)
    assert_names(message_of(alone, tmp_path, errors.UnsupportedError), "llama.pooling_type")
