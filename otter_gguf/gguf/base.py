"""A base model as one thing, whether it is one file or the shards of llama.cpp's ``gguf-split``; its sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import _native
from ..config import BaseGeometry
from ..errors import ConfigError, FileError, UnsupportedError
from . import keys

_SHARD = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


_TENSORS_COUNT = "split.tensors.count"


class BaseFiles:
    """The open files of a base: metadata from the first shard, tensors from all; inserted tensors are left out."""

    def __init__(self, files: Sequence[_native.GgufFile]) -> None:
        self.files = list(files)
        self._file_of = {
            tensor.name: (file, tensor) for file in files for tensor in file.tensors if not is_inserted(tensor.name)
        }

    @classmethod
    def open(cls, path: str | Path) -> BaseFiles:
        """Open a base, given by its file or by its first shard. ``FileError`` if a shard is missing or damaged, or they
        do not belong together."""
        first = _native.GgufFile(str(path))
        count = _shard_count(first)
        if count == 1:
            return cls([first])
        match = _SHARD.fullmatch(Path(path).name)
        if match is None or int(match["count"]) != count:
            raise FileError(f"{path}: one of {count} shards, expected a name like model-00001-of-{count:05d}.gguf")
        if int(match["number"]) != 1:
            raise FileError(f"{path}: give the first shard, {match['prefix']}-00001-of-{match['count']}.gguf")
        rest = [f"{match['prefix']}-{number:05d}-of-{match['count']}.gguf" for number in range(2, count + 1)]
        files = [first, *(_native.GgufFile(str(Path(path).with_name(name))) for name in rest)]
        _check_shards(files)
        return cls(files)

    @property
    def metadata_file(self) -> _native.GgufFile:
        """The file that holds the metadata."""
        return self.files[0]

    @property
    def path(self) -> str:
        """Path of the (first) file."""
        return self.metadata_file.path

    @property
    def tensors(self) -> list[_native.TensorInfo]:
        """The base's tensors, in file order."""
        return [tensor for _, tensor in self._file_of.values()]

    def tensor(self, name: str) -> _native.TensorInfo | None:
        """The tensor of that name, if there is one."""
        found = self._file_of.get(name)
        return found[1] if found else None

    def tensor_data(self, name: str) -> memoryview:
        """The bytes of a tensor."""
        return self._file_of[name][0].tensor_data(name)

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> BaseFiles:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _check_shards(files: Sequence[_native.GgufFile]) -> None:
    """What llama.cpp refuses when it loads."""
    head = files[0]
    if _TENSORS_COUNT not in head.keys:
        raise FileError(f"{head.path}: key {_TENSORS_COUNT} is missing, which the first of several files must have")
    place: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in place:
                raise FileError(f"{file.path}: tensor {tensor.name} stands in {place[tensor.name]} too")
            place[tensor.name] = file.path


def is_shard_name(path: Path) -> bool:
    """Whether a file is called like one of a split base."""
    return _SHARD.fullmatch(path.name) is not None


def shards_beside(path: Path) -> Iterator[Path]:
    """The files that belong to one of a split base, by their names, the first one first; ``path`` alone if it is none.

    How many there are is what the name says: who takes them must stop where one is missing.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        yield path
        return
    for number in range(1, int(match["count"]) + 1):
        yield path.with_name(f"{match['prefix']}-{number:05d}-of-{match['count']}.gguf")


def is_inserted(tensor_name: str) -> bool:
    """Whether a tensor belongs to the inserted part."""
    return keys.INSERTED_MARK in tensor_name


def base_geometry(base: BaseFiles | _native.GgufFile) -> BaseGeometry:
    """The sizes of a base GGUF.

    Raises:
        FileError: A key is missing or of the wrong type.
        UnsupportedError: The base's layers differ in size, or it is of a kind that cannot be widened.
    """
    file = base.metadata_file if isinstance(base, BaseFiles) else base
    reader = _KeyReader(file)
    n_embd = reader.size("embedding_length")
    n_head = reader.size("attention.head_count")
    n_head_kv = reader.size("attention.head_count_kv", default=n_head)
    head_dim = reader.size("attention.key_length", default=n_embd // max(n_head, 1))
    if reader.size("attention.value_length", default=head_dim) != head_dim:
        raise UnsupportedError(f"{file.path}: keys and values of attention differ in size, which is not supported")
    n_expert, n_ff = reader.size("expert_count", default=0), reader.size("feed_forward_length")
    try:
        return BaseGeometry(
            architecture=reader.architecture,
            n_layer=reader.size("block_count"),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim=head_dim,
            n_ff=reader.size("expert_feed_forward_length", default=n_ff) if n_expert else n_ff,
            n_vocab=_embedding_rows(base),
            n_expert=n_expert,
        )
    except ConfigError as error:
        raise FileError(f"{file.path}: {error}") from None


def _embedding_rows(base: BaseFiles | _native.GgufFile) -> int:
    for tensor in base.tensors:
        if tensor.name == "token_embd.weight":
            return tensor.shape[1] if len(tensor.shape) > 1 else 1
    raise FileError(f"{base.path}: tensor token_embd.weight is missing: not a model with weights")


def _shard_count(file: _native.GgufFile) -> int:
    if "split.count" not in file.keys:
        return 1
    count = file.value("split.count")
    if not isinstance(count, int) or not 1 <= count <= 99999:
        raise FileError(f"{file.path}: key split.count is {count!r}, expected 1 to 99999")
    return count


class _KeyReader:
    """Reads ``{architecture}.*`` sizes of a base."""

    def __init__(self, file: _native.GgufFile) -> None:
        self.file = file
        self.known = set(file.keys)
        if keys.GENERAL_ARCHITECTURE not in self.known or file.key_type(keys.GENERAL_ARCHITECTURE) != "str":
            raise FileError(f"{file.path}: key {keys.GENERAL_ARCHITECTURE} is missing or no string: not a model")
        self.architecture: str = file.value(keys.GENERAL_ARCHITECTURE)

    def size(self, name: str, default: int | None = None) -> int:
        """A non-negative number; a list of one number a layer must hold the same number everywhere."""
        key = f"{self.architecture}.{name}"
        if key not in self.known:
            if default is None:
                raise FileError(f"{self.file.path}: key {key} is missing")
            return default
        value: Any = self.file.value(key)
        if isinstance(value, list):
            if len(set(map(repr, value))) != 1:
                raise UnsupportedError(f"{self.file.path}: {key} differs from layer to layer, which is not supported")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise FileError(f"{self.file.path}: key {key} is {value!r}, expected a number")
        return value
