"""The adapter checkpoint: a folder with ``otter_config.json`` and ``otter_model.safetensors`` (docs/architecture.md).

The tensors are renamed into place first, the configuration second. Between two saves of the same insertion only the
tensors differ, so the folder holds the whole old or the whole new adapter at every moment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..config import InsertionConfig
from ..errors import ConfigError, FileError, UnsupportedError
from ..gguf.atomic import atomic_path
from .model import OtterModel

CONFIG_NAME = "otter_config.json"
TENSORS_NAME = "otter_model.safetensors"
FORMAT = "otter-adapter"
VERSION = 1


def save_adapter(model: OtterModel, path: Path, *, force: bool = False) -> None:
    """See :meth:`OtterModel.save_pretrained`."""
    check_overwrite(path, model.insertion, force=force)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "insertion": model.insertion.to_dict(),
        "base_model_name_or_path": model.base_name,
        "revision": model.base_revision,
        "training": model.training_record,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.inserted_parameters().items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_path(path / TENSORS_NAME, force=True) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        with atomic_path(path / CONFIG_NAME, force=True) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: cannot write the adapter: {error}") from None


def check_overwrite(path: Path, insertion: InsertionConfig, *, force: bool) -> None:
    """``ConfigError`` if ``path`` holds an adapter with another insertion (or an unreadable one) and not ``force``."""
    if force or not (path / CONFIG_NAME).exists():
        return
    try:
        same = InsertionConfig.from_dict(read_config(path)["insertion"]) == insertion
    except (ConfigError, FileError, UnsupportedError):
        same = False
    if not same:
        raise ConfigError(f"{path} holds an adapter with another insertion; give another folder, or force")


def load_adapter(base_model: PreTrainedModel | str | Path | None, path: Path) -> OtterModel:
    """See :meth:`OtterModel.from_pretrained`."""
    record = read_config(path)
    insertion = InsertionConfig.from_dict(record["insertion"])
    if not isinstance(base_model, PreTrainedModel):
        base_model = load_base(base_model, path, record)
    model = OtterModel(base_model, insertion)
    load_tensors(model, path / TENSORS_NAME)
    model.training_record = record["training"]
    return model


def load_base(
    base_model: str | Path | None = None, path: Path | None = None, record: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A base by folder or Hub name, or the one that an adapter's ``record`` names.

    Only safetensors are read, never pickles, and no code from the model's folder is run.
    """
    record = record or {}
    name = base_model if base_model is not None else record.get("base_model_name_or_path")
    revision = record.get("revision") if base_model is None else None
    if not name:
        raise ConfigError(f"{path}: names no base model; give one with --base")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(name), revision=revision, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        hint = "" if base_model is not None else f" ({path} names it; give another with --base)"
        raise FileError(f"{name}: cannot load the base model: {_first_line(error)}{hint}") from None
    assert isinstance(model, PreTrainedModel)
    return model


def read_config(path: Path) -> dict[str, Any]:
    """The checked ``otter_config.json`` of an adapter folder; ``insertion`` and ``training`` are dictionaries."""
    file = path / CONFIG_NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{file}: {error.strerror or error}; {path} is no adapter folder") from None
    except ValueError as error:
        raise FileError(f"{file}: not JSON: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FileError(f"{file}: format is not {FORMAT!r}")
    if record.get("version") != VERSION:
        raise UnsupportedError(f"{file}: format version {record.get('version')!r}, this version reads {VERSION}")
    record.setdefault("training", {})
    for key in ("insertion", "training"):
        if not isinstance(record.get(key), dict):
            raise FileError(f"{file}: {key!r} is missing or no object")
    return record


def load_tensors(model: OtterModel, file: Path) -> None:
    """Fill the inserted tensors from a safetensors file; nothing is changed unless everything fits.

    Raises:
        FileError: unreadable, values that are not finite, or tensors missing, unexpected or misshapen (all listed).
    """
    parameters = model.inserted_parameters()
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            _check_tensors(file, {name: tuple(p.shape) for name, p in parameters.items()}, shapes)
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{file}: {_first_line(error)}") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{file}: tensor {name} ({tensor.dtype}) holds values that are no finite numbers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _check_tensors(file: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise FileError(f"{file}: {len(problems)} tensors do not fit the configuration: {'; '.join(problems)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
