"""First values of the inserted tensors.

``copy`` takes the base's own rows and zeros over h'. With the same e channels everywhere, h' then is an exact copy of
those channels of h at every layer, which is a likely reason why the paper found copying best. ``normal`` and
``uniform`` draw matrices and tables and leave norm weights at 1, biases at 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..config import InsertionConfig
from ..errors import ConfigError, UnsupportedError
from .layout import Widening
from .model import OtterModel
from .modules import Inserted, Narrow, Widened, WidenedExperts, WidenedRMSNorm
from .peft_base import is_plain, linear_rows, map_bias, table_columns

Init = Literal["copy", "normal", "uniform"]


def check_init(config: InsertionConfig, init: str, std: float) -> None:
    """``ConfigError`` for an unknown kind, a standard deviation that is not positive, or channels outside the base."""
    if init not in get_args(Init):
        raise ConfigError(f"initialisation {init!r}, expected {', '.join(get_args(Init))}")
    if not 0 < std < math.inf:
        raise ConfigError(f"initialisation: standard deviation {std}, expected a positive number")
    if init == "copy" and config.state_offset + config.width > config.base.n_embd:
        raise ConfigError(
            f"copy initialisation: {config.width} channels at {config.state_offset} exceed the base's"
            f" {config.base.n_embd}; use a smaller width, or initialise with normal"
        )


@torch.no_grad()
def initialise(model: nn.Module, widenings: Iterable[Widening], init: Init, std: float, seed: int) -> None:
    """Fill every inserted tensor of the widened modules, in layout order, on whatever device they are.

    Random values are drawn on the CPU, so that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    for widening in widenings:
        module = model.get_submodule(widening.path)
        if not hasattr(module, "otter"):
            continue
        weight, bias = cast(Inserted, module.otter).weight, cast(Inserted, module.otter).bias
        if bias is not None:
            bias.zero_()
        if init == "copy" and widening.kind == "beside":
            _copy_beside(weight, model, widening, dtype)
        elif init == "copy":
            _copy(weight, cast(Widened, module), widening, dtype)
            if bias is not None:
                bias.copy_(map_bias(cast(Widened, module).base, widening.rows, widening.base_columns, dtype))
        elif widening.kind == "norm":
            weight.fill_(1.0)
        else:
            weight.copy_(_draw(weight.shape, init, std, generator))


@torch.no_grad()
def initialise_heads(model: OtterModel, seed: int) -> None:
    """Fill every head as its kind begins, value heads first: others may start from what they predict.

    Raises:
        UnsupportedError: a head starts from the base's output embedding, which is quantized.
    """
    # A stream of its own: heads start alike however many tensors were drawn before them.
    generator = torch.Generator().manual_seed(seed + 1)
    value_heads = model.value_heads
    for head in (*value_heads.values(), *model.other_heads.values()):
        head.initialise(generator, value_heads, functools.partial(output_embedding, model))


def output_embedding(model: OtterModel) -> Tensor:
    """The base's output embedding (V, d), tied or not.

    Raises:
        UnsupportedError: its weight is quantized.
    """
    module: nn.Module = model.base_model.get_submodule(model.architecture.lm_head)
    weight = (module.base if isinstance(module, Narrow) else module).weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise UnsupportedError("a head starts from the base's output embedding, which is quantized here")
    return weight


def _draw(shape: torch.Size, init: str, std: float, generator: torch.Generator) -> Tensor:
    if init == "normal":
        return torch.randn(shape, generator=generator) * std
    # A uniform distribution on [-a, a] has the standard deviation a / sqrt(3).
    return (torch.rand(shape, generator=generator) * 2 - 1) * (std * math.sqrt(3))


def _copy(weight: Tensor, module: Widened, widening: Widening, dtype: torch.dtype) -> None:
    if widening.kind == "table":
        weight.copy_(table_columns(module.base, widening.rows, len(weight)))
    elif widening.kind in ("linear", "fused"):
        _copy_map(weight, module.base, widening, dtype)
    elif is_plain(module.base):
        norm = module.base.get_parameter("weight")
        weight.copy_(norm.index_select(0, torch.tensor(widening.rows, device=norm.device)))
        if isinstance(module, WidenedRMSNorm):
            weight.add_(module.base_offset)
    else:
        raise UnsupportedError(f"{widening.path}: copy initialisation needs a norm without an adapter; merge it first")


def _copy_map(weight: Tensor, base: nn.Module, widening: Widening, dtype: torch.dtype) -> None:
    weight.zero_()
    weight[:, : widening.base_columns].copy_(linear_rows(base, widening.rows, widening.base_columns, dtype))


def _copy_beside(weight: Tensor, model: nn.Module, widening: Widening, dtype: torch.dtype) -> None:
    parent, _, name = widening.path.rpartition(".")
    module = cast(Widened, model.get_submodule(parent))
    if isinstance(module, WidenedExperts):
        _copy_expert(weight, module, widening)
    else:
        _copy_map(weight, module.base.get_submodule(name), widening, dtype)


def _copy_expert(weight: Tensor, experts: WidenedExperts, widening: Widening) -> None:
    """The rows of expert 0, whose inner channels are copied in the same order for gate, up and down."""
    gate_up, down = experts.first_expert()
    rows = torch.tensor(widening.rows, device=weight.device)
    weight.zero_()
    if widening.base_columns:
        weight[:, : widening.base_columns].copy_(gate_up.index_select(0, rows))
    else:
        inner = torch.arange(widening.columns, device=weight.device) % down.shape[1]
        weight.copy_(down.index_select(0, rows).index_select(1, inner))
