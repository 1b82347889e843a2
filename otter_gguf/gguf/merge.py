"""One file out of base and sidecar, and back, byte for byte.

A merged file is the base with more at the end of each of its three parts: metadata, tensor list and data. The base's
bytes stand there as they are, so taking away what was added gives the base back. Layout: docs/format.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from .. import _native
from ..errors import ConfigError, FileError, UnsupportedError
from . import encoding, keys
from .atomic import atomic_path, same_target
from .base import BaseFiles, is_inserted
from .checksums import check_checksums, has_checksums
from .encoding import padding
from .sidecar import is_merged, is_sidecar, validate_for, validate_insertion
from .writer import progress_bar

_CHUNK = 1 << 22
_CANNOT_RETURN = "a later split could not give this file back byte for byte"
_ADVICE = "write it anew first: otter-gguf quantize IN OUT COPY"


def merge(base: str | Path, sidecar: str | Path, target: str | Path, *, force: bool = False) -> None:
    """Write base and sidecar as one GGUF file.

    Raises:
        FileError: A file is damaged, ``target`` cannot be written, or splitting would not give both files back.
        MismatchError: The sidecar was made for another base.
        UnsupportedError: The base is in several files, or merged already.
    """
    with BaseFiles.open(base) as base_files, _native.GgufFile(str(sidecar)) as inserted:
        _check_parts(base_files, inserted)
        with atomic_path(target, inputs=(base, sidecar), force=force) as temporary:
            with open(temporary, "r+b") as file:
                digests = _write_merged(file, base_files.metadata_file, inserted)
            _check_split(temporary, digests, (str(base), str(sidecar)))


def split(merged: str | Path, base: str | Path | None, sidecar: str | Path | None, *, force: bool = False) -> None:
    """Write the base and the sidecar (either may be None) of a merged file.

    Raises:
        FileError: The file is damaged, no merged file, or a part is not what was merged (by its sha256).
        ConfigError: Both parts would be one file.
    """
    if base is not None and sidecar is not None and same_target(base, sidecar):
        raise ConfigError(f"{base}: base and sidecar cannot be written to one file: give two names")
    with _native.GgufFile(str(merged)) as file, ExitStack() as stack:
        parts = MergedParts(file)
        for target, chunks, digest in (
            (base, parts.base, parts.base_sha256),
            (sidecar, parts.sidecar, parts.sidecar_sha256),
        ):
            if target is not None:  # no part gets its name before both are right
                temporary = stack.enter_context(atomic_path(target, inputs=(merged,), force=force))
                _write_part(temporary, chunks(), digest, f"{merged}: damaged: {target}")
        if has_checksums(file):  # keys that both parts leave out or have in a header of their own
            check_checksums(file)


# ---- merging ---------------------------------------------------------------------------------------------------


def _check_parts(base: BaseFiles, sidecar: _native.GgufFile) -> None:
    if len(base.files) > 1:
        raise UnsupportedError(
            f"{base.path}: a base in {len(base.files)} files cannot be merged; join it with llama-gguf-split --merge"
        )
    if is_merged(base.metadata_file):
        raise UnsupportedError(f"{base.path}: holds an inserted part already; split it first")
    own = [key for key in base.metadata_file.keys if key.startswith(keys.PREFIX)]
    own += [tensor.name for tensor in base.metadata_file.tensors if is_inserted(tensor.name)]
    if own:
        raise UnsupportedError(f"{base.path}: {own[0]} is a name of otter-gguf, which a base must not have")
    if not is_sidecar(sidecar):
        raise FileError(f"{sidecar.path}: no Otter sidecar (key {keys.ADAPTER_TYPE} is not 'otter')")
    for file in (base.metadata_file, sidecar):
        if file.size > data_end(file):
            raise FileError(f"{file.path}: {_CANNOT_RETURN} (bytes after the last tensor); {_ADVICE}")
    _native.check_base(base.metadata_file)
    validate_for(base, sidecar)


def data_end(file: _native.GgufFile) -> int:
    """Where a file ends at the latest: behind its last tensor and that tensor's padding."""
    if not file.tensors:
        return file.data_offset
    last = file.tensors[-1]
    return last.offset + last.n_bytes + padding(last.n_bytes, file.alignment)


def _write_merged(file: BinaryIO, base: _native.GgufFile, sidecar: _native.GgufFile) -> tuple[str, str]:
    """Write the merged file; returns the sha256 of base and sidecar."""
    base_bytes, sidecar_bytes = _read_file(base.path, 0, base.size), _read_file(sidecar.path, 0, sidecar.size)
    digests = _sha256(base_bytes), _sha256(sidecar_bytes)
    header = _merged_header(base, sidecar, digests)
    data_size = base.size - base.data_offset
    with progress_bar("Merging", data_size + sum(tensor.n_bytes for tensor in sidecar.tensors)) as bar:
        file.write(header)
        for chunk in _read_file(base.path, base.data_offset, data_size):
            bar.update(file.write(chunk))
        file.write(bytes(padding(data_size, base.alignment)))
        for tensor in sidecar.tensors:
            bar.update(file.write(sidecar.tensor_data(tensor.name)))
            file.write(bytes(padding(tensor.n_bytes, base.alignment)))
    return digests


def _merged_header(base: _native.GgufFile, sidecar: _native.GgufFile, digests: tuple[str, str]) -> bytes:
    """The base's header with the sidecar's entries after the base's own."""
    added = [
        encoding.encode_raw_entry(key, sidecar.key_type(key), sidecar.raw_value(key))
        for key in sidecar.keys
        if key.startswith(keys.PREFIX)
    ]
    sidecar_header = b"".join(_read_file(sidecar.path, 0, sidecar.data_offset))
    merged = {
        keys.MERGED_BASE_SIZE: base.size,
        keys.MERGED_BASE_SHA256: digests[0],
        keys.MERGED_SIDECAR_HEADER: sidecar_header,
        keys.MERGED_SIDECAR_SIZE: sidecar.size,
        keys.MERGED_SIDECAR_SHA256: digests[1],
    }
    added += [encoding.encode_entry(encoding.KeyValue(key.name, key.type, merged[key])) for key in keys.MERGED_KEYS]
    n_tensors = len(base.tensors) + len(sidecar.tensors)
    header = b"".join(
        [
            encoding.encode_header(base.version, n_tensors, len(base.keys) + len(added)),
            *_read_file(base.path, base.kv_offset, base.tensor_info_offset - base.kv_offset),
            *added,
            *_read_file(base.path, base.tensor_info_offset, base.tensor_info_end - base.tensor_info_offset),
            *_shifted_infos(base, sidecar),
        ]
    )
    return header + bytes(padding(len(header), base.alignment))


def _shifted_infos(base: _native.GgufFile, sidecar: _native.GgufFile) -> Iterator[bytes]:
    """The sidecar's tensor list with offsets behind the base's data, in the base's alignment."""
    offset = base.size - base.data_offset
    offset += padding(offset, base.alignment)
    for tensor in sidecar.tensors:
        yield encoding.encode_tensor_info(tensor.name, tensor.shape, tensor.type, offset)
        offset += tensor.n_bytes + padding(tensor.n_bytes, base.alignment)


def _check_split(merged: Path, digests: tuple[str, str], names: tuple[str, str]) -> None:
    """Prove on the finished file that splitting gives both files back; whatever is odd in one of them ends here."""
    with _native.GgufFile(str(merged)) as file:
        parts = MergedParts(file)
        for chunks, digest, name in zip((parts.base(), parts.sidecar()), digests, names, strict=True):
            if _sha256(chunks) != digest:
                raise FileError(f"{name}: {_CANNOT_RETURN} (padding that is not zero); {_ADVICE}")


def check_parts(file: _native.GgufFile) -> None:
    """Compare both parts of a merged file with the sha256 that were stored when it was merged.

    Raises:
        FileError: A part is damaged (all are named), or not where a merged file has it.
    """
    parts = MergedParts(file)
    wanted = (("the base", parts.base(), parts.base_sha256), ("the sidecar", parts.sidecar(), parts.sidecar_sha256))
    damaged = [name for name, chunks, digest in wanted if _sha256(chunks) != digest]
    if damaged:
        raise FileError(f"{file.path}: checksums: {' and '.join(damaged)} in it differ from the sha256 stored for them")


# ---- splitting -------------------------------------------------------------------------------------------------


class MergedParts:
    """The two files inside a merged one, as streams of bytes."""

    def __init__(self, file: _native.GgufFile) -> None:
        """``FileError`` if the file is no merged one, or its parts are not where a merged file has them."""
        if not is_merged(file):
            raise FileError(f"{file.path}: no merged file (key {keys.MERGED_BASE_SIZE.name} is missing)")
        validate_insertion(file)
        self.file = file
        self.own_keys = [key for key in file.keys if key.startswith(keys.PREFIX)]
        self.own_tensors = [tensor for tensor in file.tensors if is_inserted(tensor.name)]
        self.base_size: int = file.value(keys.MERGED_BASE_SIZE.name)
        self.base_sha256: str = file.value(keys.MERGED_BASE_SHA256.name)
        self.sidecar_header = bytes(file.value(keys.MERGED_SIDECAR_HEADER.name))
        self.sidecar_size: int = file.value(keys.MERGED_SIDECAR_SIZE.name)
        self.sidecar_sha256: str = file.value(keys.MERGED_SIDECAR_SHA256.name)
        self._check_order()

    def base(self) -> Iterator[bytes]:
        """The base file."""
        header = b"".join(self._base_header())
        header += bytes(padding(len(header), self.file.alignment))
        yield header
        yield from _read_file(self.file.path, self.file.data_offset, self.base_size - len(header))

    def sidecar(self) -> Iterator[bytes | memoryview]:
        """The sidecar file."""
        yield self.sidecar_header
        left = self.sidecar_size - len(self.sidecar_header)
        for tensor in self.own_tensors:
            yield self.file.tensor_data(tensor.name)
            left -= tensor.n_bytes
            pad = min(padding(tensor.n_bytes), left)  # a writer may leave out the padding of the last tensor
            yield bytes(max(pad, 0))
            left -= pad

    def _base_header(self) -> Iterator[bytes]:
        file = self.file
        added_entries = sum(
            len(encoding.encode_raw_entry(key, file.key_type(key), file.raw_value(key))) for key in self.own_keys
        )
        added_infos = sum(
            len(encoding.encode_tensor_info(tensor.name, tensor.shape, tensor.type, 0)) for tensor in self.own_tensors
        )
        n_tensors, n_entries = len(file.tensors) - len(self.own_tensors), len(file.keys) - len(self.own_keys)
        yield encoding.encode_header(file.version, n_tensors, n_entries)
        yield from _read_file(file.path, file.kv_offset, file.tensor_info_offset - added_entries - file.kv_offset)
        infos_size = file.tensor_info_end - added_infos - file.tensor_info_offset
        yield from _read_file(file.path, file.tensor_info_offset, infos_size)

    def _check_order(self) -> None:
        """What was added stands behind what was there; the base lies inside the file."""
        file = self.file
        last_keys = file.keys[len(file.keys) - len(self.own_keys) :]
        last_tensors = [tensor.name for tensor in file.tensors[len(file.tensors) - len(self.own_tensors) :]]
        if last_keys != self.own_keys or last_tensors != [tensor.name for tensor in self.own_tensors]:
            raise FileError(f"{file.path}: the inserted part does not stand behind the base's; was the file rewritten?")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Each part has the bytes that the file holds of it; the padding of its last tensor may have been left out."""
        file, own = self.file, self.own_tensors
        header = sum(map(len, self._base_header()))
        base_end = header + padding(header, file.alignment) + own[0].offset - file.data_offset
        sidecar_end = len(self.sidecar_header) + sum(t.n_bytes + padding(t.n_bytes) for t in own)
        for key, size, least, most in (
            (keys.MERGED_BASE_SIZE, self.base_size, base_end - file.alignment + 1, base_end),
            (keys.MERGED_SIDECAR_SIZE, self.sidecar_size, sidecar_end - padding(own[-1].n_bytes), sidecar_end),
        ):
            if not least <= size <= most:
                raise FileError(f"{file.path}: key {key.name} is {size}, but the file holds {most} bytes of that part")


def _write_part(temporary: Path, chunks: Iterator[bytes | memoryview], digest: str, complaint: str) -> None:
    sha256 = hashlib.sha256()
    with open(temporary, "r+b") as file:
        for chunk in chunks:
            sha256.update(chunk)
            file.write(chunk)
    if sha256.hexdigest() != digest:
        raise FileError(f"{complaint} would not have the sha256 that was stored when it was merged")


# ---- bytes -----------------------------------------------------------------------------------------------------


def _read_file(path: str, offset: int, size: int) -> Iterator[bytes]:
    """``size`` bytes from ``offset`` in chunks; read, not mapped, so that memory stays small on large files."""
    with open(path, "rb") as file:
        file.seek(offset)
        while size > 0:
            chunk = file.read(min(size, _CHUNK))
            if not chunk:
                raise FileError(f"{path}: ends {size} bytes too early")
            size -= len(chunk)
            yield chunk


def _sha256(chunks: Iterator[bytes] | Iterator[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
