"""The bytes of GGUF version 3: values, metadata entries, tensor infos. Little-endian, as all of GGUF here."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
"""Default of the format; a file may say otherwise in ``general.alignment``."""
HEADER_SIZE = 24
"""Magic, version, number of tensors, number of metadata entries."""

_VALUE_TYPES = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_ARRAY_TYPE = 9

# ggml's numbers of the tensor types that otter-gguf writes, and that an inserted matrix may have.
TENSOR_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
}


@dataclass(frozen=True)
class KeyValue:
    """One metadata entry; ``type`` as in :class:`otter_gguf.gguf.keys.Key` (``u32``, ``str``, ``arr[f32]`` ...)."""

    key: str
    type: str
    value: Any


def padding(size: int, alignment: int = ALIGNMENT) -> int:
    """Bytes from ``size`` to the next multiple of ``alignment``."""
    return -size % alignment


def shape_without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """GGUF-order shape without trailing ones: writers differ in whether they keep them."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def encode_string(text: str | bytes) -> bytes:
    """Length (u64) and bytes; ``surrogateescape`` gives back what the reader could not decode."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _encode_items(item_type: str, values: Iterable[Any]) -> bytes:
    if item_type == "str":
        return b"".join(map(encode_string, values))
    items = values if isinstance(values, bytes) else list(values)
    if item_type == "u8":
        return bytes(items)
    return struct.pack(f"<{len(items)}{_VALUE_TYPES[item_type][1]}", *items)


def encode_type(type: str) -> bytes:
    """The type tag of a metadata entry; that of an array's items belongs to the value."""
    return struct.pack("<I", _ARRAY_TYPE if type.startswith("arr[") else _VALUE_TYPES[type][0])


def encode_value(type: str, value: Any) -> bytes:
    """A value as it stands after its type tag; an array starts with its item type and its length."""
    if not type.startswith("arr["):
        return _encode_items(type, [value])
    item_type = type[4:-1]
    return struct.pack("<IQ", _VALUE_TYPES[item_type][0], len(value)) + _encode_items(item_type, value)


def encode_raw_entry(key: str, type: str, raw_value: bytes | memoryview) -> bytes:
    """A metadata entry around the bytes of a value."""
    return encode_string(key) + encode_type(type) + bytes(raw_value)


def encode_entry(entry: KeyValue) -> bytes:
    """A metadata entry."""
    return encode_raw_entry(entry.key, entry.type, encode_value(entry.type, entry.value))


def encode_header(version: int, n_tensors: int, n_entries: int) -> bytes:
    """The first 24 bytes of a file."""
    return MAGIC + struct.pack("<IQQ", version, n_tensors, n_entries)


def encode_tensor_info(name: str, shape: Sequence[int], type: str, offset: int) -> bytes:
    """One entry of the tensor list; ``shape`` in GGUF order, ``offset`` from the start of the data section."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return encode_string(name) + sizes + struct.pack("<IQ", TENSOR_TYPES[type], offset)
