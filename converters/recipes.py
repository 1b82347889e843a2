"""How the tensors of a sidecar are written: their types, the order of their rows, and what a type cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from otter_gguf import _native
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.gguf.recipes import Part, expected_tensors, recipes
from otter_gguf.gguf.sidecar import mixture_type
from otter_gguf.gguf.writer import TensorPlan
from otter_gguf.quantization import fitting_type
from otter_gguf.tensors import check_shapes

from .checkpoint import Float32, TensorSource

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "auto")

_CHUNK_VALUES = 1 << 22  # values in memory at a time; a few buffers of them come to well under 100 MB
_F16_MAX = 65504.0


def check_source(source: TensorSource, config: InsertionConfig) -> None:
    """``FileError`` that names every missing, extra or misshapen tensor of an adapter."""
    expected = {part.name: part.shape for parts in recipes(config).values() for part in parts}
    check_shapes(source.path, expected, source.shapes())


def plan_tensors(source: TensorSource, config: InsertionConfig, outtype: str) -> list[TensorPlan]:
    """What to write into a sidecar; nothing is read before the writer asks for it."""
    shapes = expected_tensors(config)
    return [_plan(source, name, shapes[name], parts, outtype) for name, parts in recipes(config).items()]


def tensor_type(name: str, n_columns: int, outtype: str) -> str:
    """The type that a tensor gets: of the mixture ``outtype``, or F16 where its rows do not fit that type's blocks."""
    if outtype not in OUTTYPES:
        raise ConfigError(f"--outtype {outtype}: expected one of {', '.join(OUTTYPES)}")
    return fitting_type(mixture_type(name, "Q8_0" if outtype == "auto" else outtype.upper()), n_columns)


def permute_rows(rows: Float32, head_size: int) -> Float32:
    """Rows of whole heads from Hugging Face's order to llama.cpp's.

    Hugging Face rotates channel i with channel i + n/2 of a head, llama.cpp's Llama rotates 2i with 2i + 1.
    """
    halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def unpermute_rows(rows: Float32, head_size: int) -> Float32:
    """Inverse of :func:`permute_rows`."""
    pairs = rows.reshape(-1, head_size // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def row_ranges(n_rows: int, n_columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows that fit in memory, each a multiple of ``multiple`` rows long."""
    step = max(multiple, _CHUNK_VALUES // n_columns // multiple * multiple)
    for begin in range(0, n_rows, step):
        yield begin, min(begin + step, n_rows)


def _plan(source: TensorSource, name: str, shape: tuple[int, ...], parts: tuple[Part, ...], outtype: str) -> TensorPlan:
    type = tensor_type(name, shape[0], outtype)

    def chunks() -> Iterator[bytes]:
        for part in chain.from_iterable(map(Part.pieces, parts)):
            for begin, end in row_ranges(part.n_rows, part.shape[-1], part.head_size or 1):
                rows = source.rows(part.name, part.first + begin, part.first + end)
                _check_values(source, part.name, part.first + begin, rows, type)
                yield _native.quantize(permute_rows(rows, part.head_size) if part.head_size else rows, type)

    return TensorPlan(name, type, shape, chunks)


def _check_values(source: TensorSource, name: str, first_row: int, rows: Float32, type: str) -> None:
    limit = _F16_MAX if type == "F16" else np.finfo(np.float32).max
    wrong = ~(np.abs(rows) <= limit)  # true for NaN too
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        advice = "; use --outtype bf16 or f32" if np.isfinite(rows[row, column]) else ""
        raise FileError(
            f"{source.path}: tensor {name}: element [{first_row + row}, {column}] is {rows[row, column]}, "
            f"which {type} does not hold{advice}"
        )
