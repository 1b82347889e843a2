"""What tests send into an isolated process: callbacks that stand for a file on which llama.cpp crashes or hangs."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


def read_address_zero(tokens: Int32, logits: Float32) -> Float32:
    """SIGSEGV."""
    ctypes.string_at(0)
    return logits


def abort(tokens: Int32, logits: Float32) -> Float32:
    """What a failed assertion of ggml does: a line on stderr, SIGABRT."""
    os.write(2, b"some.c:12: GGML_ASSERT(\x1b[2Jfalse) failed\n")
    os.abort()


def leave(tokens: Int32, logits: Float32) -> Float32:
    """End with a code."""
    os._exit(3)


def divide(tokens: Int32, logits: Float32) -> Float32:
    """An exception of Python's."""
    raise ZeroDivisionError(f"{len(tokens)} tokens by nothing")


def slow(tokens: Int32, logits: Float32) -> Float32:
    """50 ms a token."""
    time.sleep(0.05)
    return logits


def deaf(tokens: Int32, logits: Float32) -> Float32:
    """Hangs, and hears no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(60)
    return logits


def hang_with_lock(tokens: Int32, logits: Float32) -> Float32:
    """Hangs in native code that keeps the interpreter's lock."""
    ctypes.PyDLL(None).pause()
    return logits


def first_vowel(tokens: Int32, logits: Float32) -> Float32:
    """A harmless one: only the token 97 is left."""
    only = np.full_like(logits, -np.inf)
    only[97] = 0
    return only


class Bomb:
    """Crashes the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.abort, ()

    def __bool__(self) -> bool:
        return False
