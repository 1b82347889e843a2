"""An adapter checkpoint (``otter_config.json``, ``otter_model.safetensors``) to a sidecar GGUF, without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from otter_gguf import _native
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import ConfigError, FileError, MismatchError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.metadata import Lineage, sidecar_metadata
from otter_gguf.gguf.sidecar import geometry_differences, validate_insertion
from otter_gguf.gguf.writer import write_gguf

from .checkpoint import Checkpoint, TensorSource, read_json
from .recipes import check_source, plan_tensors

CONFIG_NAME = "otter_config.json"
WEIGHTS_STEM = "otter_model"

FORMAT = "otter-adapter"
VERSION = 1
_F32_MAX = 3.4e38


@dataclass(frozen=True)
class AdapterInfo:
    """What ``otter_config.json`` says."""

    insertion: InsertionConfig
    base_name: str
    """Folder, GGUF file or Hub name of the base that it was trained on."""
    revision: str
    """Its Hub commit; "" = none."""
    fine_tuned_base: str
    """Folder of the base inside that of the adapter, if the base was trained as well; "" = it was not."""


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read an adapter's configuration. ``FileError``/``UnsupportedError`` if it is damaged or of another version."""
    path = folder / CONFIG_NAME
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise FileError(f"{path}: format is {data.get('format')!r}, expected {FORMAT!r}")
    if data.get("version") != VERSION:
        raise UnsupportedError(f"{path}: version is {data.get('version')!r}, expected {VERSION}; update otter-gguf")
    return AdapterInfo(
        insertion=insertion_from(data.get("insertion"), path),
        base_name=str(data.get("base_model_name_or_path") or ""),
        revision=str(data.get("revision") or ""),
        fine_tuned_base=str(data.get("fine_tuned_base") or ""),
    )


def insertion_from(data: object, path: Path) -> InsertionConfig:
    """The insertion inside a JSON file. ``FileError`` names the file."""
    if not isinstance(data, dict):
        raise FileError(f"{path}: the insertion is missing")
    try:
        config = InsertionConfig.from_dict(data)
    except ConfigError as error:
        raise FileError(f"{path}: {error}") from None
    sizes = [config.width, config.state_offset, *config.n_head_kv, *config.n_ff, *dataclasses.astuple(config.base)[1:]]
    scales = [number for head in config.heads for number in (*head.scale, *head.shift)]
    if not all(size < 2**32 for size in sizes):
        raise FileError(f"{path}: insertion: sizes must be below 2**32")
    if not isinstance(config.base.architecture, str) or any(abs(number) > _F32_MAX for number in scales):
        raise FileError(f"{path}: insertion: architecture must be a string, scales and shifts fit float32")
    return config


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
    info = read_adapter_info(folder)
    lineage = Lineage(name or folder.resolve().name, info.base_name, info.revision)
    with Checkpoint(folder, WEIGHTS_STEM) as source:
        inputs = [path for path in folder.iterdir() if path.is_file()]
        write_sidecar(source, info.insertion, target, base, outtype, lineage, inputs=inputs, force=force)
    return info.insertion


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
