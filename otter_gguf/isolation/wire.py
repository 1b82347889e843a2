"""What a model in a process of its own is asked, and what it answers.

Questions go from the process that is trusted to the one that reads a stranger's file: they are pickled, so that
guidance and callbacks can be part of them. Answers go the other way and are never unpickled: they are JSON with the
bytes of arrays behind it, and only the types below can come out.

    question   u32 length, u64 number, pickle
    answer     u32 length, u64 number of the question, JSON {"value" or "error", "sizes"}, then the blobs of these sizes

An answer to another question than the last one is none.
"""

from __future__ import annotations

import builtins
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from .. import errors
from ..context.state import ContextState
from ..scoring import Score
from ..steps import Step

Blobs = list[bytes]


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class Writable(Protocol):
    """A stream for bytes."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


_FRONT = struct.Struct("<IQ")
_MAX_LENGTH = 1 << 28
_MARK = "$"  # the key of a dict that stands for something else
_ARRAY_TYPES = {"<f4", "<i4"}
_RECORDS: dict[str, Callable[..., Any]] = {"Score": Score, "Step": Step, "ContextState": ContextState}


class BrokenWireError(Exception):
    """The other side is gone, or sent what no answer is."""


def write_question(stream: Writable, number: int, pickled: bytes) -> None:
    """``ValueError`` if it is too long."""
    if len(pickled) >= 1 << 32:
        raise ValueError("more than 4 GiB of arguments")
    stream.write(_FRONT.pack(len(pickled), number) + pickled)
    stream.flush()


def read_question(stream: Readable) -> tuple[int, bytes]:
    """Its number, and what was pickled. ``BrokenWireError`` at the end."""
    length, number = _FRONT.unpack(_read(stream, _FRONT.size))
    return number, _read(stream, length)


def write_answer(stream: Writable, number: int, value: object = None, error: BaseException | None = None) -> None:
    """``TypeError`` if the value is of a type that cannot be sent; nothing is written then."""
    blobs: Blobs = []
    content = {"value": encode(value, blobs)} if error is None else {"error": [type(error).__name__, str(error)]}
    text = json.dumps(content | {"sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(_FRONT.pack(len(text), number) + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_answer(stream: Readable, number: int) -> tuple[Any, Exception | None]:
    """The value, or the error that was raised there. ``BrokenWireError`` unless it is the answer to question
    ``number``."""
    length, found = _FRONT.unpack(_read(stream, _FRONT.size))
    if length > _MAX_LENGTH or found != number:
        raise BrokenWireError
    text = _read(stream, length)
    try:
        content = json.loads(text)
        blobs = [_read(stream, size) for size in content["sizes"]]
        if "error" in content:
            return None, error_of(*content["error"])
        return decode(content["value"], blobs), None
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise BrokenWireError from error


def error_of(name: str, message: str) -> Exception:
    """The exception of a name: one of ours, one of Python's, else an ``EngineError`` that names it."""
    for module in (errors, builtins):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:  # UnicodeDecodeError and alike want more than a message
                break
    return errors.EngineError(f"{name}: {message}")


def encode(value: object, blobs: Blobs) -> Any:
    """A value in JSON's types; bytes and arrays are added to ``blobs``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {_MARK: "bytes", "blob": _add(value, blobs)}
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return {
            _MARK: "array", "type": array.dtype.str, "shape": list(value.shape), "blob": _add(array.tobytes(), blobs)
        }  # fmt: skip
    if type(value).__name__ in _RECORDS:
        fields = value._asdict() if isinstance(value, Step) else vars(value)
        return {_MARK: type(value).__name__, **{name: encode(item, blobs) for name, item in fields.items()}}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [encode(item, blobs) for item in value]}
    if isinstance(value, list):
        return [encode(item, blobs) for item in value]
    if isinstance(value, Mapping):
        items = [(key, encode(item, blobs)) for key, item in value.items()]
        plain = all(isinstance(key, str) and key != _MARK for key, _ in items)
        return dict(items) if plain else {_MARK: "dict", "items": items}
    raise TypeError(f"a {type(value).__name__} cannot be sent from an isolated process")


def decode(value: Any, blobs: Blobs) -> Any:
    """Inverse of :func:`encode`; any exception where the value is none of its results."""
    if isinstance(value, list):
        return [decode(item, blobs) for item in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: decode(item, blobs) for key, item in value.items()}
    kind = value.pop(_MARK)
    if kind == "bytes":
        return blobs[value["blob"]]
    if kind == "array":
        return _array(value["type"], value["shape"], blobs[value["blob"]])
    if kind == "tuple":
        return tuple(decode(item, blobs) for item in value["items"])
    if kind == "dict":
        return {key: decode(item, blobs) for key, item in value["items"]}
    return _RECORDS[kind](**{name: decode(item, blobs) for name, item in value.items()})


def _array(type: str, shape: list[int], blob: bytes) -> np.ndarray[Any, Any]:
    """Of a copy that can be written to, as an array made here could."""
    if type not in _ARRAY_TYPES:
        raise ValueError(type)
    array: np.ndarray[Any, Any] = np.frombuffer(blob, type).reshape(shape).copy()
    return array


def _add(blob: bytes, blobs: Blobs) -> int:
    blobs.append(blob)
    return len(blobs) - 1


def _read(stream: Readable, size: int) -> bytes:
    try:
        data = stream.read(size)
    except OSError as error:
        raise BrokenWireError from error
    if len(data) != size:
        raise BrokenWireError
    return data
