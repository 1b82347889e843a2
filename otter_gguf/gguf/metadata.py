"""The metadata of a sidecar: what it says of itself to hubs and tools, and the configuration of its insertion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import HeadConfig, InsertionConfig
from . import keys
from .encoding import KeyValue
from .keys import Key
from .sidecar import BASE_SIZE_KEYS, head_key

_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION; llama.cpp wants the key wherever something is quantized
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Lineage:
    """Where a sidecar comes from; everything is optional."""

    name: str = ""
    """Name of the adapter."""
    base_name: str = ""
    """Hub name (``organization/model``) or plain name of the base; of a local path only its last part is told."""
    base_revision: str = ""
    """Commit or tag of the base on its hub."""
    license: str = ""
    """SPDX name."""


def sidecar_metadata(
    config: InsertionConfig, fingerprint: str, *, lineage: Lineage = Lineage(), quantized: bool = False
) -> list[KeyValue]:
    """Every entry of a sidecar, in file order.

    Args:
        config: The insertion.
        fingerprint: The base's, from :func:`otter_gguf.gguf.fingerprint.fingerprint`.
        lineage: For hubs and people.
        quantized: Whether a tensor has a quantized type.
    """
    entries = [
        KeyValue(keys.GENERAL_ARCHITECTURE, "str", config.base.architecture),
        KeyValue(keys.GENERAL_TYPE, "str", "adapter"),
        KeyValue(keys.ADAPTER_TYPE, "str", keys.ADAPTER_TYPE_OTTER),
        *_lineage_entries(lineage),
        KeyValue("general.tags", "arr[str]", ["otter", "reward-model"]),
    ]
    if quantized:
        entries.append(KeyValue("general.quantization_version", "u32", _QUANTIZATION_VERSION))
    values = _insertion_values(config, fingerprint)
    entries += [_entry(key, values[key]) for key in keys.SIDECAR_KEYS]
    entries += [_entry(key, values[key]) for key in keys.OPTIONAL_SIDECAR_KEYS if values[key]]
    for head in config.heads:
        entries += _head_entries(head)
    return entries


def _entry(key: Key, value: Any) -> KeyValue:
    return KeyValue(key.name, key.type, value)


def _insertion_values(config: InsertionConfig, fingerprint: str) -> dict[Key, Any]:
    values: dict[Key, Any] = {
        keys.VERSION: keys.FORMAT_VERSION,
        keys.WIDTH: config.width,
        keys.HEAD_COUNT_KV: config.n_head_kv,
        keys.FEED_FORWARD_LENGTH: config.n_ff,
        keys.STATE_SOURCE: config.state_source,
        keys.STATE_OFFSET: config.state_offset,
        keys.HEADS: [head.name for head in config.heads],
        keys.BASE_FINGERPRINT: fingerprint,
    }
    values.update((key, getattr(config.base, field)) for key, field in BASE_SIZE_KEYS)
    return values


def _head_entries(head: HeadConfig) -> list[KeyValue]:
    values = head.to_dict()
    return [_entry(head_key(key, head.name), values[key.field]) for key in keys.head_keys(head.kind)]


def _lineage_entries(lineage: Lineage) -> list[KeyValue]:
    entries = [("general.name", lineage.name), ("general.license", lineage.license)]
    if lineage.base_name:
        entries += _base_model(lineage)
    texts = [KeyValue(key, "str", text) for key, text in entries if text]
    if lineage.base_name:
        texts.append(KeyValue("general.base_model.count", "u32", 1))
    return texts


def _base_model(lineage: Lineage) -> Sequence[tuple[str, str]]:
    """Entries of the base; a local path would tell strangers about the author's disk and helps nobody."""
    prefix = "general.base_model.0"
    if not _HUB_NAME.fullmatch(lineage.base_name) or lineage.base_name.startswith("."):
        return [(f"{prefix}.name", re.split(r"[\\/]", lineage.base_name.rstrip("\\/"))[-1])]
    organization, name = lineage.base_name.split("/")
    return [
        (f"{prefix}.name", name),
        (f"{prefix}.organization", organization),
        (f"{prefix}.version", lineage.base_revision),
        (f"{prefix}.repo_url", f"https://huggingface.co/{lineage.base_name}"),
    ]
