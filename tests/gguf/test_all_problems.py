"""A damaged base: every key with a problem is named in one message, and every tensor whose type does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf import _native, errors

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
    assert message == "key 'llama.block_count' is missing, expected a u32"


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
    assert message_of(file, tmp_path) == "key 'llama.block_count' is 2147483648, expected 1 to 512"
    assert "llama.attention.head_count" in message_of(toy_llama().set("llama.attention.head_count", "u32", 3), tmp_path)


def test_a_key_that_two_checks_read_is_named_once(tmp_path: Path) -> None:
    message = message_of(toy_llama().set("tokenizer.ggml.bos_token_id", "str", "1"), tmp_path)
    assert message.count("bos_token_id") == 1


def test_what_is_not_handled_yields_to_what_is_wrong(tmp_path: Path) -> None:
    file = toy_llama().set("llama.attention.causal", "bool", False)
    assert "not a model that writes text" in message_of(file, tmp_path, errors.UnsupportedError)
    both = message_of(file.set("llama.context_length", "u32", 0), tmp_path)
    assert "context_length' is 0" in both
    assert "not a model that writes text" in both


def test_vectors_of_another_type_are_named_together(tmp_path: Path) -> None:
    file = toy_llama()
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight"):
        file = file.tensor(name, Tensor((64,), "F16"))
    message = message_of(file, tmp_path)
    assert message.count("has one dimension and type F16, expected F32") == 3


def test_a_long_list_ends_with_a_number(tmp_path: Path) -> None:
    file = toy_llama()
    for i in range(30):
        file = file.tensor(f"odd.{i}.weight", Tensor((33, 2), "Q8_0", data=b""))
    message = message_of(file, tmp_path)
    assert message.count("rows of 33 elements, expected a multiple of 32 for Q8_0") == 24
    assert message.endswith("; and 6 more")


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
    assert message_of(alone, tmp_path, errors.UnsupportedError).startswith("key 'llama.pooling_type' is not 0")
