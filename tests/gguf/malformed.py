"""Every way in which a GGUF file is known to be wrong, in one table: how to write it, the class of the error, and what
the message must name.

A kind is there for each rule of the format, and for each place at which llama.cpp itself aborts, crashes or accepts
nonsense (``LLAMA_CPP_FALLS``).
"""

from __future__ import annotations

import functools
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from otter_gguf.errors import FileError, OtterError, UnsupportedError
from otter_gguf.gguf.merge import merge
from tests.gguf.gguf_builder import UNUSABLE_TENSOR_TYPES, VALUE_TYPES, Gguf, Tensor, Value, toy_gpt2, toy_llama
from tests.gguf.toy_files import write_base, write_sidecar

Build = Callable[[], "Gguf | bytes"]
Names = tuple[object, ...]
What = Literal["header", "base", "sidecar", "merged"]


class Malformed(NamedTuple):
    """A file that must be refused, with a message that holds ``names``."""

    build: Build
    error: type[OtterError]
    names: Names
    what: What


def small() -> Gguf:
    """Two keys and two tensors."""
    file = Gguf().set("first", "u32", 1).set("second", "arr[str]", ["a", "b"])
    file.tensors = [("one", Tensor((32, 2))), ("two", Tensor((64,), "F16"))]
    return file


def one_kv(key: str | bytes, tag: int, payload: bytes) -> Gguf:
    return Gguf(kvs=[(key, Value(tag, payload))])


def one_tensor(tensor: Tensor, name: str | bytes = "odd.weight") -> Gguf:
    return Gguf(tensors=[(name, tensor)])


def array_of(element: int, count: int, data: bytes = b"") -> Gguf:
    return one_kv("some.key", VALUE_TYPES["arr"], struct.pack("<IQ", element, count) + data)


# ---- headers: wrong in any GGUF file ---------------------------------------------------------------------------

HEADERS: dict[str, tuple[Build, Names]] = {
    "one byte": (lambda: b"G", ("magic", 4, 1)),
    "text file": (lambda: b"once upon a time there was an otter", ("once", "GGUF")),
    "zip file": (lambda: b"PK\x03\x04" + bytes(100), ("PK\\x03\\x04", "GGUF")),
    "magic alone": (lambda: b"GGUF", ("version",)),
    "more tensors than bytes": (lambda: Gguf(n_tensors=3), (3, 24)),
    "2^63 tensors": (lambda: Gguf(n_tensors=2**63), (2**63,)),
    "2^64-1 tensors": (lambda: Gguf(n_tensors=2**64 - 1), (2**64 - 1,)),
    "more keys than bytes": (lambda: Gguf(n_kv=1), ("keys", 24)),
    "2^60 keys": (lambda: Gguf(n_kv=2**60), (2**60,)),
    "one key too many": (lambda: Gguf(kvs=small().kvs, n_kv=3).build() + bytes(64), ("key 2", 65535)),
    "empty key": (lambda: one_kv("", 0, b"\0\0"), ("key 0", 65535)),
    "long key": (lambda: one_kv("k" * 65536, 0, b"\0"), (65536, 65535)),
    "endless key": (lambda: Gguf(n_kv=1).build() + struct.pack("<Q", 2**64 - 8) + bytes(64), ("key 0", 2**64 - 8)),
    "key with NUL": (lambda: one_kv("general.type\0x", 0, b"\0"), ("general.type\\x00x",)),
    "key with line break": (lambda: one_kv("a\nb", 0, b"\0"), ("a\\x0ab",)),
    "key no text": (lambda: one_kv(b"a\xff", 0, b"\0\0"), ("a\\xff",)),
    "key not ASCII": (lambda: one_kv("größe", 0, b"\0"), ("gr\\xc3\\xb6\\xc3\\x9fe", "ASCII")),
    "key with DEL": (lambda: one_kv("a\x7f", 0, b"\0"), ("a\\x7f",)),
    "key twice": (
        lambda: Gguf(kvs=[(name, Value(0, b"\0")) for name in ("some.key", "other.key", "some.key")]),
        ("some.key",),
    ),
    "value type 13": (lambda: one_kv("some.key", 13, bytes(8)), ("some.key", 13)),
    "value type 2^32-1": (lambda: one_kv("some.key", 2**32 - 1, bytes(8)), ("some.key", 2**32 - 1)),
    "array of arrays": (lambda: array_of(9, 1, bytes(32)), ("some.key", "arrays")),
    "array of type 99": (lambda: array_of(99, 1, bytes(32)), ("some.key", 99)),
    "array longer than file": (lambda: array_of(4, 100, bytes(32)), ("some.key", 400)),
    "array of 2^62 u32": (lambda: array_of(4, 2**62, bytes(32)), ("some.key", 2**62)),
    "array of 2^61 u64": (lambda: array_of(10, 2**61, bytes(32)), ("some.key", 2**61)),
    "array of 2^64-1 strings": (lambda: array_of(8, 2**64 - 1, bytes(32)), ("some.key", 2**64 - 1)),
    "array of 2^29 empty strings": (lambda: array_of(8, 2**29, bytes(64)), ("some.key",)),
    "string longer than file": (lambda: one_kv("some.key", 8, struct.pack("<Q", 99) + b"abc"), ("some.key", 99)),
    "string of 2^64-1": (lambda: one_kv("some.key", 8, struct.pack("<Q", 2**64 - 1) + b"abc"), ("some.key", 2**64 - 1)),
    "string of 2^31": (lambda: one_kv("some.key", 8, struct.pack("<Q", 2**31) + b"abc"), ("some.key", 2**31)),
    "bool 2": (lambda: one_kv("some.key", 7, b"\2"), ("some.key", "bool", 2)),
    "bool 255 in an array": (lambda: array_of(7, 3, b"\0\1\xff"), ("some.key", "bool", 255)),
    "alignment 0": (lambda: small().set("general.alignment", "u32", 0), ("general.alignment", 0)),
    "alignment 1": (lambda: small().set("general.alignment", "u32", 1), ("general.alignment", 1)),
    "alignment 24": (lambda: small().set("general.alignment", "u32", 24), ("general.alignment", 24)),
    "alignment 2^31": (lambda: small().set("general.alignment", "u32", 2**31), ("general.alignment", 2**31)),
    "alignment as u64": (lambda: small().set("general.alignment", "u64", 32), ("general.alignment", "u64", "u32")),
    "alignment as array": (
        lambda: small().set("general.alignment", "arr[u32]", [32]),
        ("general.alignment", "arr[u32]", "u32"),
    ),
    "empty tensor name": (lambda: one_tensor(Tensor((4,)), ""), ("tensor 0", 63)),
    "tensor name of 64": (lambda: one_tensor(Tensor((4,)), "n" * 64), ("tensor 0", 64, 63)),
    "tensor name with NUL": (lambda: one_tensor(Tensor((4,)), "a\0"), ("a\\x00",)),
    "tensor twice": (
        lambda: Gguf(tensors=[(name, Tensor((8,))) for name in ("odd.weight", "other.weight", "odd.weight")]),
        ("odd.weight",),
    ),
    "no dimensions": (lambda: one_tensor(Tensor((), data=bytes(4))), ("odd.weight", 0, 4)),
    "five dimensions": (lambda: one_tensor(Tensor((1, 1, 1, 1, 1))), ("odd.weight", 5, 4)),
    "2^32-1 dimensions": (lambda: one_tensor(Tensor((4,), n_dims=2**32 - 1)), ("odd.weight", 2**32 - 1)),
    "dimension 0": (lambda: one_tensor(Tensor((4, 0, 2))), ("odd.weight", "[4, 0, 2]")),
    "dimension -1": (lambda: one_tensor(Tensor((2**64 - 1,), data=b"")), ("odd.weight", 2**64 - 1)),
    "product wraps to 0": (lambda: one_tensor(Tensor((2**32, 2**32), data=b"")), ("odd.weight", 2**32)),
    "product wraps to 4": (lambda: one_tensor(Tensor((2**62 + 1, 4), data=bytes(16))), ("odd.weight", 2**62 + 1)),
    "bytes wrap": (lambda: one_tensor(Tensor((2**62,), data=b"")), ("odd.weight", 2**62)),
    "padding wraps": (lambda: one_tensor(Tensor((2**61 - 1, 2), data=b"")), ("odd.weight", 2**61 - 1)),
    "row no multiple of block": (lambda: one_tensor(Tensor((33,), "Q8_0", bytes(68))), ("odd.weight", 33, 32, "Q8_0")),
    "type 4": (lambda: one_tensor(Tensor((32,), 4)), ("odd.weight", 4)),
    "type 43": (lambda: one_tensor(Tensor((32,), 43)), ("odd.weight", 43)),
    "type 2^31": (lambda: one_tensor(Tensor((32,), 2**31)), ("odd.weight", 2**31)),
    "offset not padded": (lambda: small().tensor("two", Tensor((64,), "F16", offset=255)), ("two", 255, 256)),
    "offset of the first": (lambda: small().tensor("one", Tensor((32, 2), offset=32)), ("one", 32)),
    "overlap": (lambda: small().tensor("two", Tensor((64,), "F16", offset=0)), ("two", 0, 256)),
    "hole": (lambda: small().tensor("two", Tensor((64,), "F16", offset=512)), ("two", 512, 256)),
    "offset 2^64-32": (lambda: small().tensor("two", Tensor((64,), "F16", offset=2**64 - 32)), ("two", 2**64 - 32)),
    "data missing": (lambda: small().tensor("two", Tensor((64,), "F16", data=b"")), ("two", 128)),
    "no data at all": (lambda: small().header(), ("data", 171)),
} | {
    f"type {type}": (lambda type=type: one_tensor(Tensor((256,), type)), ("odd.weight", type))  # type: ignore[misc]
    for type in UNUSABLE_TENSOR_TYPES
}  # fmt: skip

VERSIONS: dict[str, tuple[Build, Names]] = {
    "version 0": (lambda: Gguf(version=0), ("version", 0)),
    "version 1": (lambda: Gguf(version=1), ("version", 1)),
    "version 4": (lambda: Gguf(version=4), ("version", 4)),
    "big endian": (lambda: Gguf(version=3 << 24), ("big-endian",)),
}

# ---- bases -----------------------------------------------------------------------------------------------------

LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def key(name: str, type: str, value: object, base: Callable[[], Gguf] = toy_llama) -> Build:
    return lambda: base().set(name, type, value)


def without(name: str, base: Callable[[], Gguf] = toy_llama) -> Build:
    return lambda: base().drop(name)


def shaped(name: str, shape: tuple[int, ...], type: str = "F32") -> Build:
    return lambda: toy_llama().tensor(name, Tensor(shape, type))


def tokens(change: dict[int, str | bytes]) -> Build:
    changed = [change.get(i, token) for i, token in enumerate(LLAMA_TOKENS)]
    return key("tokenizer.ggml.tokens", "arr[str]", changed)


NAN, INF = float("nan"), float("inf")

BASES: dict[str, tuple[Build, Names]] = {
    "no architecture": (without("general.architecture"), ("general.architecture",)),
    "architecture as u32": (key("general.architecture", "u32", 1), ("general.architecture", "u32", "str")),
    "architecture as array": (
        key("general.architecture", "arr[str]", ["llama"]),
        ("general.architecture", "arr[str]", "str"),
    ),
    "architecture with NUL": (key("general.architecture", "str", "llama\0"), ("general.architecture", "llama\\x00")),
    "architecture with blank": (key("general.architecture", "str", "a b"), ("general.architecture", "a b")),
    "an adapter": (key("general.type", "str", "adapter"), ("general.type", "adapter")),
    "a projector": (key("general.type", "str", "mmproj"), ("general.type", "mmproj")),
    "type as u8": (key("general.type", "u8", 1), ("general.type", "u8")),
    "name as u64": (key("general.name", "u64", 1), ("general.name", "u64")),
    "file type as str": (key("general.file_type", "str", "F16"), ("general.file_type", "str", "u32")),
    "no tensors": (lambda: Gguf(kvs=toy_llama().kvs), ("token_embd.weight",)),
    "no block count": (without("llama.block_count"), ("llama.block_count",)),
    "0 blocks": (key("llama.block_count", "u32", 0), ("llama.block_count", 0)),
    "513 blocks": (key("llama.block_count", "u32", 513), ("llama.block_count", 513, 512)),
    "2^32-1 blocks": (key("llama.block_count", "u32", 2**32 - 1), ("llama.block_count", 2**32 - 1)),
    "block count as i32": (key("llama.block_count", "i32", 2), ("llama.block_count", "i32", "u32")),
    "block count as str": (key("llama.block_count", "str", "2"), ("llama.block_count", "str", "u32")),
    "block count as array": (key("llama.block_count", "arr[u32]", [2]), ("llama.block_count", "arr[u32]", "u32")),
    "3 blocks of 2": (key("llama.block_count", "u32", 3), ("blk.2.attn_k.weight", 3)),
    "1 block of 2": (key("llama.block_count", "u32", 1), ("blk.1.attn_norm.weight", 1)),
    "no context length": (without("llama.context_length"), ("llama.context_length",)),
    "context length 0": (key("llama.context_length", "u32", 0), ("llama.context_length", 0)),
    "no width": (without("llama.embedding_length"), ("llama.embedding_length",)),
    "width 0": (key("llama.embedding_length", "u32", 0), ("llama.embedding_length", 0)),
    "other width": (lambda: other_width(), ("blk.0.attn_k.weight", "[64, 32]", "[128, 64]")),
    "no heads": (without("llama.attention.head_count"), ("llama.attention.head_count",)),
    "0 heads": (key("llama.attention.head_count", "u32", 0), ("llama.attention.head_count",)),
    "0 KV heads": (key("llama.attention.head_count_kv", "u32", 0), ("llama.attention.head_count_kv",)),
    "3 KV heads of 4": (key("llama.attention.head_count_kv", "u32", 3), ("llama.attention.head_count", 4, 3)),
    "heads as f32": (key("llama.attention.head_count", "f32", 4.0), ("llama.attention.head_count", "f32", "u32")),
    "heads of 3 layers": (
        key("llama.attention.head_count", "arr[u32]", [4, 4, 4]),
        ("llama.attention.head_count", 3, 2),
    ),
    "heads that differ": (key("llama.attention.head_count", "arr[u32]", [4, 2]), ("llama.attention.head_count",)),
    "negative heads": (key("llama.attention.head_count", "arr[i32]", [-4, -4]), ("llama.attention.head_count", 65536)),
    "heads as u8 array": (
        key("llama.attention.head_count", "arr[u8]", [4, 4]),
        ("llama.attention.head_count", "arr[u8]", "arr[u32]"),
    ),
    "no inner size": (without("llama.feed_forward_length"), ("llama.feed_forward_length",)),
    "other inner size": (
        key("llama.feed_forward_length", "u32", 64),
        ("blk.0.ffn_down.weight", "[96, 64]", "[64, 64]"),
    ),
    "no epsilon": (without("llama.attention.layer_norm_rms_epsilon"), ("llama.attention.layer_norm_rms_epsilon",)),
    "epsilon 0": (
        key("llama.attention.layer_norm_rms_epsilon", "f32", 0.0),
        ("llama.attention.layer_norm_rms_epsilon", 0),
    ),
    "epsilon negative": (
        key("llama.attention.layer_norm_rms_epsilon", "f32", -1e-5),
        ("llama.attention.layer_norm_rms_epsilon", -1e-05),
    ),
    "epsilon NaN": (
        key("llama.attention.layer_norm_rms_epsilon", "f32", NAN),
        ("llama.attention.layer_norm_rms_epsilon", "nan"),
    ),
    "epsilon infinite": (
        key("llama.attention.layer_norm_rms_epsilon", "f32", INF),
        ("llama.attention.layer_norm_rms_epsilon", "inf"),
    ),
    "epsilon as f64": (
        key("llama.attention.layer_norm_rms_epsilon", "f64", 1e-5),
        ("llama.attention.layer_norm_rms_epsilon", "f64", "f32"),
    ),
    "rope base NaN": (key("llama.rope.freq_base", "f32", NAN), ("llama.rope.freq_base", "nan")),
    "rope base 0": (key("llama.rope.freq_base", "f32", 0.0), ("llama.rope.freq_base", 0)),
    "rope factor negative": (key("llama.rope.scaling.factor", "f32", -1.0), ("llama.rope.scaling.factor", -1)),
    "rope factor infinite": (key("llama.rope.scaling.factor", "f32", INF), ("llama.rope.scaling.factor", "inf")),
    "rope type unknown": (key("llama.rope.scaling.type", "str", "cubic"), ("llama.rope.scaling.type", "cubic")),
    "rope type as u32": (key("llama.rope.scaling.type", "u32", 1), ("llama.rope.scaling.type", "u32", "str")),
    "rope dimensions": (key("llama.rope.dimension_count", "u32", 8), ("llama.rope.dimension_count", 8, 16)),
    "key length 0": (key("llama.attention.key_length", "u32", 0), ("llama.attention.key_length", 0)),
    "values unlike keys": (key("llama.attention.value_length", "u32", 8), ("llama.attention.key_length", 16, 8)),
    "odd head size": (key("llama.attention.head_count", "u32", 64 // 3), ("llama.attention.head_count", 21)),
    "2000 experts": (key("llama.expert_count", "u32", 2000), ("llama.expert_count", 2000, 1024)),
    "experts of none": (key("llama.expert_used_count", "u32", 2), ("llama.expert_used_count", 2, 0)),
    "unused experts": (key("llama.expert_count", "u32", 4), ("llama.expert_used_count", 0, 4)),
    "expert groups": (key("llama.expert_group_count", "u32", 4), ("llama.expert_group_count", 4)),
    "layers ahead": (key("llama.nextn_predict_layers", "u32", 3), ("llama.nextn_predict_layers", 3, 2)),
    "split as u32": (key("split.count", "u32", 2), ("split.count", "u32", "u16")),
    "split of 2": (
        lambda: toy_llama().set("split.count", "u16", 2).set("split.no", "u16", 0),
        ("split.count", 2, "00001-of-00002"),
    ),
    "second of 2": (lambda: toy_llama().set("split.count", "u16", 2).set("split.no", "u16", 1), ("split.no", 2)),
    "no tokenizer": (without("tokenizer.ggml.model"), ("tokenizer.ggml.model",)),
    "tokenizer as u32": (key("tokenizer.ggml.model", "u32", 1), ("tokenizer.ggml.model", "u32", "str")),
    "no tokens": (without("tokenizer.ggml.tokens"), ("tokenizer.ggml.tokens",)),
    "0 tokens": (key("tokenizer.ggml.tokens", "arr[str]", []), ("tokenizer.ggml.tokens", 0)),
    "tokens as one string": (key("tokenizer.ggml.tokens", "str", "a"), ("tokenizer.ggml.tokens", "str", "arr[str]")),
    "tokens as numbers": (
        key("tokenizer.ggml.tokens", "arr[u32]", [1]),
        ("tokenizer.ggml.tokens", "arr[u32]", "arr[str]"),
    ),
    "token twice": (tokens({2: "<s>"}), ("tokenizer.ggml.tokens", "<s>", 1, 2)),
    "token twice behind NUL": (tokens({2: "<s>\0other"}), ("tokenizer.ggml.tokens", "<s>", 1, 2)),
    "name of an empty token": (tokens({0: "", 1: "[EMPTY_0]"}), ("tokenizer.ggml.tokens", "[EMPTY_0]", 0, 1)),
    "byte token missing": (tokens({3 + 0x41: "letter"}), ("tokenizer.ggml.tokens", "<0x41>")),
    "byte token without hex": (tokens({5: "<0xG0>"}), ("tokenizer.ggml.token_type", 5, "<0xG0>")),
    "short byte token": (tokens({5: "x"}), ("tokenizer.ggml.token_type", 5, "x")),
    "fewer scores": (key("tokenizer.ggml.scores", "arr[f32]", [0.0] * 258), ("tokenizer.ggml.scores", 258, 259)),
    "NaN score": (key("tokenizer.ggml.scores", "arr[f32]", [NAN] * 259), ("tokenizer.ggml.scores", "nan", 0)),
    "scores as f64": (
        key("tokenizer.ggml.scores", "arr[f64]", [0.0] * 259),
        ("tokenizer.ggml.scores", "arr[f64]", "arr[f32]"),
    ),
    "fewer token types": (key("tokenizer.ggml.token_type", "arr[i32]", [1] * 9), ("tokenizer.ggml.token_type", 9, 259)),
    "token types as u32": (
        key("tokenizer.ggml.token_type", "arr[u32]", [1] * 259),
        ("tokenizer.ggml.token_type", "arr[u32]", "arr[i32]"),
    ),
    "BOS outside": (key("tokenizer.ggml.bos_token_id", "u32", 259), ("tokenizer.ggml.bos_token_id", 259)),
    "EOS outside": (key("tokenizer.ggml.eos_token_id", "u32", 2**32 - 1), ("tokenizer.ggml.eos_token_id", 2**32 - 1)),
    "EOT outside": (key("tokenizer.ggml.eot_token_id", "u32", 1000), ("tokenizer.ggml.eot_token_id", 1000, 259)),
    "BOS as i32": (key("tokenizer.ggml.bos_token_id", "i32", 1), ("tokenizer.ggml.bos_token_id", "i32", "u32")),
    "padding as str": (
        key("tokenizer.ggml.padding_token_id", "str", "0"),
        ("tokenizer.ggml.padding_token_id", "str", "u32"),
    ),
    "add BOS as u8": (key("tokenizer.ggml.add_bos_token", "u8", 1), ("tokenizer.ggml.add_bos_token", "u8", "bool")),
    "template as array": (
        key("tokenizer.chat_template", "arr[str]", ["x"]),
        ("tokenizer.chat_template", "arr[str]", "str"),
    ),
    "no merges": (without("tokenizer.ggml.merges", toy_gpt2), ("tokenizer.ggml.merges", "gpt2")),
    "merge of one": (key("tokenizer.ggml.merges", "arr[str]", ["ab"], toy_gpt2), ("tokenizer.ggml.merges", "ab")),
    "empty merge": (key("tokenizer.ggml.merges", "arr[str]", ["a b", ""], toy_gpt2), ("tokenizer.ggml.merges", "''")),
    "merges as u32": (
        key("tokenizer.ggml.merges", "arr[u32]", [1], toy_gpt2),
        ("tokenizer.ggml.merges", "arr[u32]", "arr[str]"),
    ),
    "Phi-3 in name only": (key("general.name", "str", "My Phi-3"), ("tokenizer.ggml.tokens", "<|endoftext|>")),
    "extra precision": (key("general.tensor_extra.name", "arr[str]", ["x"]), ("general.tensor_extra.prec_a4", 1)),
    "no BOS to add": (lambda: few_tokens(), ("tokenizer.ggml.bos_token_id",)),
    "embedding of other rows": (shaped("token_embd.weight", (64, 260)), ("token_embd.weight", 260, 259)),
    "embedding turned": (shaped("token_embd.weight", (259, 64)), ("token_embd.weight", 64, 259)),
    "embedding in 3 dimensions": (shaped("token_embd.weight", (64, 259, 2)), ("token_embd.weight", "[64, 259, 2]")),
    "norm in F16": (shaped("output_norm.weight", (64,), "F16"), ("output_norm.weight", "F16", "F32")),
    "norm in F16, 2 dimensions": (shaped("output_norm.weight", (64, 1), "F16"), ("output_norm.weight", "F16", "F32")),
    "query matrix missing": (lambda: toy_llama().tensor("blk.1.attn_q.weight", None), ("blk.1.attn_q.weight",)),
    "norm missing": (lambda: toy_llama().tensor("output_norm.weight", None), ("output_norm.weight",)),
    "key matrix as wide as queries": (
        shaped("blk.0.attn_k.weight", (64, 64)),
        ("blk.0.attn_k.weight", "[64, 64]", "[64, 32]"),
    ),
    "tensor too many": (shaped("blk.0.attn_q_norm.weight", (16,)), ("blk.0.attn_q_norm.weight",)),
    "rotary factors too many": (shaped("rope_freqs.weight", (9,)), ("rope_freqs.weight", "[9]", "[8]")),
    "bias too long": (shaped("blk.0.attn_q.bias", (65,)), ("blk.0.attn_q.bias", "[65]", "[64]")),
}  # fmt: skip

UNSUPPORTED: dict[str, tuple[Build, Names]] = {
    "tokenizer none": (key("tokenizer.ggml.model", "str", "none"), ("tokenizer.ggml.model", "none")),
    "tokenizer no_vocab": (key("tokenizer.ggml.model", "str", "no_vocab"), ("tokenizer.ggml.model", "no_vocab")),
    "tokenizer unknown": (key("tokenizer.ggml.model", "str", "otter"), ("tokenizer.ggml.model", "otter")),
    "tokenizer bert": (key("tokenizer.ggml.model", "str", "bert"), ("tokenizer.ggml.model", "bert")),
    "pre-tokenizer unknown": (key("tokenizer.ggml.pre", "str", "otter", toy_gpt2), ("tokenizer.ggml.pre", "otter")),
    "not causal": (key("llama.attention.causal", "bool", 0), ("llama.attention.causal", "false")),
    "pooling": (key("llama.pooling_type", "u32", 1), ("llama.pooling_type",)),
    "other output width": (key("llama.embedding_length_out", "u32", 8), ("llama.embedding_length_out", 8, 64)),
    "prediction layers": (key("llama.nextn_predict_layers", "u32", 1), ("llama.nextn_predict_layers",)),
    "alignment 8": (lambda: realigned(8), ("general.alignment", 8)),
    "alignment 16": (lambda: realigned(16), ("general.alignment", 16)),
}  # fmt: skip


def few_tokens() -> Gguf:
    """A gpt2 vocabulary that ends before the default BOS, token 11."""
    file = toy_gpt2().drop("tokenizer.ggml.bos_token_id").drop("tokenizer.ggml.token_type")
    return file.set("tokenizer.ggml.tokens", "arr[str]", [f"t{i}" for i in range(11)])


def other_width() -> Gguf:
    return toy_llama().set("llama.embedding_length", "u32", 128).drop("llama.rope.dimension_count")


def realigned(alignment: int) -> Gguf:
    file = toy_llama().set("general.alignment", "u32", alignment)
    file.alignment = alignment
    return file


# ---- sidecars and merged files ---------------------------------------------------------------------------------


@functools.cache
def good_files() -> dict[str, bytes]:
    """A base, a sidecar for it, and both merged."""
    with tempfile.TemporaryDirectory(prefix="otter-gguf-malformed-") as name:
        folder = Path(name)
        base = write_base(folder / "base.gguf")
        sidecar = write_sidecar(folder / "toy.otter.gguf", base)
        merge(base, sidecar, folder / "merged.gguf")
        paths = {"base": base, "sidecar": sidecar, "merged": folder / "merged.gguf"}
        return {kind: path.read_bytes() for kind, path in paths.items()}


@functools.cache
def good(kind: str) -> Gguf:
    """One of :func:`good_files`, to be changed."""
    with tempfile.NamedTemporaryFile(prefix="otter-gguf-malformed-") as file:
        file.write(good_files()[kind])
        file.flush()
        return Gguf.read(Path(file.name))


def sidecar_key(name: str, type: str, value: object, kind: str = "sidecar") -> Build:
    return lambda: good(kind).set(name, type, value)


def no_sidecar_key(name: str, kind: str = "sidecar") -> Build:
    return lambda: good(kind).drop(name)


def sidecar_tensor(name: str, shape: tuple[int, ...], type: str = "F32", data: bytes | None = None) -> Build:
    return lambda: good("sidecar").tensor(name, Tensor(shape, type, data))


def no_sidecar_tensor(name: str) -> Build:
    return lambda: good("sidecar").tensor(name, None)


def damaged_tensor(name: str, bits: bytes) -> Build:
    """The tensor with its first bytes replaced."""

    def build() -> Gguf:
        file = good("sidecar")
        old = dict(file.tensors)[name]
        return file.tensor(name, Tensor(old.shape, old.type, bits + old.bytes()[len(bits) :]))

    return build


def moved_key(name: str) -> Build:
    """A merged file that some tool has written anew, in another order."""

    def build() -> Gguf:
        file = good("merged")
        value = dict(file.kvs)[name]
        return Gguf(kvs=[(name, value), *file.drop(name).kvs], tensors=file.tensors)

    return build


def named_heads(*names: str) -> Build:
    return sidecar_key("otter.heads", "arr[str]", list(names))


SCALE, SHIFT, LABELS = (f"otter.head.safety.{name}" for name in ("scale", "shift", "labels"))
NORM, UP, BIAS = "blk.0.attn_norm.otter.weight", "blk.0.ffn_up.otter.weight", "cls.output.safety.otter.bias"
F32_NAN, F32_INF, F16_NAN = struct.pack("<I", 0x7FC00000), struct.pack("<I", 0xFF800000), np.float16("nan").tobytes()

SIDECARS: dict[str, tuple[Build, Names]] = {
    "an adapter without tensors": (lambda: Gguf(kvs=good("sidecar").kvs), ("tensors", "none")),
    "a base as an adapter": (lambda: good_files()["base"], ("adapter.type", "otter")),
    "type of an adapter as u32": (sidecar_key("general.type", "u32", 1), ("adapter.type", "otter")),
    "type of an adapter as array": (sidecar_key("general.type", "arr[str]", ["adapter"]), ("adapter.type", "otter")),
    "adapter.type as u32": (sidecar_key("adapter.type", "u32", 1), ("adapter.type", "otter")),
    "adapter.type absent": (no_sidecar_key("adapter.type"), ("adapter.type", "otter")),
    "a LoRA": (sidecar_key("adapter.type", "str", "lora"), ("adapter.type", "otter")),
    "architecture of an adapter as u32": (
        sidecar_key("general.architecture", "u32", 1),
        ("general.architecture",),
    ),
    "scale NaN": (sidecar_key(SCALE, "arr[f32]", [NAN, 1.0]), ("safety", "scale", 2)),
    "scale infinite": (sidecar_key(SCALE, "arr[f32]", [1.0, INF]), ("safety", "scale", 2)),
    "scale absent": (no_sidecar_key(SCALE), (SCALE,)),
    "scale as one number": (sidecar_key(SCALE, "f32", 1.0), (SCALE, "f32", "arr[f32]")),
    "weights NaN": (damaged_tensor(NORM, F32_NAN), (NORM, "value 0")),
    "weights infinite": (damaged_tensor(BIAS, F32_INF), (BIAS, "value 0")),
    "scale of a block NaN": (damaged_tensor(UP, F16_NAN), (UP, "block 0")),
    "weights of integers": (sidecar_tensor(UP, (96, 64), "I8"), (UP, "I8")),
    "a third dimension": (sidecar_tensor(UP, (96, 64, 2), "F16"), (UP, "[96, 64, 2]", "[96, 64]")),
    "a dimension of 0": (sidecar_tensor(UP, (96, 0), "F16", b""), (UP, "[96, 0]")),
    "shift infinite": (sidecar_key(SHIFT, "arr[f32]", [0.0, -INF]), ("safety", "shift", 2)),
    "shift of one label": (sidecar_key(SHIFT, "arr[f32]", [0.0]), ("safety", "shift", 2)),
    "label twice": (sidecar_key(LABELS, "arr[str]", ["harm", "harm"]), ("safety", "labels", "unique")),
    "label with an escape": (sidecar_key(LABELS, "arr[str]", ["harm", "\x1b[2J"]), ("safety", "labels", "printable")),
    "label that reorders": (sidecar_key(LABELS, "arr[str]", ["harm", "\u202ehelp"]), ("safety", "labels", "printable")),
    "label of 10 MB": (sidecar_key(LABELS, "arr[str]", ["harm", "x" * 10_000_000]), (LABELS, 10_000_000)),
    "source of 10 MB": (sidecar_key("otter.state.source", "str", "x" * 10_000_000), ("otter.state.source", 10_000_000)),
    "activation of 10 MB": (
        sidecar_key("otter.head.reward.activation", "str", "x" * 10_000_000),
        ("otter.head.reward.activation", 10_000_000),
    ),
    "architecture of 10 MB": (
        sidecar_key("general.architecture", "str", "x" * 10_000_000),
        ("general.architecture",),
    ),
    "1,000 heads without keys": (named_heads(*(f"h{i}" for i in range(1000))), ("otter.head.h0.kind",)),
    "100,000 heads": (named_heads(*(f"h{i}" for i in range(100_000))), ("otter.heads", 100_000)),
    "1,000 tensors too many": (lambda: many_tensors(), ("extra.0",)),
    "label of 100": (sidecar_key(LABELS, "arr[str]", ["harm", "x" * 100]), ("safety", "labels", 64)),
    "label that is no text": (sidecar_key(LABELS, "arr[str]", ["harm", b"\xff"]), ("safety", "labels", "printable")),
    "no heads": (named_heads(), ("head", "predicted")),
    "head twice": (named_heads("reward", "reward"), ("heads", "reward")),
    "head above the folder": (named_heads("../../etc/passwd"), ("otter.heads", "a-z")),
    "head with NUL": (named_heads("reward\0"), ("otter.heads", "a-z")),
    "head with a slash": (named_heads("a/b"), ("otter.heads", "a-z")),
    "head without keys": (named_heads("reward", "other"), ("otter.head.other.kind",)),
    "no version": (no_sidecar_key("otter.version"), ("otter.version",)),
    "version as str": (sidecar_key("otter.version", "str", "1"), ("otter.version", "str", "u32")),
    "no width": (no_sidecar_key("otter.width"), ("otter.width",)),
    "width 2^32-1": (sidecar_key("otter.width", "u32", 2**32 - 1), ("width", 2**32 - 1)),
    "heads of three layers": (
        sidecar_key("otter.attention.head_count_kv", "arr[u32]", [1, 1, 1]),
        ("n_head_kv", 3, 2),
    ),
    "state from nowhere": (sidecar_key("otter.state.source", "str", "/etc/passwd"), ("/etc/passwd",)),
    "slice behind the state": (sidecar_key("otter.state.offset", "u32", 1000), ("slice", 1000)),
    "offset behind the state": (sidecar_key("otter.state.offset", "u32", 2**32 - 1), ("state_offset", 2**32 - 1)),
    "layers without end": (sidecar_key("otter.base.block_count", "u32", 2**32 - 1), ("n_layer", 2**32 - 1)),
    "no KV heads": (sidecar_key("otter.base.attention.head_count_kv", "u32", 0), ("n_head_kv", 0)),
    "activation unknown": (sidecar_key("otter.head.reward.activation", "str", "exec"), ("reward", "exec")),
    "input unknown": (sidecar_key("otter.head.reward.input", "str", "file"), ("reward", "file")),
    "no fingerprint": (no_sidecar_key("otter.base.fingerprint"), ("otter.base.fingerprint",)),
    "tensor gone": (no_sidecar_tensor(NORM), (NORM,)),
    "tensor of the base": (sidecar_tensor("output.weight", (64, 288)), ("output.weight",)),
    "tensor of another layer": (sidecar_tensor("blk.9.ffn_up.otter.weight", (96, 64)), ("blk.9.ffn_up.otter.weight",)),
    "matrix turned": (sidecar_tensor(UP, (64, 96), "F16"), (UP, "[64, 96]", "[96, 64]")),
    "norm too short": (sidecar_tensor(NORM, (31,)), (NORM, "[31]", "[32]")),
    "norm in halves": (sidecar_tensor(NORM, (32,), "F16"), (NORM, "F16", "F32")),
    "ternary weights": (
        sidecar_tensor("blk.0.ffn_down.otter.weight", (256, 32), "TQ2_0"),
        ("blk.0.ffn_down.otter.weight", "TQ2_0"),
    ),
    "alignment 64": (lambda: aligned("sidecar", 64), ("alignment", 64, 32)),
}  # fmt: skip

UNSUPPORTED_SIDECARS: dict[str, tuple[Build, Names]] = {
    "version 2": (sidecar_key("otter.version", "u32", 2), ("otter.version", 2)),
    "version 2^32-1": (sidecar_key("otter.version", "u32", 2**32 - 1), ("otter.version", 2**32 - 1)),
    "unknown key": (sidecar_key("otter.run", "str", "os.system"), ("otter.run",)),
    "unknown keys of 60 kB": (lambda: many_keys(), ("otter.0",)),
    "unknown kind of head": (sidecar_key("otter.head.reward.kind", "str", "code"), ("reward", "code")),
}


def other_header() -> Gguf:
    file = good("merged")
    old = dict(file.kvs)["otter.merged.sidecar_header"]
    return file.put("otter.merged.sidecar_header", Value(old.tag, old.payload[:12] + bytes(len(old.payload) - 12)))


MERGED: dict[str, tuple[Build, Names]] = {
    "no size of the sidecar": (no_sidecar_key("otter.merged.sidecar_size", "merged"), ("otter.merged.sidecar_size",)),
    "size as u32": (
        sidecar_key("otter.merged.base_size", "u32", 1, "merged"),
        ("otter.merged.base_size", "u32", "u64"),
    ),
    "a base of 0 bytes": (
        sidecar_key("otter.merged.base_size", "u64", 0, "merged"),
        ("otter.merged.base_size", 0),
    ),
    "a base of 2^64-1 bytes": (
        sidecar_key("otter.merged.base_size", "u64", 2**64 - 1, "merged"),
        ("otter.merged.base_size", 2**64 - 1),
    ),
    "a sidecar of 2^63 bytes": (
        sidecar_key("otter.merged.sidecar_size", "u64", 2**63, "merged"),
        ("otter.merged.sidecar_size", 2**63),
    ),
    "a sidecar shorter than its header": (
        sidecar_key("otter.merged.sidecar_size", "u64", 1, "merged"),
        ("otter.merged.sidecar_size", 1),
    ),
    "another header": (other_header, ("sha256", "sidecar")),
    "a header of another size": (
        sidecar_key("otter.merged.sidecar_header", "arr[u8]", [0] * 64, "merged"),
        ("otter.merged.sidecar_size",),
    ),
    "another sha256": (sidecar_key("otter.merged.base_sha256", "str", "0" * 64, "merged"), ("sha256", "base")),
    "written in another order": (moved_key("otter.width"), ("inserted",)),
    "tensor gone from a merged file": (lambda: good("merged").tensor(UP, None), (UP,)),
}


def many_tensors() -> Gguf:
    file = good("sidecar")
    return Gguf(kvs=file.kvs, tensors=[*file.tensors, *((f"extra.{i}", Tensor((1,))) for i in range(1000))])


def many_keys() -> Gguf:
    file = good("sidecar")
    return Gguf(
        kvs=[*file.kvs, *((f"otter.{i}." + "x" * 60_000, Value(0, b"\1")) for i in range(60))], tensors=file.tensors
    )


def aligned(kind: str, alignment: int) -> Gguf:
    file = good(kind).set("general.alignment", "u32", alignment)
    file.alignment = alignment
    return file


# ---- the table -------------------------------------------------------------------------------------------------


def _kinds() -> dict[str, Malformed]:
    tables: list[tuple[What, type[OtterError], dict[str, tuple[Build, Names]]]] = [
        ("header", FileError, HEADERS),
        ("header", UnsupportedError, VERSIONS),
        ("base", FileError, BASES),
        ("base", UnsupportedError, UNSUPPORTED),
        ("sidecar", FileError, SIDECARS),
        ("sidecar", UnsupportedError, UNSUPPORTED_SIDECARS),
        ("merged", FileError, MERGED),
    ]
    kinds = {
        f"{what}: {name}": Malformed(build, error, names, what)
        for what, error, table in tables
        for name, (build, names) in table.items()
    }
    assert len(kinds) == sum(len(table) for _, _, table in tables)  # no name is there twice
    return kinds


MALFORMED = _kinds()

LLAMA_CPP_FALLS: dict[str, list[str]] = {
    "a typed getter on a key of another type (gguf.cpp)": [
        "base: architecture as u32",
        "base: type as u8",
        "base: block count as str",
        "sidecar: type of an adapter as u32",
        "sidecar: adapter.type as u32",
        "sidecar: architecture of an adapter as u32",
        "sidecar: scale as one number",
    ],
    "a getter on an array (gguf.cpp)": [
        "base: architecture as array",
        "base: block count as array",
        "sidecar: type of an adapter as array",
    ],
    "a block count outside 1 to 512 (llama-model.cpp)": ["base: 0 blocks", "base: 513 blocks"],
    "an epsilon below 0 or NaN, at the first token (ops.cpp)": ["base: epsilon negative", "base: epsilon NaN"],
    "equal tokens (llama-vocab.cpp)": ["base: token twice", "base: token twice behind NUL"],
    "an empty key (gguf.cpp)": ["header: empty key"],
    "no tokenizer, or one without text, at the first text (llama-vocab.cpp)": [
        "base: no tokenizer",
        "base: tokenizer none",
        "base: tokenizer no_vocab",
    ],
    "no BOS (llama-vocab.cpp)": ["base: no BOS to add", "base: BOS outside"],
    "std::out_of_range for a missing byte token (llama-vocab.cpp)": ["base: byte token missing"],
    "a null function for integer weights (ggml-cpu.c)": ["header: type I8", "header: type I32", "header: type F64"],
    "a division by a dimension of 0 (ggml.c)": ["header: dimension 0", "sidecar: a dimension of 0"],
    "a write outside for an unchecked third dimension (llama-adapter.cpp)": ["sidecar: a third dimension"],
    "four rounds of size arithmetic (gguf.cpp)": [
        "header: product wraps to 0",
        "header: product wraps to 4",
        "header: bytes wrap",
        "header: padding wraps",
        "header: offset 2^64-32",
    ],
    "accepted: weights that are no numbers": ["sidecar: weights NaN", "sidecar: weights infinite"],
    "accepted: a scale that is no number, or none": ["sidecar: scale NaN", "sidecar: scale absent"],
    "accepted: an adapter without tensors": ["sidecar: an adapter without tensors"],
}
"""Where llama.cpp itself aborts, crashes, or reads on as if nothing were, and the kinds that stand for it."""
