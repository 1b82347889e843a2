"""The demo model in F32 throughout: for comparisons in which nothing but rounding may differ."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from otter_gguf.converters.adapter import convert_adapter

from otter_gguf import Otter, _native
from otter_gguf.demo import demo_files
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.writer import TensorPlan, write_gguf


@functools.cache
def demo_f32() -> tuple[Path, Path]:
    """The demo's base with its weights dequantized, and its adapter as an F32 sidecar."""
    folder = Path(tempfile.mkdtemp(prefix="otter-gguf-demo-f32-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base, sidecar = folder / "demo-base.gguf", folder / "demo.otter.gguf"
    with _native.GgufFile(str(demo_files().base)) as source:
        metadata = [KeyValue(key, source.key_type(key), source.value(key)) for key in source.keys]
        plans = [_dequantized(source, tensor) for tensor in source.tensors]
        write_gguf(base, metadata, plans)
    with BaseFiles.open(base) as files:
        convert_adapter(demo_files().adapter, sidecar, files, outtype="f32")
    return base, sidecar


def _dequantized(source: _native.GgufFile, tensor: _native.TensorInfo) -> TensorPlan:
    def chunks() -> list[bytes]:
        return [_native.dequantize(source.tensor_data(tensor.name), tensor.type, tensor.shape[0]).tobytes()]

    return TensorPlan(tensor.name, "F32", tensor.shape, chunks)


def load_demo_f32(**options: Any) -> Otter:
    """It with F32 cells on one thread: results are the same on every machine with the same kernels."""
    base, sidecar = demo_f32()
    exact = {"n_ctx": 512, "n_threads": 1, "seed": 1, "type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    return Otter(base, otter=sidecar, **{**exact, **options})
