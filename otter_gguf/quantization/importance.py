"""Importance matrices: how much each column of a matrix matters, measured by llama.cpp's ``llama-imatrix``.

Both of its formats are read, GGUF and the older ``.dat``. A value is the mean square of the activation that meets a
column; llama.cpp's quantizer takes them as weights of the rounding errors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import FileError
from ..files import open_regular
from ..gguf import encoding

Float32 = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 1024


@dataclass(frozen=True)
class ImportanceMatrix:
    """What a file says of a base's tensors."""

    path: str
    values: dict[str, Float32] = field(repr=False)
    """By tensor: one value a column; of stacked experts one row of values after the other."""
    dataset: str = ""
    """Name of the text that it was measured on."""
    n_chunks: int = 0
    """Pieces of that text."""


def read_importance(path: str | Path) -> ImportanceMatrix:
    """Read an importance matrix. ``FileError`` if the file is damaged, or no regular file or of another kind."""
    try:
        with open_regular(path) as file:
            is_gguf = file.read(len(encoding.MAGIC)) == encoding.MAGIC
            file.seek(0)
            matrix = _read_gguf(str(path)) if is_gguf else _read_dat(str(path), file)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    for name, values in matrix.values.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise FileError(f"{path}: tensor {name!r} has an importance that is negative, NaN or infinite")
    return matrix


# ---- GGUF ------------------------------------------------------------------------------------------------------


def _read_gguf(path: str) -> ImportanceMatrix:
    with _native.GgufFile(path) as file:
        tensors = {tensor.name: tensor for tensor in file.tensors}
        names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
        if not names:
            raise FileError(f"{path}: no importance matrix (no tensor is named *{_SUMS})")
        values = {name: _means(file, tensors, name) for name in names}
        dataset = ", ".join(_value(file, "imatrix.datasets", "arr[str]", []))
        return ImportanceMatrix(path, values, dataset, _value(file, "imatrix.chunk_count", "u32", 0))


def _means(file: _native.GgufFile, tensors: dict[str, _native.TensorInfo], name: str) -> Float32:
    """Sums divided by counts, matrix by matrix; 1 for a matrix that no token met."""
    sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
    if counts is None or {sums.type, counts.type} != {"F32"}:
        raise FileError(f"{file.path}: tensor {name!r} lacks sums or counts in F32")
    divisors = _floats(file, counts)
    squares = _floats(file, sums).reshape(-1, sums.shape[0])
    if len(squares) != divisors.size:
        raise FileError(f"{file.path}: tensor {name!r} has {divisors.size} counts for {len(squares)} matrices")
    met = divisors[:, None] > 0
    means = np.divide(squares, divisors[:, None], out=np.ones_like(squares), where=met)
    return np.ascontiguousarray(means.reshape(-1))


def _floats(file: _native.GgufFile, tensor: _native.TensorInfo) -> Float32:
    return np.frombuffer(file.tensor_data(tensor.name), "<f4").astype(np.float32)


def _value(file: _native.GgufFile, key: str, type: str, default: Any) -> Any:
    return file.value(key) if key in file.keys and file.key_type(key) == type else default


# ---- .dat ------------------------------------------------------------------------------------------------------


def _read_dat(path: str, file: BinaryIO) -> ImportanceMatrix:
    """Entries of name, number of calls and sums; then, in newer files, chunks and the text's name."""
    reader = _Reader(path, file)
    count = reader.number("number of entries", least=1)
    values = dict(_entries(reader, count))
    if reader.at_end():
        return ImportanceMatrix(path, values)
    n_chunks = reader.number("number of chunks")
    dataset = "" if reader.at_end() else reader.text()
    if not reader.at_end():
        raise FileError(f"{path}: no importance matrix, or a damaged one: {reader.left} bytes behind its end")
    return ImportanceMatrix(path, values, dataset, n_chunks)


def _entries(reader: _Reader, count: int) -> Iterator[tuple[str, Float32]]:
    for _ in range(count):
        name = reader.text()
        calls = reader.number(f"calls of {name!r}")
        sums = reader.floats(reader.number(f"values of {name!r}", least=1))
        yield name, sums / np.float32(max(calls, 1))


class _Reader:
    """Little-endian values, none of them longer than what is left of the file."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.left = file.seek(0, 2)
        file.seek(0)

    def at_end(self) -> bool:
        return self.left == 0

    def number(self, what: str, least: int = 0) -> int:
        (value,) = struct.unpack("<i", self._bytes(4))
        if value < least:
            raise FileError(f"{self.path}: no importance matrix, or a damaged one: {what} is {value}")
        return int(value)

    def text(self) -> str:
        length = self.number("length of a name")
        if length > _MAX_NAME:
            raise FileError(f"{self.path}: no importance matrix, or a damaged one: a name of {length} bytes")
        return self._bytes(length).decode("utf-8", "replace")

    def floats(self, count: int) -> Float32:
        return np.frombuffer(self._bytes(4 * count), "<f4").astype(np.float32)

    def _bytes(self, size: int) -> bytes:
        if size > self.left:
            raise FileError(f"{self.path}: no importance matrix, or a damaged one: it ends too early")
        self.left -= size
        return self.file.read(size)
