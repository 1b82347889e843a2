"""A widened Hugging Face checkpoint, the form of the paper, to a sidecar or a merged GGUF.

Such a checkpoint is an ordinary model of larger sizes: every matrix is the base's with rows and columns added, and
zero where original rows would read added columns. Both are checked here, element by element, against the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from otter_gguf.adapter_format import INFIX
from otter_gguf.config import InsertionConfig
from otter_gguf.gguf.atomic import atomic_path, check_target, hand_over, scratch_folder
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.metadata import Lineage
from otter_gguf.widened_format import read_widened, widened_tensors

from .adapter import write_sidecar
from .blocks import check_blocks, open_reference
from .checkpoint import Checkpoint, Float32


def convert_widened(
    folder: str | Path,
    target: str | Path,
    base: BaseFiles,
    *,
    base_hf: str | Path | None = None,
    merged: bool = False,
    outtype: str = "auto",
    name: str = "",
    force: bool = False,
) -> InsertionConfig:
    """Write the sidecar of a widened checkpoint, or base and sidecar as one file.

    Args:
        folder: The widened checkpoint; its ``config.json`` holds the insertion under ``otter``.
        target: The file to write.
        base: The base as GGUF; in F32, F16 or BF16 the original blocks are compared with it.
        base_hf: Hugging Face folder of the base to compare with instead, needed if ``base`` is quantized.
        merged: Write a merged file.
        outtype, name, force: As in ``convert_adapter``.

    Raises:
        MismatchError: An original block differs from the base, or a block that must be zero is not.
        FileError: The checkpoint is damaged or incomplete, or ``target`` cannot be written.
        UnsupportedError: Layers of different sizes, an unknown architecture, a quantized base without ``base_hf``.
    """
    folder = Path(folder)
    check_target(Path(target), inputs=[file.path for file in base.files], force=force)
    record = read_widened(folder)
    config = dataclasses.replace(record.insertion, state_source="table" if record.insertion.width else "slice")
    with Checkpoint(folder) as checkpoint, closing(open_reference(base, base_hf)) as reference:
        check_blocks(checkpoint, config, reference)
        source = WidenedSource(checkpoint, config)
        inputs = [path for path in folder.iterdir() if path.is_file()]
        lineage = Lineage(name or folder.resolve().name, record.base_name or "")
        if not merged:
            write_sidecar(source, config, target, base, outtype, lineage, inputs=inputs, force=force)
            return config
        with (
            atomic_path(target, inputs=[*inputs, base.path], force=force) as temporary,
            scratch_folder(Path(target)) as scratch,
        ):
            sidecar, merged_file = scratch / "sidecar.gguf", scratch / "merged.gguf"
            write_sidecar(source, config, sidecar, base, outtype, lineage, inputs=inputs, force=force)
            merge(base.path, sidecar, merged_file)
            hand_over(merged_file, temporary)
    return config


class WidenedSource:
    """The tensors of an adapter, cut out of a widened checkpoint."""

    def __init__(self, checkpoint: Checkpoint, config: InsertionConfig) -> None:
        """``FileError`` that names every missing, extra or misshapen tensor of the checkpoint."""
        self.path = checkpoint.path
        self._checkpoint = checkpoint
        self._tensors = widened_tensors(config)
        self._shapes = {name: shape for name, shape in checkpoint.shapes().items() if INFIX in name}
        self._shapes |= {
            f"{name.removesuffix('.weight')}{INFIX}weight": tensor.inserted_shape
            for name, tensor in self._tensors.items()
            if tensor.inserted and config.width
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor of the adapter."""
        return self._shapes

    def rows(self, name: str, begin: int, end: int) -> Float32:
        """Rows of an adapter's tensor; a vector has one row."""
        whole = name.replace(INFIX, ".")
        if whole not in self._tensors:
            return self._checkpoint.rows(name, begin, end)
        original = self._tensors[whole].original
        if len(original) == 1 or self._tensors[whole].axis:  # the added columns
            return np.ascontiguousarray(self._checkpoint.rows(whole, begin, end)[:, original[-1] :])
        return self._checkpoint.rows(whole, original[0] + begin, original[0] + end)
