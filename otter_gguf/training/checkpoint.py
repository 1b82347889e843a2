"""Adapter folders as training writes and reads them (docs/architecture.md): tensors by their names, no model class.

The folder appears as a whole. Where it holds other things too, such as the checkpoints of a training run, the
configuration goes first and comes last: without it there is no adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..adapter_format import CONFIG_NAME, TENSORS_NAME, AdapterRecord
from ..config import InsertionConfig
from ..errors import ConfigError, FileError, UnsupportedError
from ..gguf.atomic import atomic_folder
from ..tensors import check_shapes
from .base import first_line


@contextmanager
def adapter_folder(path: Path, *names: str) -> Iterator[Path]:
    """A folder to write an adapter's entries to, that becomes ``path``; see :func:`.atomic_folder`."""
    try:
        with atomic_folder(path, names=names, last=CONFIG_NAME) as folder:
            yield folder
    except (FileError, SafetensorError) as error:
        raise FileError(f"{path}: cannot write the adapter: {error}") from None


def write_tensors(parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Write the inserted tensors. ``OSError``, ``SafetensorError`` if that fails."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in parameters.items()}
    # save_file() would leave a file that nobody but its owner can read
    (folder / TENSORS_NAME).write_bytes(save(tensors, metadata={"format": "pt"}))


def check_overwrite(path: Path, insertion: InsertionConfig, full: bool = False, *, force: bool) -> None:
    """``ConfigError`` if ``path`` holds something else than an adapter with this insertion, and not ``force``.

    An unreadable adapter is something else, and so is a full reward model unless ``full``.
    """
    if force or not (path / CONFIG_NAME).exists():
        return
    record = None
    with suppress(FileError, UnsupportedError):
        record = AdapterRecord.read(path)
    if record is None or record.insertion != insertion:
        raise ConfigError(f"{path} holds an adapter with another insertion; give another folder, or force")
    if full != record.full:
        kind = "an adapter for a frozen base" if full else "a full reward model"
        raise ConfigError(f"{path} holds {kind}; give another folder, or force")


def load_tensors(parameters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Fill the parameters from a safetensors file that holds these names; nothing is changed unless everything fits.

    Raises:
        FileError: unreadable, values that are not finite, or tensors missing, unexpected or misshapen (all listed).
    """
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            check_shapes(file, {name: tuple(p.shape) for name, p in parameters.items()}, shapes)
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{file}: {first_line(error)}") from None
    fill(parameters, tensors, file)


def fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy tensors into the parameters of their names. ``FileError``, and no copy, if a number is not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{file}: tensor {name} ({tensor.dtype}) holds values that are no finite numbers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
