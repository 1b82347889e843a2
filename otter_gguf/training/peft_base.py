"""Bases whose linear maps are no plain matrices: with an adapter of PEFT (LoRA), or in 8 or 4 bit (bitsandbytes).

A widened module calls its base module whatever that is, so nothing of either library is imported here: a model inside a
``PeftModel`` is widened itself, and rows of a map are read off the map.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..adapter_format import INFIX
from ..errors import MismatchError, UnsupportedError
from .modules import BASE_INFIX

_PROBED_ROWS = 512


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a ``PeftModel``, its adapter layers in place; any other model as it is.

    Raises:
        UnsupportedError: an adapter outside the layers (prompt learning), which would be lost; no Hugging Face model.
    """
    # Whoever holds a PeftModel has imported peft; nobody else needs it.
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        if any(config.is_prompt_learning for config in model.peft_config.values()):
            raise UnsupportedError("a PeftModel with learned prompts cannot be widened: they are not in its layers")
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(f"a {type(model).__name__} cannot be widened; give a Hugging Face model or a PeftModel")
    return model


def is_plain(module: nn.Module) -> bool:
    """Whether a module's effect is that of its own weight, a tensor of floating-point numbers."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.is_floating_point()


def linear_rows(module: nn.Module, rows: Sequence[int], columns: int, dtype: torch.dtype) -> Tensor:
    """Rows (len(rows), columns) of the linear map that a module computes.

    A plain weight is read. Anything else is probed with the columns of the identity, which gives W + scaling * B A of
    LoRA and the dequantized W of a quantized map, exact up to the rounding of one value to ``dtype``, the type of the
    states that the module reads.
    """
    index = torch.tensor(rows, device=_device(module))
    if is_plain(module):
        weight: Tensor = module.get_parameter("weight")
        return (weight.T if isinstance(module, Conv1D) else weight).index_select(0, index)
    # What an adapter adds as a bias is no part of the matrix.
    zero = module(torch.zeros((1, columns), device=index.device, dtype=dtype))
    probed = [(module(unit) - zero).index_select(1, index) for unit in _identity(columns, index.device, dtype)]
    return torch.cat(probed).T


def map_bias(module: nn.Module, rows: Sequence[int], columns: int, dtype: torch.dtype) -> Tensor:
    """Entries (len(rows),) of the bias of a linear map or of a norm, what an adapter adds included."""
    index = torch.tensor(rows, device=_device(module))
    if is_plain(module):
        return module.get_parameter("bias").index_select(0, index)
    output: Tensor = module(torch.zeros(columns, device=index.device, dtype=dtype))
    return output.index_select(0, index)


def table_columns(module: nn.Module, columns: Sequence[int], size: int) -> Tensor:
    """Columns (size, len(columns)) of the table that an embedding of ``size`` tokens looks up."""
    index = torch.tensor(columns, device=_device(module))
    # An embedding of another class may scale what it looks up.
    plain = is_plain(module) and type(module).forward is nn.Embedding.forward
    table: Tensor = module.get_parameter("weight") if plain else module(torch.arange(size, device=index.device))
    return table.index_select(1, index)


def _identity(size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """The identity matrix in slices of rows, so that a large one is never whole in memory."""
    for start in range(0, size, _PROBED_ROWS):
        rows = torch.arange(start, min(start + _PROBED_ROWS, size), device=device)
        unit = torch.zeros((len(rows), size), device=device, dtype=dtype)
        unit[torch.arange(len(rows), device=device), rows] = 1
        yield unit


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def check_plain_base(model: PreTrainedModel, purpose: str) -> None:
    """``UnsupportedError`` where a map of the base has an adapter or is quantized, so that it has no one matrix."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor) and not is_plain(module):
            path, kind = f"{name}.".replace(BASE_INFIX, ".").rstrip("."), type(module)
            raise UnsupportedError(
                f"{path} is a {kind.__module__}.{kind.__name__}: {purpose} needs plain weights; use a base in floating"
                " point, with its adapter merged (merge_and_unload)"
            )


def adapter_record(model: PreTrainedModel) -> dict[str, Any] | None:
    """What identifies the active PEFT adapters of a base, ``None`` without one.

    ``names``, ``types`` (such as ``LORA``) and the SHA-256 of their tensors, ordered by name, as F32.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "adapter_layer_names")]
    names = sorted({name for layer in layers for name in layer.active_adapters if not layer.disable_adapters})
    if not names:
        return None
    tensors = {
        name.replace(BASE_INFIX, "."): parameter
        for name, parameter in model.named_parameters()
        if INFIX not in name and set(names) & set(name.split("."))
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    types = [str(getattr(configs.get(name), "peft_type", "")).removeprefix("PeftType.") for name in names]
    return {"names": names, "types": types, "sha256": digest.hexdigest()}


def check_adapters(record: dict[str, Any], model: PreTrainedModel, where: str) -> None:
    """``MismatchError`` if a base has other active adapters than ``record["base_adapters"]``; folders without the entry
    are accepted."""
    found = adapter_record(model)
    if record.get("base_adapters", found) != found:
        raise MismatchError(
            f"{where}: trained on a base with {_names(record['base_adapters'])}, this one has {_names(found)}; load the"
            " base with PEFT and give it as base_model, or pass check_base=False if its adapter is merged into it"
        )


def _names(record: Any) -> str:
    if not isinstance(record, dict):
        return "no adapter"
    return f"the adapter {', '.join(map(str, record.get('names', ())))} ({str(record.get('sha256'))[:12]})"
