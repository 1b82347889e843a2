"""The paper's form: a checkpoint with larger sizes and full matrices with zero blocks; written, and read back.

Any engine that knows the architecture runs it after the one-line change to its norm (the statistic over the first d
channels). h'_0 must be part of the embedding there, so a slice is written as a table of the embedding's channels.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..config import InsertionConfig
from ..errors import ConfigError, FileError, MismatchError, UnsupportedError
from ..gguf.atomic import atomic_folder
from .checkpoint import check_tensors, fill, load_base, save_tokenizer
from .layout import Widening
from .model import OtterModel
from .modules import INFIX, Widened
from .peft_base import check_plain_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_DIFFERENCES = 10


def export(
    model: OtterModel, path: Path, *, dtype: torch.dtype | None, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Write ``config.json`` and safetensors; ``config.json`` carries ``{"otter": {"insertion": ...}}``.

    Args:
        dtype: of every tensor; default: the base's.

    Raises:
        ConfigError: width 0, or sizes that the architecture's configuration cannot express, such as other sizes from
            layer to layer.
        FileError: not writable, or the folder holds a checkpoint already.
    """
    insertion = model.insertion
    _check_form(model)
    if insertion.width == 0 or len(set(insertion.n_head_kv)) > 1 or len(set(insertion.n_ff)) > 1:
        raise ConfigError("a widened checkpoint needs an inserted width and the same sizes in every layer")
    if (path / "config.json").exists():
        raise FileError(f"{path}: holds a checkpoint already; give another folder")
    dtype = dtype or model.dtype
    config = _widened_config(model, dtype)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in _tensors(model)}
    with atomic_folder(path, names=(), last="config.json") as folder:
        try:
            save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
            config.save_pretrained(folder)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
        except (OSError, SafetensorError) as error:
            raise FileError(f"{path}: cannot write the widened checkpoint: {error}") from None


def _check_form(model: OtterModel) -> None:
    if model.architecture.not_widened:
        raise UnsupportedError(
            f"there is no widened checkpoint of a {model.architecture.model_class}: {model.architecture.not_widened};"
            " save the adapter instead"
        )


def _widened_config(model: OtterModel, dtype: torch.dtype) -> Any:
    insertion = dataclasses.replace(model.insertion, state_source="table")
    config = copy.deepcopy(model.config)
    sizes = model.architecture.widened_config(
        insertion.base, insertion.width, insertion.n_head_kv[0], insertion.n_ff[0]
    )
    record = {
        "insertion": insertion.to_dict(),
        "state_source": model.insertion.state_source,
        "base_model_name_or_path": model.base_name,
        "revision": model.base_revision,
        "training": model.training_record,
    }
    architectures = [type(model.base_model).__name__]  # a model that was never saved has not noted its own
    for name, value in {**sizes, "architectures": architectures, "dtype": dtype, "otter": record}.items():
        setattr(config, name, value)
    return config


def load(path: Path, base_model: PreTrainedModel | str | Path | None) -> OtterModel:
    """See :meth:`OtterModel.from_widened`."""
    insertion, record = _read_config(path)
    if not isinstance(base_model, PreTrainedModel):
        base_model = load_base(base_model, path, record)
    check_plain_base(base_model, "a widened checkpoint")
    model = OtterModel(base_model, insertion)
    _check_form(model)
    try:
        with _open(path) as (shapes, read):
            check_tensors(path, {name: tuple(tensor.shape) for name, tensor in _tensors(model)}, shapes)
            fill(model.inserted_parameters(), dict(_inserted(model, read)), path)
            _check_blocks(model, read, path)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: {error}") from None
    model.training_record = record.get("training") or {}
    return model


def _read_config(path: Path) -> tuple[InsertionConfig, dict[str, Any]]:
    """The insertion, with the source of h'_0 that it had before the export, and what else stands beside it."""
    file = path / "config.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8")).get("otter")
    except OSError as error:
        raise FileError(f"{file}: {error.strerror or error}") from None
    except (ValueError, AttributeError) as error:
        raise FileError(f"{file}: no JSON object: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("insertion"), dict):
        raise FileError(f"{file}: no insertion under 'otter'; {path} is no widened checkpoint")
    insertion = InsertionConfig.from_dict(record["insertion"])
    if insertion.width == 0 or insertion.state_source != "table":
        raise FileError(f"{file}: the insertion of a widened checkpoint has a width and a table")
    return dataclasses.replace(insertion, state_source=record.get("state_source", "table")), record


@contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]]:
    """Shape of every stored tensor, and how to read one."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise FileError(f"{path}: no model*.safetensors")
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt", device="cpu")) for file in files]
        source = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in source.items()}
        yield shapes, lambda name: cast(Tensor, source[name].get_tensor(name))


def _inserted(model: OtterModel, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every inserted tensor by its adapter name, cut out of the stored matrices."""
    for name in model.inserted_parameters():
        if name.startswith("heads."):
            yield name, read(name)
    for path, module, widening in _modules(model):
        if widening is not None and hasattr(module, "otter"):
            stored, base = read(f"{path}.weight"), cast(Tensor, cast(nn.Module, module.base).weight)
            added = stored[:, base.shape[1] :] if widening.kind == "table" else stored[base.shape[0] :]
            yield f"{path}{INFIX}weight", added


def _check_blocks(model: OtterModel, read: Callable[[str], Tensor], path: Path) -> None:
    """What would be exported must be what is stored; ``MismatchError`` names every tensor that differs."""
    problems: dict[str, str] = {}
    for name, tensor in _tensors(model):
        found = read(name)
        expected = tensor.detach().to(device=found.device, dtype=found.dtype)
        wrong = (found != expected).nonzero()
        if len(wrong):
            index = tuple(wrong[0].tolist())
            problems[name] = (
                f"{name} ({len(wrong)} elements, first {list(index)}: {found[index].item():.6g}, "
                f"expected {expected[index].item():.6g})"
            )
    if problems:
        shown = [text if i < _SHOWN_DIFFERENCES else name for i, (name, text) in enumerate(problems.items())]
        raise MismatchError(
            f"{path}: {len(problems)} tensors are not the base's with zero blocks: {', '.join(shown)}; "
            "give the base that was widened, in the type it had"
        )


def _tensors(model: OtterModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the widened checkpoint; heads keep their adapter names."""
    for name, tensor in model.inserted_parameters().items():
        if name.startswith("heads."):
            yield name, tensor
    for path, module, widening in _modules(model):
        if widening is None:
            yield f"{path}.weight", _widen_input(path, cast(Tensor, module.weight), model)
            bias = module._parameters.get("bias")
        else:
            yield f"{path}.weight", _block_matrix(cast(Widened, module), widening, model.insertion)
            bias = cast(nn.Module, module.base)._parameters.get("bias")
        if bias is not None:
            # Inserted rows have no bias: zeros where a plainly widened model has a place for one.
            inserted = len(widening.rows) if widening is not None and widening.kind == "linear" else 0
            yield f"{path}.bias", functional.pad(bias, (0, inserted))


def _modules(model: OtterModel) -> Iterator[tuple[str, nn.Module, Widening | None]]:
    """The modules with a weight of the base, by their names in the base; how they are widened, if they are."""
    widenings = {widening.path: widening for widening in model.layout}
    for name, module in model.base_model.named_modules():
        if module._parameters.get("weight") is None or name.endswith(INFIX.rstrip(".")):
            continue
        path = name.removesuffix(".base")
        widening = widenings.get(path)
        yield path, module if widening is None else model.base_model.get_submodule(path), widening


def _block_matrix(module: Widened, widening: Widening, config: InsertionConfig) -> Tensor:
    """[[W, 0], [inserted]] of one widened module."""
    base = cast(Tensor, module.base.weight).detach()
    inserted = module.otter.weight.detach() if hasattr(module, "otter") else None
    if widening.kind == "slice":
        return torch.cat([base, base[:, list(widening.rows)]], dim=1)
    if widening.kind == "table":
        return torch.cat([base.to(cast(Tensor, inserted).dtype), cast(Tensor, inserted)], dim=1)
    if widening.kind == "pad":
        if base.ndim == 1:  # a norm, which reads zeros there
            return functional.pad(base, (0, config.width), value=1.0)
        return functional.pad(base, (0, 0, 0, config.width))
    if widening.kind == "heads":
        return base
    if widening.kind == "narrow":
        # A norm whose h' nobody reads gets weight 1; an output head reads nothing of h'.
        return functional.pad(base, (0, config.width), value=1.0 if base.ndim == 1 else 0.0)
    inserted = cast(Tensor, inserted)
    if widening.kind == "linear":
        base = functional.pad(base, (0, widening.columns - widening.base_columns))
    return torch.cat([base.to(inserted.dtype), inserted], dim=0)


def _widen_input(path: str, weight: Tensor, model: OtterModel) -> Tensor:
    """Zero columns over h' for the input maps of a sub-layer with nothing inserted."""
    for sub_layer, sizes in (
        (model.architecture.attention, model.insertion.n_head_kv),
        (model.architecture.ffn, model.insertion.n_ff),
    ):
        if not sizes[0] and path.endswith(sub_layer.inputs):
            return functional.pad(weight, (0, model.insertion.width))
    return weight
