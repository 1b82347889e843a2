"""Write a GGUF file tensor by tensor: the whole header first, then the data as it is made, in bounded memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from .. import _native
from . import encoding
from .atomic import atomic_path
from .checksums import with_checksums
from .encoding import KeyValue


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written."""

    name: str
    type: str
    """ggml's name: F32, F16, Q8_0 ..."""
    shape: tuple[int, ...]
    """GGUF order: columns first."""
    chunks: Callable[[], Iterable[bytes | memoryview]]
    """Gives the tensor's bytes in order, when its turn comes."""

    @property
    def n_bytes(self) -> int:
        """Size of the data. ``FileError`` if the type does not fit the shape."""
        return _native.tensor_nbytes(self.type, self.shape)


def write_gguf(
    target: str | Path,
    metadata: Sequence[KeyValue],
    tensors: Sequence[TensorPlan],
    *,
    inputs: Sequence[str | Path] = (),
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a GGUF file atomically; a sidecar with the checksums of what is written.

    Args:
        target: Final name.
        metadata: Entries in file order. Of a sidecar, ``otter.checksum.*`` are replaced or added.
        tensors: Tensors in file order; their bytes are asked for one tensor at a time.
        inputs: Files that ``target`` must not be.
        force: Replace an existing file.
        check: Called with the finished file under its temporary name; what it raises keeps the file from appearing.

    Raises:
        FileError: The file cannot be written, or a tensor's type does not fit its shape.
    """
    header = _header(metadata, tensors, [hashlib.sha256().hexdigest()] * len(tensors))
    with atomic_path(target, inputs=inputs, force=force) as temporary:
        with open(temporary, "r+b") as file, progress_bar("Writing", sum(t.n_bytes for t in tensors)) as bar:
            file.write(header)
            digests = [_write_tensor(file, tensor, bar.update) for tensor in tensors]
            file.seek(0)
            file.write(_header(metadata, tensors, digests))  # of the same size: only checksums differ
        if check is not None:
            check(temporary)


def encode_file_header(metadata: Sequence[KeyValue], tensors: Sequence[TensorPlan]) -> bytes:
    """Everything before the data, padded to the alignment."""
    parts = [encoding.encode_header(encoding.VERSION, len(tensors), len(metadata))]
    parts += map(encoding.encode_entry, metadata)
    offset = 0
    for tensor in tensors:
        parts.append(encoding.encode_tensor_info(tensor.name, tensor.shape, tensor.type, offset))
        offset += tensor.n_bytes + encoding.padding(tensor.n_bytes)
    header = b"".join(parts)
    return header + bytes(encoding.padding(len(header)))


def _header(metadata: Sequence[KeyValue], tensors: Sequence[TensorPlan], digests: Sequence[str]) -> bytes:
    return encode_file_header(with_checksums(metadata, tensors, digests), tensors)


def progress_bar(title: str, n_bytes: int) -> tqdm[None]:
    """A bar in bytes on stderr; none where stderr is no terminal."""
    return tqdm(desc=title, total=n_bytes, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, disable=None)


def _write_tensor(file: BinaryIO, tensor: TensorPlan, progress: Callable[[int], object]) -> str:
    """Returns the sha256 of the tensor's data."""
    written, digest = 0, hashlib.sha256()
    for chunk in tensor.chunks():
        digest.update(chunk)
        written += file.write(chunk)
        progress(len(chunk))
    if written != tensor.n_bytes:
        raise ValueError(f"tensor {tensor.name}: its source gave {written} bytes, planned were {tensor.n_bytes}")
    file.write(bytes(encoding.padding(written)))
    return digest.hexdigest()
