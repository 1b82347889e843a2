"""Inserted heads run beside the base's, but not in one call with them.

In a joint call the base's heads would stand at other addresses and strides, and matrix kernels may round otherwise
then. So the base's heads go through the model's own attention function as the base would call it, without gradient,
and the inserted ones through the same function after them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

_NAME = "otter_split_heads"
_ATTRIBUTE = "otter_base_heads"


@dataclass
class _BaseHeads:
    config: PreTrainedConfig
    """The model's own, which names the attention function in use."""
    query: int
    key_value: int


def split_heads(attention: nn.Module, n_head: int, n_head_kv: int) -> None:
    """Make a Hugging Face attention module compute its first ``n_head`` heads as the base does."""
    config: Any = attention.config
    setattr(attention, _ATTRIBUTE, _BaseHeads(config, n_head, n_head_kv))
    # A copy for this module alone: masks are still made for the function that the model's configuration names.
    attention.config = config = copy.copy(config)
    config._attn_implementation = _NAME


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: (B, heads, T, n) each; returns (B, T, heads, n) and maybe weights."""
    base: _BaseHeads = getattr(module, _ATTRIBUTE)
    attend = _model_attention(module, base.config)
    if query.shape[1] == base.query:  # the insertion is disabled
        return attend(module, query, key, value, attention_mask, **options)
    with torch.no_grad():
        own = [_compact(x[:, :n]) for x, n in zip((query, key, value), _sizes(base), strict=True)]
        outputs = [attend(module, *own, attention_mask, **options)]
    # Copies as well: views would keep the base's heads for the backward pass.
    inserted = [_compact(x[:, n:]) for x, n in zip((query, key, value), _sizes(base), strict=True)]
    outputs.append(attend(module, *inserted, attention_mask, **options))
    states, weights = zip(*outputs, strict=True)
    return torch.cat(states, dim=2), None if weights[0] is None else torch.cat(weights, dim=1)


def _sizes(base: _BaseHeads) -> tuple[int, int, int]:
    return base.query, base.key_value, base.key_value


def _model_attention(module: nn.Module, config: PreTrainedConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the unmodified module would call: each model's file has its own eager one."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend: Callable[..., tuple[Tensor, Tensor | None]] = AttentionInterface().get(config._attn_implementation, eager)
    return attend


def _compact(x: Tensor) -> Tensor:
    """A copy without gaps and with dimensions in the same order in memory, as the base's own tensor has them."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x.permute(order).contiguous().permute([order.index(dim) for dim in range(x.ndim)])


AttentionInterface.register(_NAME, _attend)
