"""What a model occupies: its weights as they are, buffers as llama.cpp's own log tells them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._logging import logger, set_verbose
from ..model import Otter

_BUFFER = re.compile(r"(KV|RS|compute|output) buffer size = +([0-9.]+) MiB")
_MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes of a model with its context, over all devices."""

    weights: int
    """Tensors of base and insertion, as the files hold them; copies that kernels repack for themselves are left out."""
    cache: int
    """Keys and values (and recurrent states) of all cells; the inserted heads' are part of it."""
    compute: int
    """Scratch of the largest batch's graph."""
    output: int
    """Logits and rewards of a batch's outputs."""

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.cache + self.compute + self.output

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def to_dict(self) -> dict[str, int]:
        """For JSON: the parts and ``total``, in bytes."""
        return {**asdict(self), "total": self.total}


def open_measured(
    model: str | Path, otter: str | Path | None = None, *, verbose: bool = False, **options: Any
) -> tuple[Otter, Memory]:
    """Open a model as :class:`otter_gguf.Otter` does; also what it occupies. Its errors are the class's."""
    with _log_lines(verbose) as lines:
        llm = Otter(model, otter=otter, verbose=True, **options)
    set_verbose(verbose)
    return llm, memory_of(llm.model.n_bytes, lines)


def memory_of(weights: int, lines: list[str]) -> Memory:
    """From llama.cpp's log lines about a context; it gives sizes with a precision of 0.01 MiB."""
    sizes = {"KV": 0, "RS": 0, "compute": 0, "output": 0}
    for kind, size in _BUFFER.findall("\n".join(lines)):
        sizes[kind] += round(float(size) * _MIB)
    return Memory(weights, sizes["KV"] + sizes["RS"], sizes["compute"], sizes["output"])


@contextmanager
def _log_lines(passed_on: bool) -> Iterator[list[str]]:
    """Collects what the package logs; other handlers see it only if it is passed on."""
    lines: list[str] = []
    handler = _Collector(lines)
    level, propagate, others = logger.level, logger.propagate, list(logger.handlers)
    logger.propagate = propagate and passed_on
    logger.handlers = [handler, *others] if passed_on else [handler]
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = others, propagate
        logger.setLevel(level)


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
