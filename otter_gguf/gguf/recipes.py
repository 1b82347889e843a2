"""The tensors of a sidecar and those of the adapter that they are made of: names, shapes and order, declared once.

Reader and validator take the shapes from here (:mod:`.sidecar`), the converters how rows are stacked. Symbols as in
``docs/method.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from .. import architectures
from ..architectures import Architecture, SubLayer
from ..config import InsertionConfig
from ..tensors import Shape
from . import keys


@dataclass(frozen=True)
class Part:
    """Rows of a GGUF tensor that come from one tensor of the adapter."""

    name: str
    """Name in the adapter."""
    shape: Shape
    """(rows, columns), or (columns) of a vector."""
    head_size: int = 0
    """Rows of a head, if they are permuted within it for llama.cpp's rotary embedding."""
    first: int = 0
    """Its first row in the adapter's tensor."""
    count: int = 0
    """How many rows it has there, in each stride; 0 = all."""
    stride: int = 0
    """Rows from one head to the next, if the adapter's tensor has queries, keys and values head by head."""

    @property
    def n_rows(self) -> int:
        """Rows; a vector is one row."""
        if self.count:
            return self.count * (self.shape[0] // self.stride if self.stride else 1)
        return self.shape[0] if len(self.shape) == 2 else 1

    def pieces(self) -> Iterator[Part]:
        """Itself, cut where its rows do not follow each other."""
        if not self.stride:
            yield self
            return
        for start in range(0, self.shape[0], self.stride):
            yield replace(self, first=self.first + start, stride=0)


Recipe = tuple[str, tuple[Part, ...]]
"""A tensor of the sidecar, and what is stacked in it in this order."""


def recipes(config: InsertionConfig) -> dict[str, tuple[Part, ...]]:
    """The parts of every inserted tensor, by its name in a GGUF, in file order.

    ``UnsupportedError`` for an architecture without a file in :mod:`otter_gguf.architectures`.
    """
    return dict(_recipes(config))


def expected_tensors(config: InsertionConfig) -> dict[str, Shape]:
    """Every inserted tensor of a configuration in file order, with its shape in GGUF order (columns first).

    ``UnsupportedError`` as from :func:`recipes`.
    """
    return {name: _gguf_shape(parts) for name, parts in _recipes(config)}


def _gguf_shape(parts: tuple[Part, ...]) -> Shape:
    columns = parts[0].shape[-1]
    return (columns, sum(part.n_rows for part in parts)) if len(parts[0].shape) == 2 else (columns,)


def _recipes(config: InsertionConfig) -> Iterator[Recipe]:
    """Of a layer whose sub-layers share a norm that norm may come twice."""
    base, architecture = config.base, architectures.of_base(config.base)
    if config.state_source == "table":
        yield _single(keys.TOKEN_EMBD, architecture.embedding, base.n_vocab, config.width)
    for layer in range(base.n_layer):
        prefix = f"{architecture.layers}.{layer}."
        for key, parts in (*_attention(config, architecture, layer), *_ffn(config, architecture, layer)):
            yield key.format(layer=layer), tuple(replace(part, name=prefix + part.name) for part in parts)
    if any(head.input != "base" for head in config.heads):
        yield from _norm(config, architecture, architecture.norm, keys.OUTPUT_NORM, keys.OUTPUT_NORM_BIAS)
    for head in config.heads:
        rows, path = config.head_rows(head), f"heads.{head.name}"
        yield _single(keys.HEAD_WEIGHT.format(name=head.name), path, rows, config.head_input_size(head))
        yield _single(keys.HEAD_BIAS.format(name=head.name), path, rows, kind="bias")
        for table, shape in head.of_kind.tables(head, base.n_vocab).items():
            yield _single(keys.head_table(table).format(name=head.name), f"{path}.{table}", *shape)


def _single(key: str, path: str, *shape: int, kind: str = "weight") -> Recipe:
    """A tensor that is the adapter's as it is."""
    return key, (Part(f"{path}.otter.{kind}", shape),)


def _attention(config: InsertionConfig, architecture: Architecture, layer: int) -> Iterator[Recipe]:
    """The inserted tensors of a layer's attention; names without the layer."""
    attention, n, n_kv = architecture.attention, config.base.head_dim, config.n_head_kv[layer]
    if not n_kv:
        return
    n_query = config.n_query_heads(layer)
    yield from _norm(config, architecture, attention.norm, keys.ATTN_NORM, keys.ATTN_NORM_BIAS)
    yield keys.ATTN_QKV, _attention_inputs(config, architecture, n_kv)
    if attention.joint_head_norms:
        of_queries, of_keys = attention.head_norms
        yield _single(keys.ATTN_Q_NORM, of_queries, n * n_query)
        yield _single(keys.ATTN_K_NORM, of_keys, n * n_kv)
    yield _single(keys.ATTN_OUTPUT, attention.output, config.width, n * (config.base.n_head + n_query))
    yield from _behind(config, attention, keys.ATTN_OUTPUT_BIAS, keys.ATTN_POST_NORM)


def _ffn(config: InsertionConfig, architecture: Architecture, layer: int) -> Iterator[Recipe]:
    """The inserted tensors of a layer's FFN; names without the layer."""
    ffn, n_ff = architecture.ffn, config.n_ff[layer]
    if not n_ff:
        return
    shared = (keys.ATTN_NORM, keys.ATTN_NORM_BIAS)
    norm, bias = shared if architecture.one_norm else (keys.FFN_NORM, keys.FFN_NORM_BIAS)
    yield from _norm(config, architecture, ffn.norm, norm, bias)
    yield keys.FFN_UP, _stacked(ffn.inputs, [(n_ff, 0)] * len(ffn.inputs), config.base.n_embd + config.width)
    yield _single(keys.FFN_DOWN, ffn.output, config.width, config.ffn_columns(layer))
    yield from _behind(config, ffn, keys.FFN_DOWN_BIAS, keys.FFN_POST_NORM)


def _norm(config: InsertionConfig, architecture: Architecture, path: str, key: str, bias: str) -> Iterator[Recipe]:
    """The norm that input maps read, if there is one."""
    if path:
        yield _single(key, path, config.width)
    if path and architecture.layer_norm:
        yield _single(bias, path, config.width, kind="bias")


def _behind(config: InsertionConfig, sub_layer: SubLayer, bias: str, norm: str) -> Iterator[Recipe]:
    """What follows a sub-layer's output map."""
    if sub_layer.output_bias:
        yield _single(bias, sub_layer.output, config.width, kind="bias")
    if sub_layer.post_norm:
        yield _single(norm, sub_layer.post_norm, config.width)


def _attention_inputs(config: InsertionConfig, architecture: Architecture, n_kv: int) -> tuple[Part, ...]:
    """Query, key and value rows."""
    base, attention = config.base, architecture.attention
    columns, n = base.n_embd + config.width, base.head_dim
    rope = n if architecture.interleaved_rope else 0
    heads = ((base.group, rope), (1, rope), (1, 0))
    if not attention.by_head:
        return _stacked(attention.inputs, [(n * n_kv * count, head_size) for count, head_size in heads], columns)
    name, stride = f"{attention.inputs[0]}.otter.weight", n * (base.group + 2)
    first = (0, n * base.group, n * (base.group + 1))
    return tuple(
        Part(name, (stride * n_kv, columns), head_size, start, n * count, stride)
        for start, (count, head_size) in zip(first, heads, strict=True)
    )


def _stacked(paths: Sequence[str], sizes: Sequence[tuple[int, int]], columns: int) -> tuple[Part, ...]:
    """The input maps of a sub-layer; the tensor of a fused one is stacked already, and never permuted.

    ``sizes``: rows of each, and ``Part.head_size``.
    """
    parts = []
    for path, group in groupby(zip(paths, sizes, strict=True), key=lambda entry: entry[0]):
        rows, head_sizes = zip(*(size for _, size in group), strict=True)
        parts.append(Part(f"{path}.otter.weight", (sum(rows), columns), head_sizes[0]))
    return tuple(parts)
