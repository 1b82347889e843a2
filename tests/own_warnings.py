"""A deprecated call of ours fails the test that makes it; what libraries do among themselves is theirs.

Deprecations are attributed to the caller of the library that warns: the first frame outside the package that holds
the ``warnings.warn``. ``stacklevel`` is of no use for that, because libraries set it as they please.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
OURS = frozenset({"otter_gguf", "converters", "benchmarks", "tests", "examples"})
"""Folders of the repository whose calls count."""

_DEPRECATIONS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
_MACHINERY = frozenset({"warnings", "contextlib", "functools", "typing_extensions", "torch.nn.modules.module"})
"""Modules that stand between a call and the function that warns: decorators, and how torch calls a module."""
_NEAR = 4
"""Frames of the library at most between the call and the warning: what lies deeper are calls of its own."""


@contextmanager
def own_deprecations() -> Iterator[list[str]]:
    """Collect what our calls are warned of while the block runs; the warnings go on to whoever listens."""
    found: list[str] = []
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        caller = _caller(sys._getframe(1)) if issubclass(category, _DEPRECATIONS) else None
        if caller is not None and is_ours(caller.f_code.co_filename):
            found.append(f"{caller.f_code.co_filename}:{caller.f_lineno}: {category.__name__}: {message}")
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield found
    finally:
        warnings.showwarning = before


def is_ours(filename: str) -> bool:
    """Whether a source file belongs to this repository, and not to an environment inside it."""
    path = Path(filename)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OURS


def _caller(frame: FrameType | None) -> FrameType | None:
    """The first frame outside the package that warns, or the first of all if it is ours: what it called is native code.

    None if the package called itself.
    """
    packages: list[str] = []
    while frame is not None and len(packages) <= _NEAR:
        module = str(frame.f_globals.get("__name__", ""))
        if module not in _MACHINERY:
            packages.append(module.partition(".")[0])
            if packages[-1] != packages[0] or is_ours(frame.f_code.co_filename):
                return frame
        frame = frame.f_back
    return None
