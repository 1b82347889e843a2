"""Read tensors of safetensors files a few rows at a time, as float32.

Not by the package ``safetensors``: numpy has no bfloat16, and plain reads keep memory small where a mapped file of
many gigabytes would be counted as the process's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from otter_gguf.errors import FileError, UnsupportedError
from otter_gguf.files import open_regular, read_json

Float32 = npt.NDArray[np.float32]

_MAX_HEADER = 100_000_000  # the format's own limit
_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class TensorSource(Protocol):
    """Named tensors, read by rows; a vector has one row."""

    path: Path

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, (rows, columns) or (columns)."""

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows ``begin`` to ``end`` (not included) of a tensor: (end - begin, columns)."""


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """Where its data ends in the file."""
        return self.offset + math.prod(self.shape) * _ITEM_SIZES[self.dtype]


class SafetensorsFile:
    """One safetensors file."""

    def __init__(self, path: str | Path) -> None:
        """``FileError`` if the file is missing or damaged, ``UnsupportedError`` for tensors that are no floats."""
        self.path = Path(path)
        self._file = open_regular(self.path)
        try:
            self._tensors = _read_header(self._file, self.path)
            self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        except BaseException:
            self._file.close()
            raise

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return self._shapes

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows of a tensor; a vector has one row."""
        tensor = self._tensors[name]
        columns = tensor.shape[-1]
        row_size = columns * _ITEM_SIZES[tensor.dtype]
        self._file.seek(tensor.offset + begin * row_size)
        data = self._file.read((end - begin) * row_size)
        return _to_float32(data, tensor.dtype).reshape(end - begin, columns)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Checkpoint:
    """The safetensors files of a Hugging Face folder: one, or shards with their index."""

    def __init__(self, folder: str | Path, stem: str = "model") -> None:
        """Open ``{stem}.safetensors`` or its shards.

        Raises:
            FileError: A file is missing or damaged, or there are only pickled weights, which are never opened.
        """
        self.path = Path(folder)
        self._files: dict[str, SafetensorsFile] = {}
        self._file_of: dict[str, SafetensorsFile] = {}
        try:
            if (self.path / f"{stem}.safetensors").is_file():
                file = self._open(f"{stem}.safetensors")
                self._file_of = dict.fromkeys(file.shapes(), file)
            else:
                self._open_shards(stem)
        except BaseException:
            self.close()
            raise

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: file.shapes()[name] for name, file in self._file_of.items()}

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows of a tensor; a vector has one row."""
        return self._file_of[name].rows(name, begin, end)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, file_name: str) -> SafetensorsFile:
        if file_name not in self._files:
            self._files[file_name] = SafetensorsFile(self.path / file_name)
        return self._files[file_name]

    def _open_shards(self, stem: str) -> None:
        for name, file_name in weight_map(self.path, stem).items():
            file = self._file_of[name] = self._open(file_name)
            if name not in file.shapes():
                raise FileError(f"{file.path}: tensor {name} is missing, though the index names this file")


def weight_map(folder: Path, stem: str) -> dict[str, str]:
    """File name of every tensor, from the index of the shards."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise FileError(f"{folder}: {_why_no_weights(folder, stem)}")
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise FileError(f"{index}: weight_map is missing or empty")
    for file_name in files.values():
        if not isinstance(file_name, str) or Path(file_name).name != file_name or "\0" in file_name:
            raise FileError(f"{index}: weight_map names {file_name!r}, expected a file of the same folder")
    return files


def _why_no_weights(folder: Path, stem: str) -> str:
    if not folder.is_dir():
        return "no such folder"
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        return f"only pickled weights ({pickled[0]}), which can run code and are not opened; save as safetensors"
    return f"{stem}.safetensors is missing"


def _read_header(file: BinaryIO, path: Path) -> dict[str, _Tensor]:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise FileError(f"{path}: no safetensors file, or cut off: a header of {length} bytes in {size}")
    try:
        header = json.loads(file.read(length))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FileError(f"{path}: header is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _check_places(path, tensors, 8 + length, size)
    return tensors


def _tensor(path: Path, name: str, entry: Any, data_offset: int, size: int) -> _Tensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise FileError(f"{path}: tensor {name}: entry is damaged") from None
    if not all(type(number) is int and number >= 0 for number in numbers) or not 1 <= len(shape) <= 2 or 0 in shape:
        raise FileError(f"{path}: tensor {name}: shape {list(shape)}, expected one or two sizes of at least 1")
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise UnsupportedError(f"{path}: tensor {name} is {dtype}, expected {', '.join(_ITEM_SIZES)}")
    if begin > end or end > size - data_offset or end - begin != math.prod(shape) * _ITEM_SIZES[dtype]:
        raise FileError(f"{path}: tensor {name}: bytes {begin} to {end} do not fit shape {list(shape)} or the file")
    return _Tensor(dtype, shape, data_offset + begin)


def _check_places(path: Path, tensors: Mapping[str, _Tensor], place: int, size: int) -> None:
    """The format wants each tensor where the one before ends, and the last to end with the file."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].end)):
        if tensor.offset != place:
            raise FileError(f"{path}: tensor {name} begins at byte {tensor.offset}, expected {place}: gap or overlap")
        place = tensor.end
    if place != size:
        raise FileError(f"{path}: {size} bytes, expected {place}: there are bytes behind the last tensor")


def _to_float32(data: bytes, dtype: str) -> Float32:
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
