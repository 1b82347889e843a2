"""Reading whole files that somebody else made: what has no end, or no writer, is an error instead of a wait."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FileError

MAX_JSON = 100_000_000
"""Bytes of a configuration, an index or a tokenizer in JSON: what safetensors allows a header. The largest tokenizers
have a third of it."""
MAX_TEXT = 64 << 20
"""Bytes of a prompt, a grammar or a schema. No context holds that much text."""
MAX_ROWS = 1 << 30
"""Bytes of JSON lines or prompts that a verb reads as a whole before it starts."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; ``FileError`` for anything else, without waiting."""
    try:
        # Without this, opening a pipe waits for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileError(f"{path}: no regular file")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise FileError(f"{str(path)!r}: no name of a file") from None


def read_regular(path: str | Path, limit: int = MAX_JSON) -> bytes:
    """The bytes of a regular file, of at most ``limit`` bytes; ``FileError`` for anything else, without waiting."""
    with open_regular(path) as file:
        try:
            return _bounded(str(path), file.read(limit + 1), limit)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ``FileError`` if the file is missing, too large, or holds something else."""
    try:
        data = json.loads(read_regular(path).decode("utf-8"))
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text for any file
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise FileError(f"{path}: expected a JSON object")
    return data


def read_stream(path: str, limit: int = MAX_TEXT) -> bytes:
    """The bytes of a file or a pipe, ``-`` for stdin, of at most ``limit`` bytes."""
    try:
        if path == "-":
            return _bounded("stdin", sys.stdin.buffer.read(limit + 1), limit)
        with open(path, "rb") as file:
            return _bounded(path, file.read(limit + 1), limit)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise FileError(f"{path!r}: no name of a file") from None


def _bounded(name: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise FileError(f"{name}: more than {limit} bytes, expected at most {limit}")
    return data
