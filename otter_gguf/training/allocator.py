"""Memory that is free but held back by the C library, and how training on the CPU gives it back.

torch asks for aligned memory. glibc cannot serve such a request from a hole of just that size, so between tensors that
are kept for the backward pass holes stay that nothing fits into, as many bytes again as are in use in the worst case.
``malloc_trim`` gives the pages of all holes back to the system, which costs time where a hole is used after all, so it
is called as seldom as is enough: figures in docs/training.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .free_memory import resident_memory

HELD_BACK = 0.05
"""Share of the memory in use that may be held back."""
PAUSE = 16
"""Calls between two looks at it: the norms, attention and FFN of four layers."""


class Trim:
    """A forward hook that calls ``malloc_trim`` where the process has grown by :data:`HELD_BACK`.

    Grown beyond what it held behind any such call: in later steps, which need the same again, that is seldom. What is
    used for a moment within a layer looks as if it were held back; the pause keeps that from costing much.
    """

    def __init__(self, trim: Callable[[int], int], resident: Callable[[], int | None] = resident_memory) -> None:
        self.trim, self.resident = trim, resident
        self.most, self.pause = 0, 0

    def __call__(self, *_: Any) -> None:
        self.pause -= 1
        if self.pause < 0 and (self.resident() or 0) > (1 + HELD_BACK) * self.most:
            self.trim(0)
            self.most, self.pause = max(self.most, self.resident() or 0), PAUSE


@contextmanager
def little_held_back(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, memory is given back behind each forward pass of a module; nothing happens where there is no glibc."""
    trim = _malloc_trim()
    hook = Trim(trim) if trim and resident_memory() else None
    handles = [module.register_forward_hook(hook) for module in modules] if hook else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # Windows has no library None, others no such function
        return None
    return found
