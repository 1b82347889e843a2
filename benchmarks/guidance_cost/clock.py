"""Which part of a token's time is the native layer's."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from otter_gguf import _native


class NativeClock:
    """Times every call into the native layer. The clock's own time counts as Python's."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Since :meth:`reset`, by function."""
        self.tokens = 0
        """Fed to models since :meth:`reset`."""

    def reset(self) -> None:
        """Start again."""
        self.seconds.clear()
        self.tokens = 0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under the clock."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if name in ("decode", "decode_rewards"):
                self.tokens += len(args[1])
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return call


@contextlib.contextmanager
def native_clock() -> Iterator[NativeClock]:
    """A clock that runs within the block."""
    clock = NativeClock()
    with ExitStack() as stack:
        for owner in (_native, _native.Context, _native.Sampler, _native.Model):
            for name, function in list(vars(owner).items()):
                if callable(function) and not isinstance(function, type) and not name.startswith("_"):
                    setattr(owner, name, clock.timed(name, function))
                    stack.callback(setattr, owner, name, function)
        yield clock


@dataclass(frozen=True)
class Token:
    """How long one token took."""

    seconds: float
    native: dict[str, float]
    """Of it in each native function."""
    tokens: int
    """Computed for it, by all models together."""

    @property
    def python(self) -> float:
        """Seconds outside the native layer."""
        return self.seconds - sum(self.native.values())
