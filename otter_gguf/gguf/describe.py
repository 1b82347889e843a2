"""What a GGUF file is and holds, as plain JSON types: the contents of ``otter-gguf info``."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import _native
from ..config import InsertionConfig
from ..errors import OtterError, UnsupportedError
from . import keys
from .base import BaseFiles, base_geometry, is_inserted
from .fingerprint import fingerprint
from .sidecar import is_merged, is_sidecar, read_fingerprint, validate_for, validate_insertion


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a base, a sidecar or a merged file; an inserted part is checked as before running it.

    Returns:
        ``path``, ``kind`` (``base``, ``sidecar`` or ``merged``), ``size`` in bytes, ``shards``, ``gguf_version``,
        ``name``, ``architecture``, ``geometry`` (of the base; None if it is of a kind that cannot be widened),
        ``fingerprint`` (of the base), ``tensors`` (see ``_tensor_summary``; None in a sidecar), ``problem`` (why the
        base would not be run, or None); with an inserted part also ``insertion``, ``reward_labels`` and
        ``inserted_tensors``.

    Raises:
        FileError, UnsupportedError, MismatchError: The file is damaged or no model, or its inserted part is wrong.
    """
    with BaseFiles.open(path) as base:
        first = base.metadata_file
        info: dict[str, Any] = {
            "path": str(path),
            "kind": "sidecar" if is_sidecar(first) else "merged" if is_merged(first) else "base",
            "size": sum(file.size for file in base.files),
            "shards": len(base.files),
            "gguf_version": first.version,
            "name": first.value("general.name") if "general.name" in first.keys else None,
            "architecture": first.value(keys.GENERAL_ARCHITECTURE) if keys.GENERAL_ARCHITECTURE in first.keys else None,
        }
        return info | (_sidecar_part(first) if is_sidecar(first) else _base_part(base))


def environment() -> dict[str, Any]:
    """Versions and devices: what ``otter-gguf info`` says without a file."""
    return {
        "llama_cpp_commit": _native.LLAMA_CPP_COMMIT,
        "llama_cpp_version": _native.LLAMA_CPP_VERSION,
        "devices": _native.devices(),
    }


def _sidecar_part(file: _native.GgufFile) -> dict[str, Any]:
    config = validate_insertion(file)
    return {
        "geometry": dataclasses.asdict(config.base),
        "fingerprint": read_fingerprint(file),
        "tensors": None,
        "problem": None,
    } | _inserted_part(config, file.tensors)


def _base_part(base: BaseFiles) -> dict[str, Any]:
    geometry: dict[str, Any] | None
    try:
        geometry = dataclasses.asdict(base_geometry(base))
    except UnsupportedError:
        geometry = None
    part = {
        "geometry": geometry,
        "fingerprint": fingerprint(base),
        "tensors": _tensor_summary(base.tensors),
        "problem": _problem(base),
    }
    if is_merged(base.metadata_file):
        config = validate_for(base, base.metadata_file)
        part |= _inserted_part(config, [tensor for tensor in base.metadata_file.tensors if is_inserted(tensor.name)])
    return part


def _problem(base: BaseFiles) -> str | None:
    """Other tools' models deserve a description too, so what we would not run is told, not raised."""
    try:
        _native.check_base(base.metadata_file)
    except OtterError as error:
        return str(error)
    return None


def _inserted_part(config: InsertionConfig, tensors: Iterable[_native.TensorInfo]) -> dict[str, Any]:
    insertion = config.to_dict()
    del insertion["base"]
    return {
        "insertion": insertion,
        "reward_labels": list(config.reward_labels),
        "inserted_tensors": _tensor_summary(tensors),
    }


def _tensor_summary(tensors: Iterable[_native.TensorInfo]) -> dict[str, Any]:
    """``count``, ``parameters``, ``bytes``, and the same three for each type under ``types``."""
    types: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "parameters": 0, "bytes": 0})
    for tensor in tensors:
        entry = types[tensor.type]
        entry["count"] += 1
        entry["parameters"] += math.prod(tensor.shape)
        entry["bytes"] += tensor.n_bytes
    totals: dict[str, Any] = {
        field: sum(entry[field] for entry in types.values()) for field in ("count", "parameters", "bytes")
    }
    return totals | {"types": dict(types)}
