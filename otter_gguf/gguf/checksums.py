"""Checksums of an inserted part: written with every sidecar, carried along by a merge, verified on request.

One sha256 a tensor, and one over all that gives those bytes their meaning. Names and descriptions for people and hubs
(``general.*``) may be edited without harm. Byte layout: docs/format.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Protocol

from .. import _native
from ..errors import FileError
from . import encoding, keys
from .encoding import KeyValue
from .sidecar import own_tensors

_DOMAIN = b"otter-checksum-1\n"


class Described(Protocol):
    """A tensor in a file, or one that is to be written."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def with_checksums(
    metadata: Sequence[KeyValue], tensors: Sequence[Described], digests: Sequence[str]
) -> list[KeyValue]:
    """The metadata of a sidecar with its checksums, which replace those that it has; of another file, as it is.

    ``digests``: sha256 of each tensor's data, in hexadecimal.
    """
    if not any(entry.key == keys.ADAPTER_TYPE and entry.value == keys.ADAPTER_TYPE_OTTER for entry in metadata):
        return list(metadata)
    entries = [entry for entry in metadata if not entry.key.startswith(keys.CHECKSUM_PREFIX)]
    encoded = {entry.key: encoding.encode_entry(entry) for entry in entries if _matters(entry.key)}
    own = metadata_checksum(encoded, tensors, digests)
    return [
        *entries,
        KeyValue(keys.CHECKSUM_METADATA.name, keys.CHECKSUM_METADATA.type, own),
        KeyValue(keys.CHECKSUM_TENSORS.name, keys.CHECKSUM_TENSORS.type, list(digests)),
    ]


def metadata_checksum(entries: dict[str, bytes], tensors: Iterable[Described], digests: Iterable[str]) -> str:
    """64 hexadecimal digits over entries (by key, as they stand in a file) and the tensor list with its checksums."""
    digest = hashlib.sha256(_DOMAIN)
    for key in sorted(entries):
        digest.update(entries[key])
    for tensor, own in zip(tensors, digests, strict=True):
        name = tensor.name.encode("utf-8", "surrogateescape")
        digest.update(b"\0".join((name, tensor.type.encode(), own.encode("utf-8", "surrogateescape"))) + b"\0")
        digest.update(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
    return digest.hexdigest()


def has_checksums(file: _native.GgufFile) -> bool:
    """Whether there is something to verify; files of other writers need not have any."""
    return any(key.name in file.keys for key in keys.CHECKSUM_KEYS)


def check_checksums(file: _native.GgufFile) -> None:
    """Compare the inserted part of a sidecar or merged file with the checksums in it.

    Raises:
        FileError: There are none, or something differs: each tensor is named.
    """
    missing = [key.name for key in keys.CHECKSUM_KEYS if key.name not in file.keys]
    if missing:
        raise FileError(f"{file.path}: checksums: {' and '.join(missing)} missing; convert the adapter again")
    wrong = [key.name for key in keys.CHECKSUM_KEYS if file.key_type(key.name) != key.type]
    if wrong:
        raise FileError(f"{file.path}: checksums: {' and '.join(wrong)} of a wrong type")
    problems = _differences(file)
    if problems:
        raise FileError(f"{file.path}: checksums: {'; '.join(problems)}: the file is damaged, get it again")


def _differences(file: _native.GgufFile) -> list[str]:
    tensors = own_tensors(file)
    stored: list[str] = file.value(keys.CHECKSUM_TENSORS.name)
    if len(stored) != len(tensors):
        return [f"{keys.CHECKSUM_TENSORS.name} has {len(stored)} entries, expected {len(tensors)}, one a tensor"]
    found = [hashlib.sha256(file.tensor_data(tensor.name)).hexdigest() for tensor in tensors]
    damaged = [tensor.name for tensor, old, new in zip(tensors, stored, found, strict=True) if old != new]
    problems = [f"the data of {', '.join(damaged)} differs"] if damaged else []
    entries = {
        key: encoding.encode_raw_entry(key, file.key_type(key), file.raw_value(key))
        for key in file.keys
        if _matters(key)
    }
    if metadata_checksum(entries, tensors, stored) != file.value(keys.CHECKSUM_METADATA.name):
        problems.append("a key or the tensor list differs")
    return problems


def _matters(key: str) -> bool:
    """Whether a key decides about what the inserted part computes."""
    if key.startswith((keys.CHECKSUM_PREFIX, keys.MERGED_PREFIX)):
        return False
    return key == keys.GENERAL_ARCHITECTURE or key.startswith(keys.PREFIX)
