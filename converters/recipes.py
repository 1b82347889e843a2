"""How a sidecar's tensors are made of an adapter's: names, stacking, order of rows. Declared once, used by all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from otter_gguf import _native, architectures
from otter_gguf.architectures import SubLayer
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.gguf import keys
from otter_gguf.gguf.sidecar import expected_tensors, mixture_type
from otter_gguf.gguf.writer import TensorPlan
from otter_gguf.quantization import fitting_type

from .checkpoint import Float32, TensorSource

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "auto")

_CHUNK_VALUES = 1 << 22  # values in memory at a time; a few buffers of them come to well under 100 MB
_F16_MAX = 65504.0


@dataclass(frozen=True)
class Part:
    """Rows of a GGUF tensor that come from one tensor of the checkpoint."""

    name: str
    """Name in the adapter checkpoint."""
    shape: tuple[int, ...]
    """(rows, columns), or (columns) of a vector."""
    head_size: int = 0
    """Rows of a head, if they are permuted within it for llama.cpp's rotary embedding."""
    first: int = 0
    """Its first row in the tensor of the checkpoint."""
    count: int = 0
    """How many of that tensor's rows it has; 0 = all."""

    @property
    def n_rows(self) -> int:
        """Rows; a vector is one row."""
        return self.count or (self.shape[0] if len(self.shape) == 2 else 1)


def recipes(config: InsertionConfig) -> dict[str, tuple[Part, ...]]:
    """The parts of every tensor of a sidecar (keys as in ``expected_tensors``), stacked in this order."""
    base, width, shapes = config.base, config.width, expected_tensors(config)
    architecture = architectures.of_base(base)
    made: dict[str, tuple[Part, ...]] = {
        keys.TOKEN_EMBD: (Part(f"{architecture.embedding}.otter.weight", (base.n_vocab, width)),),
        keys.OUTPUT_NORM: (Part(f"{architecture.norm}.otter.weight", (width,)),),
        keys.OUTPUT_NORM_BIAS: (Part(f"{architecture.norm}.otter.bias", (width,)),),
    }
    for layer in range(base.n_layer):
        hf = f"{architecture.layers}.{layer}."
        for keys_of, sub_layer in ((_ATTENTION_KEYS, architecture.attention), (_FFN_KEYS, architecture.ffn)):
            for key, path, kind in zip(keys_of, _paths(sub_layer), _KINDS, strict=False):
                name = key.format(layer=layer)
                made[name] = (Part(f"{hf}{path}.otter.{kind}", shapes.get(name, ())[::-1]),)
        made[keys.ATTN_QKV.format(layer=layer)] = _attention_inputs(hf, config, layer)
        made[keys.FFN_UP.format(layer=layer)] = _ffn_inputs(hf, config, layer)
    for head in config.heads:
        shape = (config.head_rows(head), config.head_input_size(head))
        made[keys.HEAD_WEIGHT.format(name=head.name)] = (Part(f"heads.{head.name}.otter.weight", shape),)
        made[keys.HEAD_BIAS.format(name=head.name)] = (Part(f"heads.{head.name}.otter.bias", shape[:1]),)
        for table, shape in head.of_kind.tables(head, base.n_vocab).items():
            made[keys.head_table(table).format(name=head.name)] = (
                Part(f"heads.{head.name}.{table}.otter.weight", shape),
            )
    return {name: made[name] for name in shapes}


# What a sub-layer has one tensor of: norms and output map; in the order of _paths, which ends where there is no more.
_ATTENTION_KEYS = (
    *(keys.ATTN_NORM, keys.ATTN_NORM_BIAS, keys.ATTN_OUTPUT, keys.ATTN_OUTPUT_BIAS, keys.ATTN_POST_NORM),
    *(keys.ATTN_Q_NORM, keys.ATTN_K_NORM),
)
_FFN_KEYS = (keys.FFN_NORM, keys.FFN_NORM_BIAS, keys.FFN_DOWN, keys.FFN_DOWN_BIAS, keys.FFN_POST_NORM)
_KINDS = ("weight", "bias", "weight", "bias", "weight", "weight", "weight")


def _paths(sub_layer: SubLayer) -> tuple[str, ...]:
    return (*(sub_layer.norm,) * 2, *(sub_layer.output,) * 2, sub_layer.post_norm, *sub_layer.head_norms)


def _attention_inputs(prefix: str, config: InsertionConfig, layer: int) -> tuple[Part, ...]:
    """Query, key and value rows of a layer."""
    base, n_kv = config.base, config.n_head_kv[layer]
    architecture = architectures.of_base(base)
    columns, n = base.n_embd + config.width, base.head_dim
    rope = n if architecture.interleaved_rope else 0
    heads = ((base.group, rope), (1, rope), (1, 0))
    if not architecture.attention.by_head:
        sizes = [(n * n_kv * count, head_size) for count, head_size in heads]
        return _stacked(prefix, architecture.attention.inputs, sizes, columns)
    name, rows = f"{prefix}{architecture.attention.inputs[0]}.otter.weight", n * (base.group + 2)
    first = (0, n * base.group, n * (base.group + 1))
    return tuple(
        Part(name, (rows * n_kv, columns), head_size, rows * head + start, n * count)
        for start, (count, head_size) in zip(first, heads, strict=True)
        for head in range(n_kv)
    )


def _ffn_inputs(prefix: str, config: InsertionConfig, layer: int) -> tuple[Part, ...]:
    """Gate and up rows of a layer, or up rows alone."""
    paths = architectures.of_base(config.base).ffn.inputs
    return _stacked(prefix, paths, [(config.n_ff[layer], 0)] * len(paths), config.base.n_embd + config.width)


def _stacked(prefix: str, paths: Sequence[str], sizes: Sequence[tuple[int, int]], columns: int) -> tuple[Part, ...]:
    """The input maps of a sub-layer; the tensor of a fused one is stacked already, and never permuted.

    ``sizes``: rows of each, and ``Part.head_size``.
    """
    parts = []
    for path, group in groupby(zip(paths, sizes, strict=True), key=lambda entry: entry[0]):
        rows, head_sizes = zip(*(size for _, size in group), strict=True)
        parts.append(Part(f"{prefix}{path}.otter.weight", (sum(rows), columns), head_sizes[0]))
    return tuple(parts)


def check_source(source: TensorSource, config: InsertionConfig) -> None:
    """``FileError`` that names every missing, extra or misshapen tensor of an adapter."""
    found = source.shapes()
    expected = {part.name: part.shape for parts in recipes(config).values() for part in parts}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} does not belong here" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise FileError(f"{source.path}: tensors: {'; '.join(problems)}")


def plan_tensors(source: TensorSource, config: InsertionConfig, outtype: str) -> list[TensorPlan]:
    """What to write into a sidecar; nothing is read before the writer asks for it."""
    shapes = expected_tensors(config)
    return [_plan(source, name, shapes[name], parts, outtype) for name, parts in recipes(config).items()]


def tensor_type(name: str, n_columns: int, outtype: str) -> str:
    """The type that a tensor gets: of the mixture ``outtype``, or F16 where its rows do not fit that type's blocks."""
    if outtype not in OUTTYPES:
        raise ConfigError(f"--outtype {outtype}: expected one of {', '.join(OUTTYPES)}")
    return fitting_type(mixture_type(name, "Q8_0" if outtype == "auto" else outtype.upper()), n_columns)


def permute_rows(rows: Float32, head_size: int) -> Float32:
    """Rows of whole heads from Hugging Face's order to llama.cpp's.

    Hugging Face rotates channel i with channel i + n/2 of a head, llama.cpp's Llama rotates 2i with 2i + 1.
    """
    halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def unpermute_rows(rows: Float32, head_size: int) -> Float32:
    """Inverse of :func:`permute_rows`."""
    pairs = rows.reshape(-1, head_size // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def row_ranges(n_rows: int, n_columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows that fit in memory, each a multiple of ``multiple`` rows long."""
    step = max(multiple, _CHUNK_VALUES // n_columns // multiple * multiple)
    for begin in range(0, n_rows, step):
        yield begin, min(begin + step, n_rows)


def _plan(source: TensorSource, name: str, shape: tuple[int, ...], parts: tuple[Part, ...], outtype: str) -> TensorPlan:
    type = tensor_type(name, shape[0], outtype)

    def chunks() -> Iterator[bytes]:
        for part in parts:
            for begin, end in row_ranges(part.n_rows, part.shape[-1], part.head_size or 1):
                rows = source.rows(part.name, part.first + begin, part.first + end)
                _check_values(source, part.name, part.first + begin, rows, type)
                yield _native.quantize(permute_rows(rows, part.head_size) if part.head_size else rows, type)

    return TensorPlan(name, type, shape, chunks)


def _check_values(source: TensorSource, name: str, first_row: int, rows: Float32, type: str) -> None:
    limit = _F16_MAX if type == "F16" else np.finfo(np.float32).max
    wrong = ~(np.abs(rows) <= limit)  # true for NaN too
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        advice = "; use --outtype bf16 or f32" if np.isfinite(rows[row, column]) else ""
        raise FileError(
            f"{source.path}: tensor {name}: element [{first_row + row}, {column}] is {rows[row, column]}, "
            f"which {type} does not hold{advice}"
        )
