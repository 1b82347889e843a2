"""The widened form, declared once for training and converters: its ``config.json`` and the blocks of its tensors.

Every tensor is the base's block at the upper left, and behind it what is inserted: rows, or the columns of the
embedding. Original rows read zeros in added columns. An insertion has the same sizes in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import architectures
from .adapter_format import AdapterRecord, insertion_from
from .architectures import Architecture, SubLayer
from .config import InsertionConfig
from .errors import FileError, MismatchError, UnsupportedError
from .files import read_json
from .tensors import Shape

_ENTRY = "otter"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Widened:
    """A tensor of a widened checkpoint and the blocks in it."""

    shape: Shape
    """(rows, columns), or (columns) of a vector."""
    original: Shape
    """Shape of the base's block, at the upper left."""
    inserted: bool = False
    """Whether an inserted tensor stands behind that block; else ``fill`` does."""
    axis: int = 0
    """The dimension along which it stands there: 1 for the embedding alone."""
    fill: float = 0.0
    """Where nothing is inserted: 1 for a norm of channels that nobody reads."""

    @property
    def added(self) -> Shape:
        """How much larger than the base's block each dimension is."""
        return tuple(whole - part for whole, part in zip(self.shape, self.original, strict=True))

    @property
    def inserted_shape(self) -> Shape:
        """Shape of the inserted tensor in an adapter."""
        return (*self.shape[: self.axis], self.added[self.axis], *self.shape[self.axis + 1 :])

    @property
    def zero_right(self) -> bool:
        """Whether the original rows must be zero in the added columns."""
        return (len(self.shape) == 2 and self.axis == 0) or not (self.inserted or self.fill)

    @property
    def zero_below(self) -> bool:
        """Whether the added rows must be zero: nothing is inserted here, and h' passes through."""
        return len(self.shape) == 2 and self.axis == 0 and not self.inserted


def widened_tensors(config: InsertionConfig) -> dict[str, Widened]:
    """Every tensor that a widened checkpoint shares with its base, by Hugging Face name."""
    base, wide = config.base, config.base.n_embd + config.width
    read = any(head.input != "base" for head in config.heads)
    architecture = architectures.of_base(base)
    tensors = {EMBEDDING: Widened((base.n_vocab, wide), (base.n_vocab, base.n_embd), bool(config.width), axis=1)}
    for layer in range(base.n_layer):
        prefix = f"{architecture.layers}.{layer}."
        of_layer = {**_attention(config, architecture), **_ffn(config, architecture)}
        tensors |= {prefix + name: tensor for name, tensor in of_layer.items()}
    tensors[NORM] = _norm(config, read)
    tensors[OUTPUT] = Widened((base.n_vocab, wide), (base.n_vocab, base.n_embd))
    return tensors


def _attention(config: InsertionConfig, architecture: Architecture) -> dict[str, Widened]:
    """The tensors of a layer's attention, by their names in it."""
    base, attention, n_kv = config.base, architecture.attention, config.n_head_kv[0]
    query = (base.head_dim * (base.n_head + config.n_query_heads(0)), base.head_dim * base.n_head)
    key = (base.head_dim * (base.n_head_kv + n_kv), base.head_dim * base.n_head_kv)
    tensors = _maps(config, architecture.attention, (query, key, key), bool(n_kv))
    for path, (whole, original) in zip(attention.head_norms, (query, key), strict=False):  # zip stops where none are
        joint = Widened((whole,), (original,), bool(n_kv))
        single = Widened((base.head_dim,), (base.head_dim,))
        tensors[f"{path}.weight"] = joint if attention.joint_head_norms else single
    return tensors


def _ffn(config: InsertionConfig, architecture: Architecture) -> dict[str, Widened]:
    """The tensors of a layer's FFN, by their names in it."""
    inner = (config.base.n_ff + config.n_ff[0], config.base.n_ff)
    return _maps(config, architecture.ffn, (inner,) * len(architecture.ffn.inputs), bool(config.n_ff[0]))


def _maps(
    config: InsertionConfig, sub_layer: SubLayer, rows: tuple[tuple[int, int], ...], inserted: bool
) -> dict[str, Widened]:
    """Norms and maps of a sub-layer. ``rows``: those of each input map, and how many are the base's."""
    d, wide = config.base.n_embd, config.base.n_embd + config.width
    tensors = {f"{path}.weight": _norm(config, inserted) for path in (sub_layer.norm, sub_layer.post_norm) if path}
    for path, (whole, original) in zip(sub_layer.inputs, rows, strict=True):
        tensors[f"{path}.weight"] = Widened((whole, wide), (original, d), inserted)
        if sub_layer.input_bias:
            tensors[f"{path}.bias"] = Widened((whole,), (original,))
    inner, original = rows[0]
    tensors[f"{sub_layer.output}.weight"] = Widened((wide, inner), (d, original), inserted)
    return tensors


def _norm(config: InsertionConfig, inserted: bool) -> Widened:
    d = config.base.n_embd
    return Widened((d + config.width,), (d,), inserted and config.width > 0, fill=1.0)


def check_widenable(architecture: Architecture, where: str = "") -> None:
    """``UnsupportedError`` where an architecture has no widened form."""
    if architecture.not_widened:
        name, reason = architecture.model_class, architecture.not_widened
        raise UnsupportedError(f"{where}there is no widened checkpoint of a {name}: {reason}; use the adapter instead")


def is_even(config: InsertionConfig) -> bool:
    """Whether an insertion has the same sizes in every layer."""
    return len({*config.n_head_kv}) == 1 and len({*config.n_ff}) == 1


# ---- config.json -------------------------------------------------------------------------------------------------


def is_widened(folder: Path) -> bool:
    """Whether a folder says of itself that it holds a widened checkpoint."""
    path = folder / "config.json"
    return path.is_file() and _ENTRY in read_json(path)


def widened_entry(record: AdapterRecord) -> dict[str, Any]:
    """What is added to a Hugging Face configuration of the widened sizes."""
    return {
        _ENTRY: {
            "insertion": replace(record.insertion, state_source="table").to_dict(),
            "state_source": record.insertion.state_source,
            "base_model_name_or_path": record.base_name,
            "revision": record.revision,
            "training": record.training,
        }
    }


def read_widened(folder: Path) -> AdapterRecord:
    """The record of a widened checkpoint, with the source of h'_0 that the insertion had before.

    Raises:
        FileError: ``config.json`` is damaged, or says nothing of an insertion.
        UnsupportedError: an architecture or sizes that have no widened form.
        MismatchError: it has other sizes than the insertion.
    """
    path = folder / "config.json"
    data = read_json(path)
    entry = data.get(_ENTRY)
    if not isinstance(entry, dict):
        raise FileError(f"{path}: the insertion is missing under {_ENTRY!r}: no widened checkpoint")
    config = insertion_from(entry.get("insertion"), path)
    _check_architecture(data, config, path)
    if config.width and config.state_source != "table":
        raise FileError(f"{path}: state source is {config.state_source}, but a widened embedding is a table")
    differences = [
        f"{key} is {data.get(key)}, expected {size}" for key, size in _sizes(config).items() if data.get(key) != size
    ]
    if differences:
        raise MismatchError(f"{path}: sizes do not fit its insertion: {'; '.join(differences)}")
    source = entry.get("state_source", config.state_source)
    return AdapterRecord(
        insertion=insertion_from({**config.to_dict(), "state_source": source}, path),
        base_name=str(entry.get("base_model_name_or_path") or "") or None,
        revision=str(entry.get("revision") or "") or None,
        training=entry.get("training") or {},
    )


def _check_architecture(data: dict[str, Any], config: InsertionConfig, path: Path) -> None:
    known = architectures.of_gguf(config.base.architecture)
    found = [architecture for architecture in known if architecture.model_class in (data.get("architectures") or ())]
    if not found:
        wanted = " or ".join(architecture.model_class for architecture in known)
        raise UnsupportedError(f"{path}: architectures is {data.get('architectures')}, expected {wanted}")
    if data.get("attention_bias") or data.get("mlp_bias"):
        raise UnsupportedError(f"{path}: a widened checkpoint with biases is not supported")
    check_widenable(found[0], f"{path}: ")
    if not is_even(config):
        raise UnsupportedError(f"{path}: a widened checkpoint has the same inserted sizes in every layer")


def _sizes(config: InsertionConfig) -> dict[str, int]:
    """Entries of ``config.json`` that widening changes."""
    base = config.base
    return {
        "num_hidden_layers": base.n_layer,
        "hidden_size": base.n_embd + config.width,
        "num_attention_heads": base.n_head + config.n_query_heads(0),
        "num_key_value_heads": base.n_head_kv + config.n_head_kv[0],
        "head_dim": base.head_dim,
        "intermediate_size": base.n_ff + config.n_ff[0],
        "vocab_size": base.n_vocab,
    }
