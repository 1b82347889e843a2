"""The adapter checkpoint: a folder with ``otter_config.json`` and ``otter_model.safetensors`` (docs/architecture.md).

The folder appears as a whole. Where it holds other things too, such as the checkpoints of a training run, the
configuration goes first and comes last: without it there is no adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .. import architectures
from ..config import InsertionConfig
from ..errors import ConfigError, FileError, UnsupportedError
from ..gguf.atomic import atomic_folder
from ..tokenizers.agreement import load_tokenizer as load_hf_tokenizer
from .fingerprint import base_fingerprint, check_fingerprint
from .gguf_base import is_gguf, load_gguf_base, load_gguf_tokenizer
from .model import OtterModel, geometry
from .peft_base import adapter_record, check_adapters, unwrap

CONFIG_NAME = "otter_config.json"
TENSORS_NAME = "otter_model.safetensors"
FORMAT = "otter-adapter"
VERSION = 1
FINE_TUNED_BASE = "fine_tuned_base"
"""Key of ``otter_config.json`` that a full reward model alone has: the folder of its base (:mod:`.full`)."""


def save_adapter(model: OtterModel, path: Path, *, force: bool = False) -> None:
    """See :meth:`OtterModel.save_pretrained`."""
    check_overwrite(path, model.insertion, force=force)
    with adapter_folder(path, CONFIG_NAME, TENSORS_NAME) as folder:
        write_adapter(model, folder)


@contextmanager
def adapter_folder(path: Path, *names: str) -> Iterator[Path]:
    """A folder to write an adapter's entries to, that becomes ``path``; see :func:`.atomic_folder`."""
    try:
        with atomic_folder(path, names=names, last=CONFIG_NAME) as folder:
            yield folder
    except (FileError, SafetensorError) as error:
        raise FileError(f"{path}: cannot write the adapter: {error}") from None


def write_adapter(model: OtterModel, folder: Path, **entries: Any) -> None:
    """Write both files of an adapter into an empty folder; ``entries`` are added to ``otter_config.json``."""
    config = {
        "format": FORMAT,
        "version": VERSION,
        "insertion": model.insertion.to_dict(),
        "base_model_name_or_path": model.base_name,
        "revision": model.base_revision,
        "base_fingerprint": base_fingerprint(model.base_model, model.insertion.base),
        "base_adapters": adapter_record(model.base_model),
        **entries,
        "training": model.training_record,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.inserted_parameters().items()}
    # save_file() would leave a file that nobody but its owner can read
    (folder / TENSORS_NAME).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files. ``OSError`` if they cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # all that the tokenizers library has for a full disk
            raise OSError(str(error)) from None
        raise


def check_overwrite(path: Path, insertion: InsertionConfig, full: bool = False, *, force: bool) -> None:
    """``ConfigError`` if ``path`` holds something else than an adapter with this insertion, and not ``force``.

    An unreadable adapter is something else, and so is a full reward model unless ``full``.
    """
    if force or not (path / CONFIG_NAME).exists():
        return
    try:
        record = read_config(path)
        same = InsertionConfig.from_dict(record["insertion"]) == insertion
    except (ConfigError, FileError, UnsupportedError):
        same = False
    if not same:
        raise ConfigError(f"{path} holds an adapter with another insertion; give another folder, or force")
    if full != (FINE_TUNED_BASE in record):
        kind = "an adapter for a frozen base" if full else "a full reward model"
        raise ConfigError(f"{path} holds {kind}; give another folder, or force")


def load_adapter(base_model: nn.Module | str | Path | None, path: Path, *, check_base: bool = True) -> OtterModel:
    """See :meth:`OtterModel.from_pretrained`."""
    record = read_config(path)
    if FINE_TUNED_BASE in record:
        return _load_full(base_model, path, record)
    insertion = InsertionConfig.from_dict(record["insertion"])
    base_model = unwrap(base_model) if isinstance(base_model, nn.Module) else load_base(base_model, path, record)
    # Other sizes have a message of their own, which OtterModel gives.
    if check_base and geometry(base_model) == insertion.base:
        check_fingerprint(record.get("base_fingerprint"), base_model, insertion.base, str(path))
        check_adapters(record, base_model, str(path))
    model = OtterModel(base_model, insertion)
    load_tensors(model, path / TENSORS_NAME)
    model.training_record = record["training"]
    return model


def _load_full(base_model: object, path: Path, record: dict[str, Any]) -> OtterModel:
    from .full import load_full

    if base_model is not None:
        raise ConfigError(f"{path}: a full reward model, which holds its own fine-tuned base; give no other")
    return load_full(path, record)


def load_base(
    base_model: str | Path | None = None, path: Path | None = None, record: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A base by folder, Hub name or GGUF file, or the one that an adapter's ``record`` names.

    Only safetensors and GGUF are read, never pickles, and no code from the model's folder is run. A GGUF base comes
    dequantised to F32 (:mod:`.gguf_base`).
    """
    record = record or {}
    name = base_model if base_model is not None else record.get("base_model_name_or_path")
    revision = record.get("revision") if base_model is None else None
    if not name:
        raise ConfigError(f"{path}: names no base model; give one with --base")
    hint = "" if base_model is not None else f" ({path} names it; give another with --base)"
    if is_gguf(name):
        if not Path(name).is_file():
            raise FileError(f"{name}: cannot load the base model: no such file{hint}")
        return load_gguf_base(Path(name))
    try:
        config = AutoConfig.from_pretrained(str(name), revision=revision, trust_remote_code=False)
        _check_attention_name(config, str(name))
        model = AutoModelForCausalLM.from_pretrained(
            str(name), revision=revision, config=config, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except StrictDataclassError as error:
        raise FileError(f"{name}: config.json: {_first_line(error.__cause__ or error)}") from None
    # Beside what is documented, transformers raises whatever a configuration of wrong types leads to.
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, SafetensorError) as error:
        raise FileError(f"{name}: cannot load the base model: {_first_line(error)}{hint}") from None
    assert isinstance(model, PreTrainedModel)
    choose_attention(model)
    return model


def _check_attention_name(config: Any, name: str) -> None:
    """Refuse a configuration that names a kernel of the Hub: transformers would fetch and run native code."""
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise FileError(f"{name}: config.json: attn_implementation is {attention!r}, expected one of transformers' own")


def choose_attention(model: PreTrainedModel) -> None:
    """Replace transformers' default attention function where it leaves out a part of the model's attention.

    transformers before 5.24 gives Gemma 2 ``sdpa``, which does not cap its scores.
    """
    if model.config.model_type not in architectures.supported():
        return  # refused by name where it is widened
    known = architectures.find(model.config.model_type).attention_functions
    if known and model.config._attn_implementation not in known:
        model.set_attn_implementation(known[0])


def load_tokenizer(model: OtterModel | PreTrainedModel | str | Path, *, check: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a base: of the one that a model was loaded from, or by folder, Hub name or GGUF file.

    Args:
        model: A model that knows where it was loaded from, or that place.
        check: Whether a GGUF file's tokenizer that cuts text otherwise than llama.cpp is an error, not a warning.

    Raises:
        FileError: there is none.
        UnsupportedError, MismatchError: a GGUF file's cannot be made, or cuts text otherwise than llama.cpp.
    """
    kept = getattr(model, "tokenizer", None)
    if isinstance(kept, PreTrainedTokenizerBase):
        return kept
    name, revision = _tokenizer_source(model)
    if is_gguf(name) and Path(name).is_file():
        return load_gguf_tokenizer(Path(name), check=check)
    return load_hf_tokenizer(name, revision)


def _tokenizer_source(model: OtterModel | PreTrainedModel | str | Path) -> tuple[str, str | None]:
    """Name and Hub commit."""
    if isinstance(model, (str, Path)):
        return str(model), None
    name = model.config._name_or_path
    if not name:
        raise FileError("the base model was not loaded from anywhere; give its tokenizer's folder or name")
    return str(name), getattr(model.config, "_commit_hash", None)


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
            check_tensors(file, {name: tuple(p.shape) for name, p in parameters.items()}, shapes)
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{file}: {_first_line(error)}") from None
    fill(parameters, tensors, file)


def fill(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor], file: Path) -> None:
    """Copy tensors into the parameters of their names. ``FileError``, and no copy, if a number is not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{file}: tensor {name} ({tensor.dtype}) holds values that are no finite numbers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def check_tensors(file: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """``FileError`` with every tensor that is missing, unexpected or misshapen."""
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
