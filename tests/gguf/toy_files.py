"""Small files for tests: a base that llama.cpp can load, an adapter checkpoint, a sidecar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from otter_gguf.converters.adapter import convert_adapter

from otter_gguf import _native
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.writer import TensorPlan, write_gguf

Float32 = npt.NDArray[np.float32]

GEOMETRY = BaseGeometry("llama", n_layer=2, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=96, n_vocab=288)
_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"▁{i}" for i in range(29))]
_TOKEN_TYPES = [2, 3, 3, *[6] * 256, *[1] * 29]


def insertion(**changes: Any) -> InsertionConfig:
    """An insertion with different sizes in its two layers."""
    fields: dict[str, Any] = {
        "base": GEOMETRY,
        "width": 32,
        "n_head_kv": (1, 2),
        "n_ff": (32, 0),
        "heads": (HeadConfig(), HeadConfig("safety", ("harm", "help"), "both", "tanh", (2.0, 0.5), (0.0, -1.0))),
    }
    return InsertionConfig(**(fields | changes))


# ---- base ------------------------------------------------------------------------------------------------------


def base_tensors(geometry: BaseGeometry = GEOMETRY, seed: int = 0) -> dict[str, Float32]:
    """Weights by Hugging Face name, (rows, columns)."""
    rng = np.random.default_rng(seed)
    d, n, f = geometry.n_embd, geometry.head_dim, geometry.n_ff
    query, key = n * geometry.n_head, n * geometry.n_head_kv
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (geometry.n_vocab, d)}
    for layer in range(geometry.n_layer):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (d,),
            f"{prefix}.self_attn.q_proj.weight": (query, d),
            f"{prefix}.self_attn.k_proj.weight": (key, d),
            f"{prefix}.self_attn.v_proj.weight": (key, d),
            f"{prefix}.self_attn.o_proj.weight": (d, query),
            f"{prefix}.post_attention_layernorm.weight": (d,),
            f"{prefix}.mlp.gate_proj.weight": (f, d),
            f"{prefix}.mlp.up_proj.weight": (f, d),
            f"{prefix}.mlp.down_proj.weight": (d, f),
        }
    shapes |= {"model.norm.weight": (d,), "lm_head.weight": (geometry.n_vocab, d)}
    return {
        name: rng.normal(0.0, 0.1, shape).astype(np.float32) + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a base tensor."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.weight"
    layer, module = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_GGUF_NAMES[module]}.weight"


def rope_order(rows: Float32, head_dim: int) -> Float32:
    """Query or key rows as llama.cpp's Llama wants them, row by row: the slow, obvious way."""
    out = np.empty_like(rows)
    for head in range(0, len(rows), head_dim):
        for i in range(head_dim // 2):
            out[head + 2 * i] = rows[head + i]
            out[head + 2 * i + 1] = rows[head + head_dim // 2 + i]
    return out


def write_base(
    path: Path,
    *,
    type: str = "F32",
    tensors: dict[str, Float32] | None = None,
    geometry: BaseGeometry = GEOMETRY,
    metadata: tuple[KeyValue, ...] = (),
    leave_out: tuple[str, ...] = (),
) -> Path:
    """Write a Llama base; matrices in ``type``, with metadata replaced or added."""
    tensors = base_tensors(geometry) if tensors is None else tensors
    entries = {entry.key: entry for entry in (*base_metadata(geometry), *metadata)}
    plans = [_plan(name, values, type, geometry) for name, values in tensors.items() if name not in leave_out]
    write_gguf(path, list(entries.values()), plans, force=True)
    return path


def base_metadata(geometry: BaseGeometry) -> list[KeyValue]:
    """What llama.cpp needs to load the base."""
    prefix = geometry.architecture
    return [
        KeyValue("general.architecture", "str", geometry.architecture),
        KeyValue("general.name", "str", "toy"),
        KeyValue(f"{prefix}.block_count", "u32", geometry.n_layer),
        KeyValue(f"{prefix}.context_length", "u32", 512),
        KeyValue(f"{prefix}.embedding_length", "u32", geometry.n_embd),
        KeyValue(f"{prefix}.feed_forward_length", "u32", geometry.n_ff),
        KeyValue(f"{prefix}.attention.head_count", "u32", geometry.n_head),
        KeyValue(f"{prefix}.attention.head_count_kv", "u32", geometry.n_head_kv),
        KeyValue(f"{prefix}.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        KeyValue(f"{prefix}.rope.dimension_count", "u32", geometry.head_dim),
        KeyValue("tokenizer.ggml.model", "str", "llama"),
        KeyValue("tokenizer.ggml.tokens", "arr[str]", _PIECES[: geometry.n_vocab]),
        KeyValue("tokenizer.ggml.scores", "arr[f32]", [-float(i) for i in range(geometry.n_vocab)]),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", _TOKEN_TYPES[: geometry.n_vocab]),
        KeyValue("tokenizer.ggml.bos_token_id", "u32", 1),
        KeyValue("tokenizer.ggml.eos_token_id", "u32", 2),
        KeyValue("tokenizer.ggml.unknown_token_id", "u32", 0),
    ]


def _plan(name: str, values: Float32, type: str, geometry: BaseGeometry) -> TensorPlan:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        values = rope_order(values, geometry.head_dim)
    type = "F32" if values.ndim == 1 else type
    rows = np.atleast_2d(values)
    return TensorPlan(gguf_name(name), type, values.shape[::-1], lambda: [_native.quantize(rows, type)])


# ---- adapter and sidecar ---------------------------------------------------------------------------------------


def adapter_shapes(config: InsertionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of docs/architecture.md, written down a second time."""
    base, e = config.base, config.width
    d, n, f = base.n_embd, base.head_dim, base.n_ff
    if config.state_source == "table":
        yield "model.embed_tokens.otter.weight", (base.n_vocab, e)
    for layer, (k, inner) in enumerate(zip(config.n_head_kv, config.n_ff, strict=True)):
        prefix, queries = f"model.layers.{layer}", base.n_head // base.n_head_kv * k
        if k:
            yield f"{prefix}.input_layernorm.otter.weight", (e,)
            yield f"{prefix}.self_attn.q_proj.otter.weight", (n * queries, d + e)
            yield f"{prefix}.self_attn.k_proj.otter.weight", (n * k, d + e)
            yield f"{prefix}.self_attn.v_proj.otter.weight", (n * k, d + e)
            yield f"{prefix}.self_attn.o_proj.otter.weight", (e, n * (base.n_head + queries))
        if inner:
            yield f"{prefix}.post_attention_layernorm.otter.weight", (e,)
            yield f"{prefix}.mlp.gate_proj.otter.weight", (inner, d + e)
            yield f"{prefix}.mlp.up_proj.otter.weight", (inner, d + e)
            yield f"{prefix}.mlp.down_proj.otter.weight", (e, f + inner)
    if any(head.input != "base" for head in config.heads):
        yield "model.norm.otter.weight", (e,)
    for head in config.heads:
        columns = {"inserted": e, "base": d, "both": d + e}[head.input]
        rows = len(head.labels) if head.kind == "value" else head.rank + 1
        yield f"heads.{head.name}.otter.weight", (rows, columns)
        yield f"heads.{head.name}.otter.bias", (rows,)
        if head.kind == "vocabulary":
            yield f"heads.{head.name}.table.otter.weight", (base.n_vocab, head.rank)


def adapter_tensors(config: InsertionConfig, seed: int = 1) -> dict[str, Float32]:
    """Random weights of an adapter."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.0, 0.3, shape).astype(np.float32) for name, shape in adapter_shapes(config)}


def save_safetensors(path: Path, tensors: dict[str, Float32], dtype: str = "F32") -> None:
    """Write a safetensors file; numpy has no bfloat16, so ``BF16`` keeps the upper half of each value."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        if dtype == "BF16":
            part = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            part = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_adapter(
    folder: Path,
    config: InsertionConfig | None = None,
    tensors: dict[str, Float32] | None = None,
    dtype: str = "F32",
    **changes: Any,
) -> Path:
    """An adapter checkpoint; ``changes`` replace entries of its ``otter_config.json``."""
    config = config or insertion()
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "format": "otter-adapter",
        "version": 1,
        "insertion": config.to_dict(),
        "base_model_name_or_path": "toys/base",
        "revision": "abc123",
        "training": {},
    }
    (folder / "otter_config.json").write_text(json.dumps(data | changes))
    save_safetensors(folder / "otter_model.safetensors", tensors or adapter_tensors(config), dtype)
    return folder


def write_sidecar(
    path: Path, base: Path, config: InsertionConfig | None = None, *, outtype: str = "auto", seed: int = 1
) -> Path:
    """A sidecar of random weights, through the converter."""
    config = config or insertion()
    folder = write_adapter(path.with_suffix(".adapter"), config, adapter_tensors(config, seed))
    with BaseFiles.open(base) as files:
        convert_adapter(folder, path, files, outtype=outtype, force=True)
    return path


# ---- other forms ----------------------------------------------------------------------------------------------------


def rewrite(
    source: Path,
    target: Path,
    *,
    metadata: Mapping[str, KeyValue | None] | None = None,
    tensors: Mapping[str, TensorPlan | None] | None = None,
) -> Path:
    """Copy a GGUF file with entries replaced, added or (None) left out."""
    with _native.GgufFile(str(source)) as file:
        entries: dict[str, KeyValue | None] = {
            key: KeyValue(key, file.key_type(key), file.value(key)) for key in file.keys
        }
        plans: dict[str, TensorPlan | None] = {tensor.name: copied_tensor(file, tensor) for tensor in file.tensors}
        entries |= metadata or {}
        plans |= tensors or {}
        write_gguf(target, [entry for entry in entries.values() if entry], [plan for plan in plans.values() if plan])
    return target


def copied_tensor(file: _native.GgufFile, tensor: _native.TensorInfo) -> TensorPlan:
    """A tensor as it is."""
    data = bytes(file.tensor_data(tensor.name))
    return TensorPlan(tensor.name, tensor.type, tensor.shape, lambda: [data])


def float_tensor(name: str, values: Float32) -> TensorPlan:
    """A tensor of given values in F32."""
    return TensorPlan(name, "F32", values.shape[::-1], lambda: [values.astype("<f4").tobytes()])


def split_base(source: Path, n_shards: int, split_count: int | None = None) -> Path:
    """Shards as llama.cpp's gguf-split writes them: metadata in the first one only."""
    with _native.GgufFile(str(source)) as file:
        for number in range(n_shards):
            entries = [KeyValue(key, file.key_type(key), file.value(key)) for key in file.keys] if number == 0 else []
            entries.append(KeyValue("split.no", "u16", number))
            entries.append(KeyValue("split.count", "u16", split_count or n_shards))
            entries.append(KeyValue("split.tensors.count", "i32", len(file.tensors)))
            plans = [copied_tensor(file, tensor) for tensor in file.tensors[number::n_shards]]
            write_gguf(source.with_name(f"part-{number + 1:05d}-of-{n_shards:05d}.gguf"), entries, plans)
    return source.with_name(f"part-00001-of-{n_shards:05d}.gguf")
