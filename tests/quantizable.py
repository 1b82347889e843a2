"""Random models whose rows are multiples of 256, so that every weight type fits, made once a run; importance files."""

from __future__ import annotations

import atexit
import functools
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import synthetic
from benchmarks.weight_types import CONFIG, GEOMETRY
from otter_gguf import _native
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.writer import write_gguf
from otter_gguf.quantization import QuantizeOptions, quantize
from tests.gguf.toy_files import copied_tensor, float_tensor

__all__ = ["CONFIG", "GEOMETRY"]

Float32 = npt.NDArray[np.float32]


@functools.cache
def folder() -> Path:
    """Of the files below."""
    path = Path(tempfile.mkdtemp(prefix="otter-gguf-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def base(type: str = "F32", *, pure: bool = False) -> Path:
    """The base, through llama.cpp's quantizer unless it is F32."""
    path = folder() / f"base-{type}-{pure}.gguf"
    if path.exists():
        return path
    if type == "F32":
        synthetic.write_base(path, GEOMETRY, "F32", 0)
    else:
        quantize(base(), path, QuantizeOptions(type, n_threads=1, pure=pure))
    return path


def sidecar(type: str = "F32") -> Path:
    """Its sidecar, quantized unless it is F32."""
    path = folder() / f"{type}.otter.gguf"
    if path.exists():
        return path
    if type == "F32":
        synthetic.write_sidecar(path, base(), CONFIG, "F32", 0)
    else:
        quantize(sidecar(), path, QuantizeOptions(type, n_threads=1))
    return path


@functools.cache
def merged() -> Path:
    """Both in one, F32."""
    merge(base(), sidecar(), folder() / "merged.gguf")
    return folder() / "merged.gguf"


def shards(type: str = "F32") -> Path:
    """The base in two files as gguf-split writes them; the first of them."""
    count = 2
    first, second = (folder() / f"{type}-{number:05d}-of-{count:05d}.gguf" for number in (1, 2))
    if second.exists():
        return first
    with _native.GgufFile(str(base(type))) as file:
        half = len(file.tensors) // 2
        for number, (path, tensors) in enumerate(((first, file.tensors[:half]), (second, file.tensors[half:]))):
            entries = [KeyValue(key, file.key_type(key), file.value(key)) for key in file.keys] if number == 0 else []
            entries += [
                KeyValue("split.no", "u16", number),
                KeyValue("split.count", "u16", count),
                KeyValue("split.tensors.count", "i32", len(file.tensors)),
            ]
            write_gguf(path, entries, [copied_tensor(file, tensor) for tensor in tensors])
    return first


def types(path: Path) -> dict[str, str]:
    """The type of each tensor of a file."""
    with _native.GgufFile(str(path)) as file:
        return {tensor.name: tensor.type for tensor in file.tensors}


def importance(seed: int = 0) -> dict[str, Float32]:
    """Values for every matrix but the embedding, which llama-imatrix does not measure."""
    rng = np.random.default_rng(seed)
    with _native.GgufFile(str(base())) as file:
        return {
            tensor.name: rng.gamma(0.3, 10.0, tensor.shape[0]).astype(np.float32)
            for tensor in file.tensors
            if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"
        }


def write_importance(path: Path, values: Mapping[str, Float32], count: int = 7) -> Path:
    """An importance matrix in GGUF."""
    plans = []
    for name, means in values.items():
        plans.append(float_tensor(f"{name}.in_sum2", means[None] * np.float32(count)))
        plans.append(float_tensor(f"{name}.counts", np.full((1, 1), count, np.float32)))
    entries = [
        KeyValue("general.type", "str", "imatrix"),
        KeyValue("imatrix.datasets", "arr[str]", ["calibration.txt"]),
        KeyValue("imatrix.chunk_count", "u32", 5),
    ]
    write_gguf(path, entries, plans, force=True)
    return path


def write_importance_dat(path: Path, values: Mapping[str, Float32], calls: int = 7) -> Path:
    """The same in the older format."""
    data = struct.pack("<i", len(values))
    for name, means in values.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, means.size)
        data += (means * np.float32(calls)).astype("<f4").tobytes()
    data += struct.pack("<i", 5) + struct.pack("<i", 15) + b"calibration.txt"
    path.write_bytes(data)
    return path
