"""What coverage-guided fuzzing of the validator begins with, for ``make fuzz-validator``.

``python -m tests.gguf.corpus FOLDER`` writes there: ``seeds``, the smallest file of each kind; ``named``, the table of
malformed headers and bases; the second part of a base in two files. In ``tests/gguf/corpus`` is what was found beyond.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.gguf.gguf_builder import TENSOR_TYPES, Gguf, Tensor, Value, toy_llama
from tests.gguf.malformed import MALFORMED, Build

WIDTH, HEAD = 8, 4
SECOND = "blk.0.ffn_down.weight"
"""The tensor in the second part."""
GPT2_TOKENS = [chr(0x41 + i) for i in range(12)]


def tiny(architecture: str = "llama", *, n_layer: int = 1) -> Gguf:
    """A valid base of about 3 kB with a tokenizer of type `gpt2`."""
    file = toy_llama(n_layer, WIDTH, n_head=2, n_head_kv=1, n_ff=WIDTH)
    file = file.drop("tokenizer.ggml.scores").drop("tokenizer.ggml.add_bos_token")
    file = (
        file.set("tokenizer.ggml.model", "str", "gpt2")
        .set("tokenizer.ggml.pre", "str", "default")
        .set("tokenizer.ggml.tokens", "arr[str]", GPT2_TOKENS)
        .set("tokenizer.ggml.token_type", "arr[i32]", [1] * len(GPT2_TOKENS))
        .set("tokenizer.ggml.merges", "arr[str]", ["A B", "B C"])
    )
    file = file.tensor("token_embd.weight", Tensor((WIDTH, len(GPT2_TOKENS)))).tensor("output.weight", None)
    kvs: list[tuple[str | bytes, Value]] = [
        (str(key).replace("llama.", f"{architecture}.", 1) if str(key).startswith("llama.") else key, value)
        for key, value in file.kvs
    ]
    return Gguf(kvs=kvs, tensors=file.tensors).set("general.architecture", "str", architecture)


def bases() -> Iterator[tuple[str, Gguf]]:
    """One of each form that the validator tells apart."""
    yield "llama", tiny()
    yield "qwen2", tiny("qwen2").tensor("blk.0.attn_q.bias", Tensor((WIDTH,))).tensor("output.bias", Tensor((12,)))
    yield "gemma", tiny("gemma")
    yield "smollm3", tiny("smollm3")
    yield "granite", tiny("granite").set("granite.logit_scale", "f32", 2.0)
    norms = tiny("qwen3")
    for name in ("q", "k"):
        norms = norms.tensor(f"blk.0.attn_{name}_norm.weight", Tensor((HEAD,)))
    yield "qwen3", norms
    yield "other", tiny("otter")
    yield "experts", experts()
    yield "joined", joined()
    rope = tiny().set("llama.rope.scaling.type", "str", "longrope").set("llama.rope.scaling.factor", "f32", 2.0)
    yield "longrope", rope.tensor("rope_factors_long.weight", Tensor((HEAD // 2,)))
    layers = tiny(n_layer=2).set("llama.attention.head_count", "arr[u32]", [2, 2])
    yield "layers", layers.set("llama.feed_forward_length", "arr[i32]", [WIDTH, WIDTH])
    yield "split", tiny().tensor(SECOND, None).set("split.count", "u16", 2).set("split.no", "u16", 0)
    yield "gemma4", tiny().set("tokenizer.ggml.model", "str", "gemma4").set("tokenizer.ggml.bos_token_id", "u32", 2)
    yield "phi-3", tiny().set("general.name", "str", "Phi-3")
    extra = tiny().set("general.tensor_extra.name", "arr[str]", ["a"])
    yield "extra", extra.set("general.tensor_extra.prec_a4", "arr[bool]", [1]).set("general.type", "str", "model")


def experts() -> Gguf:
    """A mixture of two experts."""
    file = tiny().set("llama.expert_count", "u32", 2).set("llama.expert_used_count", "u32", 1)
    for name in ("gate", "up", "down"):
        file = file.tensor(f"blk.0.ffn_{name}.weight", None)
        file = file.tensor(f"blk.0.ffn_{name}_exps.weight", Tensor((WIDTH, WIDTH, 2)))
    return file.tensor("blk.0.ffn_gate_inp.weight", Tensor((WIDTH, 2)))


def joined() -> Gguf:
    """Queries, keys and values in one matrix with a bias, and a scale beside a matrix."""
    file = tiny()
    for name in ("q", "k", "v"):
        file = file.tensor(f"blk.0.attn_{name}.weight", None)
    file = file.tensor("blk.0.attn_qkv.weight", Tensor((WIDTH, WIDTH + 2 * HEAD)))
    file = file.tensor("blk.0.attn_qkv.bias", Tensor((WIDTH + 2 * HEAD,)))
    return file.tensor("blk.0.ffn_up.scale", Tensor((1,)))


def byte_tokens() -> Gguf:
    """With a tokenizer of type `llama`, which needs all 256 bytes."""
    file = toy_llama(1, WIDTH, n_head=2, n_head_kv=1, n_ff=WIDTH).tensor("output.weight", None)
    return file.tensor("token_embd.weight", Tensor((WIDTH, 259), "F16"))


def every_type() -> Gguf:
    """A block of each type, NaN in all of them, and a value of each type."""
    values = {"f64": 1.0, "bool": 1, "arr[str]": ["a", ""], "arr[bool]": [0, 1], "i8": -1, "u64": 2**63, "arr[u8]": []}
    file = Gguf()
    for type, value in values.items():
        file = file.set(f"key.{type}", type, value)
    for type, (_, block, size) in TENSOR_TYPES.items():
        file = file.tensor(type, Tensor((block,), type, b"\xff" * size))
    return file


def second_part() -> Gguf:
    """For the seed `split`."""
    return Gguf(tensors=[(SECOND, Tensor((WIDTH, WIDTH)))]).set("split.no", "u16", 1).set("split.count", "u16", 2)


def built(build: Build) -> bytes:
    file = build()
    return file if isinstance(file, bytes) else file.build()


def write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / "".join(c if c.isalnum() else "-" for c in name)).write_bytes(content)


def main() -> int:
    folder = Path(sys.argv[1])
    files = dict(bases()) | {"byte tokens": byte_tokens(), "every type": every_type()}
    named = {kind: built(entry.build) for kind, entry in MALFORMED.items() if entry.what in ("header", "base")}
    small = {kind: content for kind, content in named.items() if len(content) < 400}
    write(folder / "seeds", small | {name: file.build() for name, file in files.items()})
    write(folder / "named", named)
    (folder / "fuzz-00002-of-00002.gguf").write_bytes(second_part().build())
    return 0


if __name__ == "__main__":
    sys.exit(main())
