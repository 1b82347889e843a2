"""A sidecar GGUF, or the inserted part of a merged file, back to an adapter checkpoint, without torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from otter_gguf import _native
from otter_gguf.adapter_format import CONFIG_NAME, TENSORS_NAME, AdapterRecord
from otter_gguf.config import InsertionConfig
from otter_gguf.gguf.atomic import atomic_folder, check_target
from otter_gguf.gguf.checksums import check_checksums, has_checksums
from otter_gguf.gguf.merge import split
from otter_gguf.gguf.recipes import Part, recipes
from otter_gguf.gguf.sidecar import is_merged, read_fingerprint, validate_insertion
from otter_gguf.gguf.writer import progress_bar

from .recipes import row_ranges, unpermute_rows

_NAMES = (CONFIG_NAME, TENSORS_NAME)
_F32_SIZE = 4
_HEADER_ALIGNMENT = 8


def convert_sidecar(sidecar: str | Path, folder: str | Path, *, force: bool = False) -> InsertionConfig:
    """Write the adapter checkpoint of a sidecar.

    Tensors in F32 are written bit for bit; others as the F32 values that they stand for, and the entry ``training``
    of ``otter_config.json`` counts them. Scales and shifts of heads come back in float32, a local base by its name.

    Args:
        sidecar: The sidecar, or a merged file.
        folder: Where ``otter_config.json`` and ``otter_model.safetensors`` are written; made if missing.
        force: Replace these two files.

    Raises:
        FileError: The file is damaged or holds no inserted part, or ``folder`` cannot be written.
        UnsupportedError: Architecture or version unknown.
    """
    source, folder = Path(sidecar), Path(folder)
    with _native.GgufFile(str(sidecar)) as file:
        if folder.is_dir():
            for name in _NAMES:
                check_target(folder / name, inputs=(source,), force=force)
        with atomic_folder(folder, names=_NAMES, last=CONFIG_NAME, inputs=(source,)) as made:
            if not is_merged(file):
                return _write_adapter(file, source, made)
            part = made / "sidecar.gguf"
            split(sidecar, None, part)
            with _native.GgufFile(str(part)) as taken_out:
                insertion = _write_adapter(taken_out, source, made)
            part.unlink()
            return insertion


def _write_adapter(file: _native.GgufFile, source: Path, folder: Path) -> InsertionConfig:
    """``source``: the file that the user gave."""
    insertion = validate_insertion(file)
    if has_checksums(file):
        check_checksums(file)
    types = {tensor.name: tensor.type for tensor in file.tensors}
    _adapter_record(file, source, insertion, types).write(folder)
    with open(folder / TENSORS_NAME, "wb") as out:
        _write_tensors(out, file, _places(insertion), types)
    return insertion


def _adapter_record(
    file: _native.GgufFile, source: Path, insertion: InsertionConfig, types: dict[str, str]
) -> AdapterRecord:
    prefix = "general.base_model.0"
    organization, name = _text(file, f"{prefix}.organization"), _text(file, f"{prefix}.name")
    dequantized = Counter(type for type in types.values() if type != "F32")
    converted = {
        "file": source.name,
        "base_fingerprint": read_fingerprint(file),
        "dequantized_tensors": dict(sorted(dequantized.items())),
    }
    return AdapterRecord(
        insertion,
        base_name=f"{organization}/{name}" if organization and name else name,
        revision=_text(file, f"{prefix}.version"),
        training={"converted_from": converted},
    )


def _text(file: _native.GgufFile, key: str) -> str | None:
    """A key that other writers may leave out or fill otherwise."""
    if key not in file.keys or file.key_type(key) != "str":
        return None
    return str(file.value(key)) or None


def _places(insertion: InsertionConfig) -> list[tuple[str, int, Part]]:
    """The tensor of the sidecar that a part stands in, its first row there, and the part."""
    places = []
    for name, parts in recipes(insertion).items():
        first = 0
        for part in chain.from_iterable(map(Part.pieces, parts)):
            places.append((name, first, part))
            first += part.n_rows
    # the order in which safetensors writes tensors, and of the rows of each
    return sorted(places, key=lambda place: (place[2].name, place[2].first))


def _write_tensors(
    out: BinaryIO, file: _native.GgufFile, places: list[tuple[str, int, Part]], types: dict[str, str]
) -> None:
    """A safetensors file, a few rows at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in {part.name: part.shape for _, _, part in places}.items():
        begin, end = end, end + _F32_SIZE * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    out.write(len(text).to_bytes(8, "little") + text)
    with progress_bar("Writing", end) as bar:
        for name, first, part in places:
            for chunk in _chunks(file, name, types[name], first, part):
                bar.update(out.write(chunk))


def _chunks(file: _native.GgufFile, name: str, type: str, first: int, part: Part) -> Iterator[bytes]:
    """The rows of one part as little-endian F32, in Hugging Face's order."""
    n_columns = part.shape[-1]
    row_size = _native.tensor_nbytes(type, (n_columns,))
    data = file.tensor_data(name)
    for begin, end in row_ranges(part.n_rows, n_columns, part.head_size or 1):
        rows = _native.dequantize(data[(first + begin) * row_size : (first + end) * row_size], type, n_columns)
        rows = unpermute_rows(rows, part.head_size) if part.head_size else rows
        yield rows.astype(np.dtype("<f4"), copy=False).tobytes()
