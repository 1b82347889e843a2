"""Files that lie about sizes: good files in which a count, a dimension, a type, an offset or a length is another.

That each is a lie is computed a second time in Python's integers (``*_fits``), by readers that know nothing of the
package's. Of numbers of the configuration the good file is the proof: they belong to its tensors, and one is changed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .gguf_builder import TENSOR_TYPES, UNUSABLE_TENSOR_TYPES, VALUE_FORMATS, VALUE_TYPES, Gguf, Tensor, Value

Lies = Iterator[tuple[str, bytes]]
"""What the lie is about, and the file."""

_BLOCKS = {number: (block, size) for number, block, size in (TENSOR_TYPES | UNUSABLE_TENSOR_TYPES).values()}
_FORMATS = {VALUE_TYPES[name]: format for name, format in VALUE_FORMATS.items()}
_STRING, _ARRAY = VALUE_TYPES["str"], VALUE_TYPES["arr"]
_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}


# ---- GGUF: counts, lengths, dimensions, types, offsets ---------------------------------------------------------


def gguf_lies(good: Gguf) -> Lies:
    """Of any GGUF file with tensors."""
    yield from _counts(good)
    yield from _lengths(good)
    for place in (0, len(good.tensors) // 2, len(good.tensors) - 1):
        yield from _tensor_lies(good, *good.tensors[place])
    yield "a tensor without data", good.build()[:-32]
    yield "half of the data", good.build()[: len(good.header()) + (len(good.build()) - len(good.header())) // 2]
    for alignment in (8, 16, 64, 4096, 65536):
        yield f"alignment {alignment}, laid out for 32", good.set("general.alignment", "u32", alignment).build()


def _counts(good: Gguf) -> Lies:
    n_tensors, n_kv = len(good.tensors), len(good.kvs)
    for count in (0, n_tensors - 1, n_tensors + 1, 2**32 + n_tensors, 2**63):
        yield f"{count} tensors", replace(good, n_tensors=count).build()
    for count in (0, n_kv - 1, n_kv + 1, 2**32 + n_kv, 2**63):
        yield f"{count} keys", replace(good, n_kv=count).build()


def _lengths(good: Gguf) -> Lies:
    """Of the first string and the first array."""
    first = {value.tag: (key, value) for key, value in reversed(good.kvs)}
    for tag, start in ((_STRING, 0), (_ARRAY, 4)):
        if tag in first:
            key, old = first[tag]
            (count,) = struct.unpack_from("<Q", old.payload, start)
            for claim in (count - 1, count + 1, 2**32 + count, 2**61 + count, 2**64 - 1):
                payload = old.payload[:start] + struct.pack("<Q", claim) + old.payload[start + 8 :]
                yield f"{key!s} of {claim}", good.put(key, Value(tag, payload)).build()


def _tensor_lies(good: Gguf, name: str | bytes, tensor: Tensor) -> Lies:
    """The data stays what it is; what the file says of it changes."""
    data, shape = tensor.bytes(), tensor.shape
    begin = _offset(good, name)
    claims = [
        replace(tensor, shape=(2 * shape[0], *shape[1:])),
        replace(tensor, shape=(*shape[:-1], shape[-1] + 64)),
        replace(tensor, shape=(2**32, 2**32)),
        replace(tensor, shape=(2**62 + shape[0], 4)),
        replace(tensor, shape=(*shape, 3)),
        replace(tensor, shape=(*shape, 1, 1, 1, 1)),
        replace(tensor, n_dims=len(shape) + 1),
        replace(tensor, type="F64" if tensor.type == "F32" else "F32"),
        replace(tensor, offset=begin + 32),
        replace(tensor, offset=begin + 1),
        replace(tensor, offset=2**64 - 32),
        replace(tensor, offset=0 if begin else 2**63),
    ]
    for claim in claims:
        dims = "" if claim.n_dims is None else f", {claim.n_dims} dimensions"
        what = f"{name!s} {list(claim.shape)}{dims} {claim.type} at {claim.offset or begin}"
        yield what, good.tensor(name, replace(claim, data=data)).build()


def _offset(good: Gguf, name: str | bytes) -> int:
    offset = 0
    for other, tensor in good.tensors:
        if other == name:
            break
        offset += -(-len(tensor.bytes()) // good.alignment) * good.alignment
    return offset


def gguf_fits(raw: bytes) -> bool:
    """Whether what a GGUF file says of sizes is so: each part begins where the one before ends, all lie in the file.

    Bytes behind the last tensor are allowed.
    """
    try:
        return _gguf_fits(raw)
    except (struct.error, KeyError, IndexError):
        return False


def _gguf_fits(raw: bytes) -> bool:
    n_tensors, n_kv = struct.unpack_from("<QQ", raw, 8)
    at, alignment = 24, 32
    for _ in range(n_kv):
        key, at = _text(raw, at)
        (tag,) = struct.unpack_from("<I", raw, at)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", raw, at + 4)
        at = _value_end(raw, at + 4, tag)
    end = last = 0
    for _ in range(n_tensors):
        _, at = _text(raw, at)
        (n_dims,) = struct.unpack_from("<I", raw, at)
        *shape, number, offset = struct.unpack_from(f"<{min(n_dims, 5)}QIQ", raw, at + 4)
        at += 4 + 8 * n_dims + 12
        block, size = _BLOCKS[number]
        if not 1 <= n_dims <= 4 or math.prod(shape) == 0 or shape[0] % block or offset != end:
            return False
        last = end + math.prod(shape) // block * size
        end = -(-last // alignment) * alignment
    return n_tensors > 0 and -(-at // alignment) * alignment + last <= len(raw)


def _text(raw: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", raw, at)
    if at + 8 + length > len(raw):
        raise IndexError
    return raw[at + 8 : at + 8 + length], at + 8 + length


def _value_end(raw: bytes, at: int, tag: int) -> int:
    if tag == _STRING:
        return _text(raw, at)[1]
    if tag != _ARRAY:
        return at + struct.calcsize(_FORMATS[tag])
    element, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if element != _STRING:
        return at + int(count) * struct.calcsize(_FORMATS[element])
    for _ in range(count):
        _, at = _text(raw, at)
    return at


# ---- GGUF: numbers of the configuration ------------------------------------------------------------------------


def number_lies(good: Gguf, numbers: Mapping[str, tuple[int, ...]]) -> Lies:
    """Another number than the tensors have, by key: one value, or of a list its first one."""
    for key, others in numbers.items():
        old = next(value for name, value in good.kvs if name == key)
        tag, start = (struct.unpack_from("<I", old.payload)[0], 12) if old.tag == _ARRAY else (old.tag, 0)
        for other in others:
            number = struct.pack("<" + _FORMATS[tag], other)
            payload = old.payload[:start] + number + old.payload[start + len(number) :]
            assert payload != old.payload
            yield f"{key} {other}", good.put(key, Value(old.tag, payload)).build()


def vocabulary_lies(good: Gguf) -> Lies:
    """Fewer or more entries than the embedding has rows."""
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        old = next(value for name, value in good.kvs if name == key)
        element, count = struct.unpack_from("<IQ", old.payload)
        last = struct.pack("<Q", 3) + b"new" if element == _STRING else bytes(4)
        shorter = old.payload[12:] if element == _STRING else old.payload[12:-4]
        if element == _STRING:
            (length,) = struct.unpack_from("<Q", shorter)
            shorter = shorter[8 + length :]
        for claim, items in ((count - 1, shorter), (count + 1, old.payload[12:] + last)):
            changed = Value(old.tag, struct.pack("<IQ", element, claim) + items)
            yield f"{claim} entries in {key}", good.put(key, changed).build()


def shape_lies(good: Gguf, names: tuple[str, ...]) -> Lies:
    """Matrices turned round or half as large, with data to match: well formed, and not what the configuration says."""
    tensors = dict(good.tensors)
    for name in names:
        shape = tensors[name].shape
        for other in {shape[::-1], (shape[0], shape[1] // 2), (shape[0] * 2, shape[1])} - {shape}:
            yield f"{name} {list(other)}", good.tensor(name, Tensor(other, "F32")).build()


# ---- safetensors -----------------------------------------------------------------------------------------------


def safetensors_lies(good: bytes) -> Lies:
    """Another header over the same data."""
    header, data = _safetensors(good)
    names = [name for name in header if name != "__metadata__"]
    for name in (names[0], names[len(names) // 2], names[-1]):
        for entry in _entry_lies(header[name], len(data)):
            yield f"{name} {entry}", _pack(header | {name: header[name] | entry}, data)
    yield "two tensors in one place", _pack(header | {names[1]: header[names[0]]}, data)
    yield "a tensor left out", _pack({name: header[name] for name in names[:-1]}, data)
    yield "one more tensor in the same bytes", _pack(header | {"x": header[names[0]]}, data)
    length = len(good) - len(data) - 8
    for claim in (0, length - 1, length + 8, len(good), 2**32 + length, 2**63):
        yield f"a header of {claim} bytes", struct.pack("<Q", claim) + good[8:]
    yield "bytes behind the last tensor", good + bytes(64)
    yield "the last bytes missing", good[:-4]


def _entry_lies(entry: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    yield {"shape": [shape[0] + 1, *shape[1:]]}
    yield {"shape": [*shape[:-1], 2 * shape[-1]]}
    yield {"shape": [2**32, 2**32]}
    yield {"shape": [2**62 + shape[0], 4]}
    yield {"dtype": "BF16" if entry["dtype"] == "F32" else "F32"}
    yield {"data_offsets": [begin, end + 4]}
    yield {"data_offsets": [begin + 4, end + 4]}
    yield {"data_offsets": [begin, 2**63]}
    yield {"data_offsets": [size, size + end - begin]}


def reshaped_lies(good: bytes, names: tuple[str, ...]) -> Lies:
    """Matrices turned round: well formed, and not what the configuration says."""
    header, data = _safetensors(good)
    for name in names:
        shape = header[name]["shape"]
        for other in (shape[::-1], [2 * shape[0], shape[1] // 2]):
            assert other != shape
            yield f"{name} {other}", _pack(header | {name: header[name] | {"shape": other}}, data)


def safetensors_fits(raw: bytes) -> bool:
    """Whether the tensors fill the data, each with as many bytes as its shape and type need."""
    try:
        header, data = _safetensors(raw)
        header.pop("__metadata__", None)
        entries = sorted(header.values(), key=lambda entry: entry["data_offsets"][0])
    except (ValueError, AttributeError):
        return False
    place = 0
    for entry in entries:
        begin, end = entry["data_offsets"]
        if begin != place or end - begin != math.prod(entry["shape"]) * _ITEM_SIZES[entry["dtype"]]:
            return False
        place = end
    return place == len(data)


def _safetensors(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _pack(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# ---- importance matrices ---------------------------------------------------------------------------------------


def dat_lies(good: bytes) -> Lies:
    """Of llama-imatrix's older format: counts of entries, lengths of names and values."""
    (count,) = struct.unpack_from("<i", good)
    (length,) = struct.unpack_from("<i", good, 4)
    (n_values,) = struct.unpack_from("<i", good, 12 + length)
    for place, old in ((0, count), (4, length), (12 + length, n_values)):
        for claim in (old - 1, old + 1, 2 * old, 2**31 - 1, -1):
            yield f"{claim} for {old} at byte {place}", good[:place] + struct.pack("<i", claim) + good[place + 4 :]
    yield "the last bytes missing", good[:-4]
    yield "bytes behind the end", good + bytes(8)


def dat_fits(raw: bytes) -> bool:
    """Whether the entries, the number of chunks and the text's name fill the file."""
    try:
        at = 4
        for _ in range(struct.unpack_from("<i", raw)[0]):
            (length,) = struct.unpack_from("<i", raw, at)
            (n_values,) = struct.unpack_from("<i", raw, at + 8 + length)
            if min(length, n_values) < 0:
                return False
            at += 12 + length + 4 * n_values
        (length,) = struct.unpack_from("<i", raw, at + 4)
    except struct.error:
        return False
    return bool(length >= 0 and at + 8 + length == len(raw))
