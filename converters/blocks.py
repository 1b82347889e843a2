"""Compare a widened checkpoint with its base, element by element, and its zero blocks with zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from otter_gguf import _native, architectures
from otter_gguf.adapter_format import INFIX
from otter_gguf.architectures import Architecture
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import FileError, MismatchError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.writer import progress_bar
from otter_gguf.tensors import check_shapes
from otter_gguf.widened_format import EMBEDDING, NORM, OUTPUT, Widened, widened_tensors

from .checkpoint import Checkpoint, Float32
from .recipes import row_ranges, unpermute_rows

# ---- the base it is compared with ------------------------------------------------------------------------------


class HfReference:
    """A base in a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._checkpoint = Checkpoint(folder)
        self._shapes = self._checkpoint.shapes()

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows of a tensor. ``FileError`` if the base lacks it, ``MismatchError`` if it has fewer rows."""
        if name == OUTPUT and name not in self._shapes:
            name = EMBEDDING  # tied
        shape = self._shapes.get(name)
        if shape is None:
            raise FileError(f"{self.path}: tensor {name} is missing")
        if end > (shape[0] if len(shape) == 2 else 1):
            raise MismatchError(f"{self.path}: tensor {name} has shape {list(shape)}, the widened one needs {end} rows")
        return self._checkpoint.rows(name, begin, end)

    def rounded(self, name: str, values: Float32) -> Float32:
        """The values themselves: a widened checkpoint holds the base's as they are."""
        return values

    def close(self) -> None:
        """Close the folder's files."""
        self._checkpoint.close()


class GgufReference:
    """A base in a GGUF file of F32, F16 or BF16."""

    def __init__(self, base: BaseFiles) -> None:
        """``UnsupportedError`` if a tensor is quantized."""
        self.path = Path(base.path)
        self._base = base
        self._architecture = architectures.of_gguf(base_geometry(base).architecture)[0]
        quantized = [tensor for tensor in base.tensors if tensor.type not in ("F32", "F16", "BF16")]
        if quantized:
            raise UnsupportedError(
                f"{base.path}: tensor {quantized[0].name} is {quantized[0].type}, so the widened checkpoint cannot be "
                "compared with it; give the base's Hugging Face folder as --base-hf, or an F16 base"
            )

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows of a tensor. ``FileError`` if the base lacks it."""
        tensor = self._tensor(name)
        n_columns = tensor.shape[0]
        row_size = _native.tensor_nbytes(tensor.type, (n_columns,))
        data = self._base.tensor_data(tensor.name)[begin * row_size : end * row_size]
        if len(data) != (end - begin) * row_size:
            raise MismatchError(f"{self.path}: tensor {tensor.name} has shape {list(tensor.shape)}, needed: {end} rows")
        return _native.dequantize(data, tensor.type, n_columns)

    def rounded(self, name: str, values: Float32) -> Float32:
        """Values in the precision of the base's tensor."""
        type = self._tensor(name).type
        if type == "F32":
            return values
        return _native.dequantize(_native.quantize(np.ascontiguousarray(values), type), type, values.shape[1])

    def close(self) -> None:
        """The base belongs to the caller."""

    def _tensor(self, name: str) -> _native.TensorInfo:
        wanted = _gguf_name(name, self._architecture)
        tensor = self._base.tensor(wanted)
        if tensor is None and name == OUTPUT:
            tensor = self._base.tensor(_GGUF_TENSORS[EMBEDDING])  # tied
        if tensor is None:
            raise FileError(f"{self.path}: tensor {wanted} is missing")
        return tensor


Reference = HfReference | GgufReference


def open_reference(base: BaseFiles, base_hf: str | Path | None) -> Reference:
    """The base to compare with: the Hugging Face folder if there is one, else the GGUF, if it is not quantized."""
    return HfReference(Path(base_hf)) if base_hf is not None else GgufReference(base)


_GGUF_TENSORS = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", OUTPUT: "output.weight"}


def _gguf_name(name: str, architecture: Architecture) -> str:
    """llama.cpp's name of a base tensor."""
    if name in _GGUF_TENSORS:
        return _GGUF_TENSORS[name]
    layer, path = name.removeprefix(f"{architecture.layers}.").split(".", 1)
    module, kind = path.rsplit(".", 1)
    return f"blk.{layer}.{architecture.gguf_modules[module]}.{kind}"


# ---- checking --------------------------------------------------------------------------------------------------


def check_blocks(checkpoint: Checkpoint, config: InsertionConfig, reference: Reference) -> None:
    """Compare every original block with the base and every block that must be zero with zero.

    Raises:
        FileError: Tensors are missing or misshapen (all named in one message).
        MismatchError: Names the first wrong element.
    """
    tensors = widened_tensors(config)
    found = {name: shape for name, shape in checkpoint.shapes().items() if INFIX not in name}
    check_shapes(checkpoint.path, {name: tensor.shape for name, tensor in tensors.items()}, found)
    n_values = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    with progress_bar("Checking", n_values * 4) as bar:
        for name, tensor in tensors.items():
            for n_bytes in _check_tensor(checkpoint, name, tensor, config, reference):
                bar.update(n_bytes)


def _check_tensor(
    checkpoint: Checkpoint, name: str, tensor: Widened, config: InsertionConfig, reference: Reference
) -> Iterator[int]:
    n_rows = tensor.original[0] if len(tensor.original) == 2 else 1
    n_columns = tensor.original[-1]
    head_size = _permuted_head_size(name, config) if isinstance(reference, GgufReference) else 0
    for begin, end in row_ranges(n_rows, tensor.shape[-1], head_size or 1):
        rows = checkpoint.rows(name, begin, end)
        expected = reference.rows(name, begin, end)
        if head_size:
            expected = unpermute_rows(expected, head_size)
        where = f"{checkpoint.path}: tensor {name}"
        found = reference.rounded(name, np.ascontiguousarray(rows[:, :n_columns]))
        if expected.shape != found.shape:
            raise MismatchError(f"{where}: {n_columns} original columns, {reference.path} has {expected.shape[1]}")
        _compare(where, begin, 0, found, expected, f"the base {reference.path} has")
        if tensor.zero_right:
            _compare(where, begin, n_columns, rows[:, n_columns:], None, "a zero block, expected")
        yield rows.nbytes
    if tensor.zero_below:
        yield from _check_zero_rows(checkpoint, name, n_rows, tensor.shape)


def _check_zero_rows(checkpoint: Checkpoint, name: str, first: int, shape: tuple[int, ...]) -> Iterator[int]:
    for begin, end in row_ranges(shape[0] - first, shape[1]):
        rows = checkpoint.rows(name, first + begin, first + end)
        where = f"{checkpoint.path}: tensor {name}"
        _compare(where, first + begin, 0, rows, None, "nothing is inserted here, expected")
        yield rows.nbytes


def _permuted_head_size(name: str, config: InsertionConfig) -> int:
    rotated = name.split(".")[-2] in ("q_proj", "k_proj")
    interleaved = architectures.of_gguf(config.base.architecture)[0].interleaved_rope
    return config.base.head_dim if rotated and interleaved else 0


def _compare(
    where: str, first_row: int, first_column: int, found: Float32, expected: Float32 | None, reason: str
) -> None:
    """``MismatchError`` that names the first element that differs from ``expected`` (None: zeros)."""
    wrong = found != (0 if expected is None else expected)
    if not wrong.any():
        return
    row, column = (int(index) for index in np.argwhere(wrong)[0])
    wanted = 0 if expected is None else expected[row, column]
    raise MismatchError(
        f"{where}: element [{first_row + row}, {first_column + column}] is {found[row, column]}, {reason} {wanted}"
    )
