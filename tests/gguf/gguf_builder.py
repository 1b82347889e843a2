"""Writes GGUF files byte by byte, right ones and wrong ones: every count, type and offset can be set to a lie."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from otter_gguf import _native

VALUE_TYPES = {
    name: number
    for number, name in enumerate(
        ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")
    )
}
VALUE_FORMATS = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B",
    "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip

# number, elements of a block, bytes of a block
TENSOR_TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74),
    "IQ2_S": (22, 256, 82), "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110), "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
}  # fmt: skip

# what a model cannot be computed with
UNUSABLE_TENSOR_TYPES = {
    "Q8_1": (9, 32, 36), "Q8_K": (15, 256, 292), "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4),
    "I64": (27, 1, 8), "F64": (28, 1, 8),
}  # fmt: skip


def text(value: str | bytes) -> bytes:
    """A GGUF string: length and bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(type: str, value: Any) -> bytes:
    """One value without its type tag."""
    return text(value) if type == "str" else struct.pack("<" + VALUE_FORMATS[type], value)


@dataclass(frozen=True)
class Value:
    """One metadata value: its type tag and its bytes."""

    tag: int
    payload: bytes

    @classmethod
    def of(cls, type: str, value: Any) -> Value:
        """``of("u32", 5)``, ``of("arr[str]", ["a", "b"])``."""
        if not type.startswith("arr["):
            return cls(VALUE_TYPES[type], scalar(type, value))
        element = type[4:-1]
        header = struct.pack("<IQ", VALUE_TYPES[element], len(value))
        return cls(VALUE_TYPES["arr"], header + b"".join(scalar(element, item) for item in value))


@dataclass(frozen=True)
class Tensor:
    """One tensor; ``type`` may be a number that no GGUF reader knows, ``offset`` None is where it belongs."""

    shape: tuple[int, ...]
    type: str | int = "F32"
    data: bytes | None = None
    offset: int | None = None
    n_dims: int | None = None

    @property
    def layout(self) -> tuple[int, int, int]:
        """Number of the type, elements and bytes of its block."""
        return (self.type, 1, 4) if isinstance(self.type, int) else (TENSOR_TYPES | UNUSABLE_TENSOR_TYPES)[self.type]

    def bytes(self) -> bytes:
        """The data, zeros if none was given."""
        if self.data is not None:
            return self.data
        _, block, size = self.layout
        return bytes(math.prod(self.shape) // block * size)


@dataclass
class Gguf:
    """A file to be. Lists of pairs, so that names can appear twice; names are str, or bytes where they are no text."""

    kvs: list[tuple[str | bytes, Value]] = field(default_factory=list)
    tensors: list[tuple[str | bytes, Tensor]] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_kv: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    @classmethod
    def read(cls, path: Path) -> Gguf:
        """A good file, to be changed."""
        with _native.GgufFile(str(path)) as file:
            return cls(
                kvs=[
                    (key, Value(VALUE_TYPES[file.key_type(key).partition("[")[0]], bytes(file.raw_value(key))))
                    for key in file.keys
                ],
                tensors=[(t.name, Tensor(t.shape, t.type, bytes(file.tensor_data(t.name)))) for t in file.tensors],
                alignment=file.alignment,
            )

    def set(self, key: str, type: str, value: Any) -> Gguf:
        """This file with a key set to another type or value, at its place or at the end."""
        return self.put(key, Value.of(type, value))

    def put(self, key: str | bytes, value: Value) -> Gguf:
        """As :meth:`set`, from a ready value."""
        known = any(name == key for name, _ in self.kvs)
        kvs = [(name, value if name == key else old) for name, old in self.kvs]
        return replace(self, kvs=kvs if known else [*kvs, (key, value)])

    def drop(self, key: str) -> Gguf:
        """This file without a key."""
        return replace(self, kvs=[(name, value) for name, value in self.kvs if name != key])

    def tensor(self, name: str | bytes, tensor: Tensor | None) -> Gguf:
        """This file with a tensor replaced, added at the end, or (None) removed."""
        known = any(old == name for old, _ in self.tensors)
        tensors = [(old, tensor if old == name else value) for old, value in self.tensors]
        if not known:
            tensors.append((name, tensor))
        return replace(self, tensors=[(old, value) for old, value in tensors if value is not None])

    def header(self) -> bytes:
        """Everything before the tensor data, without padding."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.kvs) if self.n_kv is None else self.n_kv
        out = bytearray(self.magic + struct.pack("<IQQ", self.version, n_tensors, n_kv))
        for key, value in self.kvs:
            out += text(key) + struct.pack("<I", value.tag) + value.payload
        offset = 0
        for name, tensor in self.tensors:
            n_dims = len(tensor.shape) if tensor.n_dims is None else tensor.n_dims
            place = offset if tensor.offset is None else tensor.offset
            out += text(name) + struct.pack("<I", n_dims) + struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            out += struct.pack("<IQ", tensor.layout[0], place)
            offset += self._padded(len(tensor.bytes()))
        return bytes(out)

    def build(self) -> bytes:
        """The whole file."""
        out = bytearray(self.header())
        if self.tensors:
            out += bytes(self._padded(len(out)) - len(out))
        for _, tensor in self.tensors:
            data = tensor.bytes()
            out += data + bytes(self._padded(len(data)) - len(data))
        return bytes(out)

    def write(self, path: Path) -> str:
        """Write the file; its path."""
        path.write_bytes(self.build())
        return str(path)

    def _padded(self, n: int) -> int:
        return -(-n // self.alignment) * self.alignment


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def toy_llama(n_layer: int = 2, n_embd: int = 64, n_head: int = 4, n_head_kv: int = 2, n_ff: int = 96) -> Gguf:
    """A small, valid `llama` base with a byte-level tokenizer of type `llama`; all weights 0."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS]
    n_vocab = len(tokens)
    head = n_embd // n_head
    file = Gguf()
    for key, type, value in (
        ("general.architecture", "str", "llama"),
        ("general.name", "str", "toy"),
        ("llama.context_length", "u32", 128),
        ("llama.embedding_length", "u32", n_embd),
        ("llama.block_count", "u32", n_layer),
        ("llama.feed_forward_length", "u32", n_ff),
        ("llama.attention.head_count", "u32", n_head),
        ("llama.attention.head_count_kv", "u32", n_head_kv),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("llama.rope.dimension_count", "u32", head),
        ("llama.rope.freq_base", "f32", 10000.0),
        ("tokenizer.ggml.model", "str", "llama"),
        ("tokenizer.ggml.tokens", "arr[str]", tokens),
        ("tokenizer.ggml.scores", "arr[f32]", [0.0] * n_vocab),
        ("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, *[6] * 256]),
        ("tokenizer.ggml.bos_token_id", "u32", 1),
        ("tokenizer.ggml.eos_token_id", "u32", 2),
        ("tokenizer.ggml.add_bos_token", "bool", 1),
    ):
        file = file.set(key, type, value)
    file.tensors = [
        ("token_embd.weight", Tensor((n_embd, n_vocab))),
        ("output_norm.weight", Tensor((n_embd,))),
        ("output.weight", Tensor((n_embd, n_vocab))),
    ]
    for layer in range(n_layer):
        file.tensors += [
            (f"blk.{layer}.{name}.weight", Tensor(shape))
            for name, shape in (
                ("attn_norm", (n_embd,)),
                ("attn_q", (n_embd, n_head * head)),
                ("attn_k", (n_embd, n_head_kv * head)),
                ("attn_v", (n_embd, n_head_kv * head)),
                ("attn_output", (n_head * head, n_embd)),
                ("ffn_norm", (n_embd,)),
                ("ffn_gate", (n_embd, n_ff)),
                ("ffn_up", (n_embd, n_ff)),
                ("ffn_down", (n_ff, n_embd)),
            )
        ]
    return file


def toy_gpt2() -> Gguf:
    """:func:`toy_llama` with a tokenizer of type `gpt2`."""
    tokens = [chr(0x21 + i) for i in range(200)]
    merges = [f"{tokens[i]} {tokens[i + 1]}" for i in range(20)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<extra_{i}>" for i in range(259 - len(tokens))]
    file = toy_llama().drop("tokenizer.ggml.scores").drop("tokenizer.ggml.add_bos_token")
    return (
        file.set("tokenizer.ggml.model", "str", "gpt2")
        .set("tokenizer.ggml.pre", "str", "llama-bpe")
        .set("tokenizer.ggml.tokens", "arr[str]", tokens)
        .set("tokenizer.ggml.token_type", "arr[i32]", [1] * len(tokens))
        .set("tokenizer.ggml.merges", "arr[str]", merges)
    )
