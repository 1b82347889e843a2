"""A text in a context, saved: its tokens and its KV cache, in memory or in a file.

The file, little-endian: 8 bytes ``OTTERCTX``, a u32 with the length of the header, the header (JSON: ``version``,
``model``, ``n_tokens``, ``n_bytes``), the tokens as int32, the cells, and the sha256 of all that.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _native
from ..errors import FileError
from ..gguf.atomic import atomic_path
from ..gguf.base import BaseFiles

_MAGIC = b"OTTERCTX"
_VERSION = 1
_DIGEST = hashlib.sha256().digest_size
_MAX_HEADER = 4096
_FRONT = len(_MAGIC) + 4
_SAMPLE = 4096


@dataclass(frozen=True)
class ContextState:
    """What :meth:`otter_gguf.Otter.save_state` gives; for the same model files and cache types alone."""

    tokens: tuple[int, ...]
    """Of the text in the context."""
    data: bytes
    """Its cells as llama.cpp writes them, behind a header with a checksum."""
    model: str = ""
    """:func:`identity` of the model files."""

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write to a file, whole or not at all. ``FileError`` if it exists (unless ``force``) or cannot be written."""
        header = {"version": _VERSION, "model": self.model, "n_tokens": len(self.tokens), "n_bytes": len(self.data)}
        text = json.dumps(header).encode()
        front = _MAGIC + struct.pack("<I", len(text)) + text + np.asarray(self.tokens, "<i4").tobytes()
        digest = hashlib.sha256(front)
        digest.update(self.data)
        with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
            file.writelines((front, self.data, digest.digest()))

    @classmethod
    def load(cls, path: str | Path) -> ContextState:
        """Read what :meth:`save` wrote. ``FileError`` if the file is damaged or of another kind."""
        data = _read(Path(path))
        header, begin = _header(path, data)
        middle = begin + 4 * header["n_tokens"]
        end = middle + header["n_bytes"]
        if len(data) != end + _DIGEST:
            raise FileError(f"{path}: {len(data)} bytes, expected {end + _DIGEST}: the file is cut or damaged")
        if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
            raise FileError(f"{path}: the checksum is wrong: the file is damaged")
        tokens = np.frombuffer(data, "<i4", header["n_tokens"], begin)
        return cls(tuple(tokens.tolist()), data[middle:end], header["model"])


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileError(f"{path}: no regular file")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise FileError(f"{path}: no saved context (it begins otherwise)")
            return _MAGIC + file.read()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def _header(path: str | Path, data: bytes) -> tuple[dict[str, Any], int]:
    """The checked header, and where it ends."""
    length = int.from_bytes(data[len(_MAGIC) : _FRONT], "little")
    if length > min(_MAX_HEADER, len(data) - _FRONT):
        raise FileError(f"{path}: a header of {length} bytes: the file is cut or damaged")
    try:
        header = json.loads(data[_FRONT : _FRONT + length])
    except (ValueError, RecursionError):
        raise FileError(f"{path}: the header is no JSON: the file is damaged") from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != _VERSION:
        raise FileError(f"{path}: version {version!r} of a saved context, expected {_VERSION}")
    sizes = (header.get("n_tokens"), header.get("n_bytes"))
    if not all(type(size) is int and size >= 0 for size in sizes) or not isinstance(header.get("model"), str):
        raise FileError(f"{path}: the header lacks a size or the model: the file is damaged")
    return header, _FRONT + length


def identity(model_path: str, sidecar: str = "") -> str:
    """64 hexadecimal digits that differ for model files whose caches differ.

    sha256 over the architecture's metadata, and name, type, shape, first and last 4 KiB of every tensor, those of the
    sidecar or of a merged file's inserted part included: another base, another quantization, another sidecar.
    """
    with BaseFiles.open(model_path) as base:
        files = [*base.files, *([_native.GgufFile(sidecar)] if sidecar else [])]
        try:
            digest = hashlib.sha256()
            for part in _described(base.metadata_file, files):
                digest.update(struct.pack("<Q", len(part)))
                digest.update(part)
            return digest.hexdigest()
        finally:
            for file in files[len(base.files) :]:
                file.close()


def _described(head: _native.GgufFile, files: list[_native.GgufFile]) -> Iterator[bytes | memoryview]:
    architecture = str(head.value("general.architecture"))
    for key in sorted(key for key in head.keys if key.startswith(f"{architecture}.")):
        yield key.encode()
        yield head.raw_value(key)
    tensors = {tensor.name: (tensor, file) for file in files for tensor in file.tensors}
    for name, (tensor, file) in sorted(tensors.items()):
        yield f"{name} {tensor.type} {tensor.shape}".encode()
        data = file.tensor_data(name)
        yield data[:_SAMPLE]
        yield data[-_SAMPLE:]
