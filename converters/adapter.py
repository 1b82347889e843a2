"""An adapter checkpoint (``otter_config.json``, ``otter_model.safetensors``) to a sidecar GGUF, without torch."""

from __future__ import annotations

from pathlib import Path

from otter_gguf import _native
from otter_gguf.adapter_format import WEIGHTS_STEM, AdapterRecord
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import MismatchError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.metadata import Lineage, sidecar_metadata
from otter_gguf.gguf.sidecar import geometry_differences, validate_insertion
from otter_gguf.gguf.writer import write_gguf

from .checkpoint import Checkpoint, TensorSource
from .recipes import check_source, plan_tensors


def convert_adapter(
    folder: str | Path,
    target: str | Path,
    base: BaseFiles,
    *,
    outtype: str = "auto",
    name: str = "",
    force: bool = False,
) -> InsertionConfig:
    """Write the sidecar of an adapter checkpoint.

    Args:
        folder: The adapter checkpoint.
        target: The sidecar, by custom ``*.otter.gguf``.
        base: The base as GGUF, in any quantization; it gives the fingerprint.
        outtype: Type of the matrices, one of ``OUTTYPES``; norms and heads are F32.
        name: ``general.name``; the folder's name if empty.
        force: Replace an existing file.

    Raises:
        FileError: The checkpoint or the base is damaged or holds NaN, or ``target`` cannot be written.
        MismatchError: The adapter was trained for a base of other sizes.
        UnsupportedError: Architecture or version unknown.
    """
    folder = Path(folder)
    record = AdapterRecord.read(folder)
    lineage = Lineage(name or folder.resolve().name, record.base_name or "", record.revision or "")
    with Checkpoint(folder, WEIGHTS_STEM) as source:
        inputs = [path for path in folder.iterdir() if path.is_file()]
        write_sidecar(source, record.insertion, target, base, outtype, lineage, inputs=inputs, force=force)
    return record.insertion


def write_sidecar(
    source: TensorSource,
    config: InsertionConfig,
    target: str | Path,
    base: BaseFiles,
    outtype: str,
    lineage: Lineage,
    *,
    inputs: list[Path],
    force: bool,
) -> None:
    """Write a sidecar from anything that gives an adapter's tensors; checked before it gets its name."""
    differences = geometry_differences(config.base, base_geometry(base))
    if differences:
        raise MismatchError(f"{source.path}: made for another base than {base.path}: {'; '.join(differences)}")
    _native.check_base(base.metadata_file)  # and the files beside it
    check_source(source, config)
    tensors = plan_tensors(source, config, outtype)
    quantized = any(tensor.type.startswith("Q") for tensor in tensors)
    metadata = sidecar_metadata(config, fingerprint(base), lineage=lineage, quantized=quantized)
    base_paths = [Path(file.path) for file in base.files]
    write_gguf(target, metadata, tensors, inputs=[*inputs, *base_paths], force=force, check=_check_finished)


def _check_finished(path: Path) -> None:
    with _native.GgufFile(str(path)) as file:
        validate_insertion(file)
