"""The adapter folder's files and its record, declared once; training and converters read and write them here.

docs/architecture.md has the table of tensors.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import InsertionConfig
from .errors import ConfigError, FileError, UnsupportedError
from .files import read_json

CONFIG_NAME = "otter_config.json"
WEIGHTS_STEM = "otter_model"
TENSORS_NAME = f"{WEIGHTS_STEM}.safetensors"
INFIX = ".otter."
"""In the name of every inserted tensor, before ``weight`` or ``bias``: the child of a module that holds them."""
FINE_TUNED_BASE = "fine_tuned_base"
"""The entry that a full reward model alone has: the name of the folder below."""
BASE_FOLDER = "base"
"""Folder of the fine-tuned base inside that of a full reward model."""

FORMAT = "otter-adapter"
VERSION = 1

_BINDING = ("base_fingerprint", "base_adapters")
_F32_MAX = 3.4e38


@dataclass(frozen=True)
class AdapterRecord:
    """What ``otter_config.json`` says."""

    insertion: InsertionConfig
    base_name: str | None = None
    """Folder, GGUF file or Hub name of the base that it was trained on."""
    revision: str | None = None
    """Its Hub commit."""
    binding: dict[str, Any] = field(default_factory=dict)
    """What training compares with a base: ``base_fingerprint``, ``base_adapters``. An entry may be missing."""
    full: bool = False
    """Whether the base was trained as well and stands in ``base/``: a full reward model."""
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained, for people."""

    @classmethod
    def read(cls, folder: Path) -> AdapterRecord:
        """Read an adapter's record. ``FileError``/``UnsupportedError`` if it is damaged or of another version."""
        path = folder / CONFIG_NAME
        data = read_json(path)
        if data.get("format") != FORMAT:
            raise FileError(f"{path}: format is {data.get('format')!r}, expected {FORMAT!r}")
        if data.get("version") != VERSION:
            raise UnsupportedError(f"{path}: version {data.get('version')!r}, expected {VERSION}; update otter-gguf")
        if data.get(FINE_TUNED_BASE, BASE_FOLDER) != BASE_FOLDER:
            raise FileError(f"{path}: {FINE_TUNED_BASE} is {data[FINE_TUNED_BASE]!r}, expected {BASE_FOLDER!r}")
        training = data.get("training", {})
        if not isinstance(training, dict):
            raise FileError(f"{path}: training is no object")
        return cls(
            insertion=insertion_from(data.get("insertion"), path),
            base_name=str(data.get("base_model_name_or_path") or "") or None,
            revision=str(data.get("revision") or "") or None,
            binding={key: data[key] for key in _BINDING if key in data},
            full=FINE_TUNED_BASE in data,
            training=training,
        )

    def write(self, folder: Path) -> None:
        """Write ``otter_config.json``. ``OSError`` if it cannot be written."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "insertion": self.insertion.to_dict(),
            "base_model_name_or_path": self.base_name,
            "revision": self.revision,
            **self.binding,
            **({FINE_TUNED_BASE: BASE_FOLDER} if self.full else {}),
            "training": self.training,
        }
        (folder / CONFIG_NAME).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def insertion_from(data: object, path: Path) -> InsertionConfig:
    """The insertion inside a JSON file. ``FileError`` names the file."""
    if not isinstance(data, dict):
        raise FileError(f"{path}: the insertion is missing")
    try:
        config = InsertionConfig.from_dict(data)
    except ConfigError as error:
        raise FileError(f"{path}: insertion: {error}") from None
    sizes = [config.width, config.state_offset, *config.n_head_kv, *config.n_ff, *dataclasses.astuple(config.base)[1:]]
    scales = [number for head in config.heads for number in (*head.scale, *head.shift)]
    if not all(size < 2**32 for size in sizes):
        raise FileError(f"{path}: insertion: sizes must be below 2**32")
    if not isinstance(config.base.architecture, str) or any(abs(number) > _F32_MAX for number in scales):
        raise FileError(f"{path}: insertion: architecture must be a string, scales and shifts fit float32")
    return config
