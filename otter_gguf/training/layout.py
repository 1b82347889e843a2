"""Which module of the base is replaced by what: the method's block matrices as one list.

Symbols as in ``docs/method.md``. Construction (:mod:`.model`), initialisation (:mod:`.initialisation`) and export
(:mod:`.widened`) read the same list, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..architectures import Architecture, SubLayer
from ..config import InsertionConfig

Kind = Literal["linear", "norm", "heads", "slice", "table", "activation", "narrow", "pad"]


@dataclass(frozen=True)
class Widening:
    """What replaces one module.

    ``linear``, ``norm`` and ``table`` have inserted tensors; ``slice`` takes h'_0 from the base's own embedding;
    ``activation`` is applied to both parts, ``heads`` to each head of both; ``narrow`` reads h alone, ``pad`` leaves h'
    as it was: both stand where nothing is inserted.
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


def layout(architecture: Architecture, config: InsertionConfig) -> list[Widening]:
    """Every replaced module in data-flow order; empty for width 0, where the base stays as it is."""
    return list(_widenings(architecture, config)) if config.width else []


def _widenings(architecture: Architecture, config: InsertionConfig) -> Iterator[Widening]:
    base, channels = config.base, _channels(config)
    yield Widening(architecture.embedding, config.state_source, channels)
    for i in range(base.n_layer):
        layer = f"{architecture.layers}.{i}."
        if config.n_head_kv[i]:
            rows = _attention_rows(config, i)
            yield from _widened(layer, architecture.attention, config, base.n_head * base.head_dim, rows)
            for path, heads in zip(architecture.attention.head_norms, (base.n_head, base.n_head_kv), strict=False):
                yield Widening(layer + path, "heads", base_columns=heads)
        else:
            yield from _untouched(layer, architecture.attention, base.n_embd)
        if config.n_ff[i]:
            inner = tuple(row % base.n_ff for row in range(config.n_ff[i]))
            yield from _widened(layer, architecture.ffn, config, base.n_ff, (inner,) * len(architecture.ffn.inputs))
        else:
            yield from _untouched(layer, architecture.ffn, base.n_embd)
    reads_inserted = any(head.input != "base" for head in config.heads)
    yield Widening(architecture.norm, "norm" if reads_inserted else "narrow", channels, base.n_embd)
    yield Widening(architecture.lm_head, "narrow", base_columns=base.n_embd)


def _widened(
    layer: str, sub_layer: SubLayer, config: InsertionConfig, inner: int, rows: tuple[tuple[int, ...], ...]
) -> Iterator[Widening]:
    """Norm, input maps with the given rows, output map with e rows over the inner sizes of base and insertion."""
    d, channels = config.base.n_embd, _channels(config)
    yield Widening(layer + sub_layer.norm, "norm", channels, d)
    for path, input_rows in zip(sub_layer.inputs, rows, strict=True):
        yield Widening(layer + path, "linear", input_rows, d, d + config.width)
    if sub_layer.activation:
        yield Widening(layer + sub_layer.activation, "activation", base_columns=inner)
    yield Widening(layer + sub_layer.output, "linear", channels, inner, inner + len(rows[0]))


def _untouched(layer: str, sub_layer: SubLayer, d: int) -> Iterator[Widening]:
    """A sub-layer with nothing inserted: it reads h, and h' passes through its residual."""
    yield Widening(layer + sub_layer.norm, "narrow", base_columns=d)
    yield Widening(layer + sub_layer.output, "pad")


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
