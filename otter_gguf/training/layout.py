"""Which module of the base is replaced by what: the method's block matrices as one list.

Symbols as in ``docs/method.md``. Construction (:mod:`.model`) and initialisation (:mod:`.initialisation`) read the same
list, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from ..architectures import Architecture, SubLayer
from ..config import InsertionConfig

Kind = Literal[
    "linear",
    "fused",
    "norm",
    "heads",
    "slice",
    "table",
    "activation",
    "narrow",
    "pad",
    "experts",
    "attention",
    "beside",
]


class Part(NamedTuple):
    """Rows of a fused map that are one map of the method."""

    base: int
    """Rows of the base."""
    inserted: int
    """Inserted rows, which stand behind the base's."""


@dataclass(frozen=True)
class Widening:
    """What replaces one module.

    ``linear``, ``fused``, ``norm`` and ``table`` have inserted tensors; ``slice`` takes h'_0 from the base's own
    embedding; ``activation`` is applied to both parts, ``heads`` to each head of both; ``narrow`` reads h alone and
    ``pad`` adds nothing to h' where nothing is inserted. ``experts`` is the module of a mixture of experts,
    ``attention`` one that computes attention by code of its own, and ``beside`` an inserted map in either.
    """

    path: str
    """The module, as Hugging Face names it."""
    kind: Kind
    rows: tuple[int, ...] = ()
    """The base's rows (of a table: columns) that `copy` initialisation takes; as many as are inserted."""
    base_columns: int = 0
    """Input size of the base's module; of ``heads``: how many heads the base has."""
    columns: int = 0
    """Input size of the inserted rows."""
    parts: tuple[Part, ...] = ()
    """The maps in a fused one, in the order of its rows; of an ``activation``: in the map whose output it reads."""
    bias: bool = False
    """Whether the inserted rows have a bias."""


def layout(architecture: Architecture, config: InsertionConfig) -> list[Widening]:
    """Every replaced module in data-flow order; empty for width 0, where the base stays as it is."""
    return list(_widenings(architecture, config)) if config.width else []


def _widenings(architecture: Architecture, config: InsertionConfig) -> Iterator[Widening]:
    base, channels = config.base, _channels(config)
    yield Widening(architecture.embedding, config.state_source, channels)
    if architecture.positions:  # a table has none: what they mean to h' is learned from h
        yield Widening(architecture.positions, "slice" if config.state_source == "slice" else "pad", channels)
    for i in range(base.n_layer):
        yield from _layer(architecture, config, i)
    reads_inserted = any(head.input != "base" for head in config.heads)
    final: Kind = "norm" if reads_inserted else "narrow"
    yield Widening(architecture.norm, final, channels, base.n_embd, bias=architecture.layer_norm)
    yield Widening(architecture.lm_head, "narrow", base_columns=base.n_embd)


def _layer(architecture: Architecture, config: InsertionConfig, i: int) -> Iterator[Widening]:
    base, layer = config.base, f"{architecture.layers}.{i}."
    attention, ffn = architecture.attention, architecture.ffn
    if architecture.one_norm:
        kind: Kind = "norm" if config.n_head_kv[i] or config.n_ff[i] else "narrow"
        yield Widening(layer + attention.norm, kind, _channels(config), base.n_embd, bias=architecture.layer_norm)
        # both read what it gives as it is
        attention, ffn = replace(attention, norm=""), replace(ffn, norm="")
    if config.n_head_kv[i]:
        sizes = (base.n_head * base.head_dim, base.n_head_kv * base.head_dim, base.n_head_kv * base.head_dim)
        attention_rows = _attention_rows(config, i)
        yield from _widened(layer, architecture, attention, config, sizes, attention_rows)
        yield from _head_norms(layer, attention, config, attention_rows)
    else:
        yield from _untouched(layer, attention, base.n_embd, base.n_head * base.head_dim)
    if config.n_ff[i]:
        rows, count = tuple(row % base.n_ff for row in range(config.n_ff[i])), len(ffn.inputs)
        yield from _widened(layer, architecture, ffn, config, (base.n_ff,) * count, (rows,) * count)
    else:
        yield from _untouched(layer, ffn, base.n_embd, base.n_ff)


def _widened(
    layer: str,
    architecture: Architecture,
    sub_layer: SubLayer,
    config: InsertionConfig,
    sizes: tuple[int, ...],
    rows: tuple[tuple[int, ...], ...],
) -> Iterator[Widening]:
    """Norm, input maps with the given rows, output map with e rows over the inner sizes of base and insertion.

    ``sizes``: rows of each of the base's input maps.
    """
    d, channels, inner = config.base.n_embd, _channels(config), sizes[0]
    if sub_layer.norm:
        yield Widening(layer + sub_layer.norm, "norm", channels, d, bias=architecture.layer_norm)
    if sub_layer.experts:
        yield Widening(layer + sub_layer.experts, "experts", base_columns=d)
        for i, (path, input_rows) in enumerate(zip(sub_layer.inputs, rows, strict=True)):
            stacked = tuple(sum(sizes[:i]) + row for row in input_rows)  # an expert has gate and up in one map
            yield Widening(layer + path, "beside", stacked, d, d + config.width)
        yield Widening(layer + sub_layer.output, "beside", channels, columns=len(rows[0]))
        return
    inputs = list(_input_maps(layer, sub_layer, config, sizes, rows))
    columns = inner + len(rows[0])
    if architecture.own_attention and sub_layer.inputs == architecture.attention.inputs:
        yield Widening(layer + architecture.attention_module, "attention", base_columns=d)
        yield from (replace(widening, kind="beside") for widening in inputs)
        yield Widening(layer + sub_layer.output, "beside", channels, inner, columns)
        return
    yield from inputs
    if sub_layer.activation:
        yield Widening(layer + sub_layer.activation, "activation", base_columns=inner, parts=inputs[0].parts)
    yield Widening(layer + sub_layer.output, "linear", channels, inner, columns, bias=sub_layer.output_bias)
    if sub_layer.post_norm:
        yield Widening(layer + sub_layer.post_norm, "norm", channels, d)


def _input_maps(
    layer: str, sub_layer: SubLayer, config: InsertionConfig, sizes: tuple[int, ...], rows: tuple[tuple[int, ...], ...]
) -> Iterator[Widening]:
    d, columns = config.base.n_embd, config.base.n_embd + config.width
    if sub_layer.by_head:  # appended heads are appended rows
        yield Widening(layer + sub_layer.inputs[0], "linear", _by_head(sizes, rows, config.base.n_head_kv), d, columns)
        return
    maps = zip(sub_layer.inputs, sizes, rows, strict=True)
    for path, group in groupby(maps, key=lambda entry: entry[0]):
        members = [(size, input_rows) for _, size, input_rows in group]
        if len(members) == 1:
            yield Widening(layer + path, "linear", members[0][1], d, columns)
            continue
        parts = tuple(Part(size, len(input_rows)) for size, input_rows in members)
        first = [sum(part.base for part in parts[:i]) for i in range(len(parts))]
        fused_rows = tuple(start + row for start, (_, rows) in zip(first, members, strict=True) for row in rows)
        yield Widening(layer + path, "fused", fused_rows, d, columns, parts)


def _by_head(sizes: tuple[int, ...], rows: tuple[tuple[int, ...], ...], n_head_kv: int) -> tuple[int, ...]:
    """Rows of query, key and value maps as rows of the fused map in which they stand head by head."""
    counts = [size // n_head_kv for size in sizes]
    first = [sum(counts[:i]) for i in range(len(counts))]
    return tuple(
        sum(counts) * (row // count) + start + row % count
        for head in range(len(rows[-1]) // counts[-1])
        for start, count, part in zip(first, counts, rows, strict=True)
        for row in part[head * count : (head + 1) * count]
    )


def _head_norms(
    layer: str, attention: SubLayer, config: InsertionConfig, rows: tuple[tuple[int, ...], ...]
) -> Iterator[Widening]:
    """Norms of queries and keys: each head by itself, or with the statistic of the base's and weights for ``rows``."""
    base = config.base
    for path, heads, head_rows in zip(attention.head_norms, (base.n_head, base.n_head_kv), rows, strict=False):
        if attention.joint_head_norms:
            yield Widening(layer + path, "norm", head_rows, heads * base.head_dim)
        else:
            yield Widening(layer + path, "heads", base_columns=heads)


def _untouched(layer: str, sub_layer: SubLayer, d: int, inner: int) -> Iterator[Widening]:
    """A sub-layer with nothing inserted: it reads h, and h' passes through its residual."""
    for path in (sub_layer.norm,) if sub_layer.norm else dict.fromkeys(sub_layer.inputs):
        yield Widening(layer + path, "narrow", base_columns=d)
    output, columns = (sub_layer.experts, d) if sub_layer.experts else (sub_layer.output, inner)
    yield Widening(layer + output, "pad", base_columns=columns)
    if sub_layer.post_norm:
        yield Widening(layer + sub_layer.post_norm, "pad", base_columns=d)


def _channels(config: InsertionConfig) -> tuple[int, ...]:
    return tuple(range(config.state_offset, config.state_offset + config.width))


def _attention_rows(config: InsertionConfig, layer: int) -> tuple[tuple[int, ...], ...]:
    """Rows of the query, key and value maps: inserted KV head j is modelled on the base's j mod H_kv and its group."""
    base = config.base
    kv_heads = [head % base.n_head_kv for head in range(config.n_head_kv[layer])]
    query_heads = [base.group * head + member for head in kv_heads for member in range(base.group)]
    kv_rows = _head_rows(kv_heads, base.head_dim)
    return _head_rows(query_heads, base.head_dim), kv_rows, kv_rows


def _head_rows(heads: Iterable[int], head_dim: int) -> tuple[int, ...]:
    return tuple(head * head_dim + row for head in heads for row in range(head_dim))
