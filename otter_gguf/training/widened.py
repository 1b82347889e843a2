"""Export in the paper's form: a checkpoint with larger sizes and full matrices with zero blocks.

Any engine that knows the architecture runs it after the one-line change to its norm (the statistic over the first d
channels). h'_0 must be part of the embedding there, so a slice is written as a table of the embedding's channels.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.nn import functional

from ..config import InsertionConfig
from ..errors import ConfigError, FileError
from .layout import Widening
from .model import INFIX, OtterModel
from .modules import Widened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    if insertion.width == 0 or len(set(insertion.n_head_kv)) > 1 or len(set(insertion.n_ff)) > 1:
        raise ConfigError("a widened checkpoint needs an inserted width and the same sizes in every layer")
    if (path / "config.json").exists():
        raise FileError(f"{path}: holds a checkpoint already; give another folder")
    dtype = dtype or model.dtype
    config = _widened_config(model, dtype)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in _tensors(model).items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(tensors, path, metadata={"format": "pt"})
        config.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    except OSError as error:
        raise FileError(f"{path}: cannot write the widened checkpoint: {error}") from None


def _widened_config(model: OtterModel, dtype: torch.dtype) -> Any:
    insertion = dataclasses.replace(model.insertion, state_source="table")
    config = copy.deepcopy(model.config)
    sizes = model.architecture.widened_config(
        insertion.base, insertion.width, insertion.n_head_kv[0], insertion.n_ff[0]
    )
    for name, value in {**sizes, "dtype": dtype, "otter": {"insertion": insertion.to_dict()}}.items():
        setattr(config, name, value)
    return config


def _tensors(model: OtterModel) -> dict[str, Tensor]:
    """Every tensor of the widened checkpoint; heads keep their adapter names."""
    tensors: dict[str, Tensor] = {
        name: tensor for name, tensor in model.inserted_parameters().items() if name.startswith("heads.")
    }
    widenings = {widening.path: widening for widening in model.layout}
    for name, module in model.base_model.named_modules():
        base = module._parameters.get("weight")
        if base is None or name.endswith(INFIX.rstrip(".")):
            continue
        path = name.removesuffix(".base")
        if path in widenings:
            widened = cast(Widened, model.base_model.get_submodule(path))
            tensors[f"{path}.weight"] = _block_matrix(widened, widenings[path], model.insertion)
        else:
            tensors[f"{path}.weight"] = _widen_input(path, base, model)
    return tensors


def _block_matrix(module: Widened, widening: Widening, config: InsertionConfig) -> Tensor:
    """[[W, 0], [inserted]] of one widened module."""
    base = cast(Tensor, module.base.weight).detach()
    inserted = module.otter.weight.detach() if hasattr(module, "otter") else None
    if widening.kind == "slice":
        return torch.cat([base, base[:, list(widening.rows)]], dim=1)
    if widening.kind == "table":
        return torch.cat([base.to(cast(Tensor, inserted).dtype), cast(Tensor, inserted)], dim=1)
    if widening.kind == "pad":
        return functional.pad(base, (0, 0, 0, config.width))
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
