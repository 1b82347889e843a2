"""Inserted heads run beside the base's, but not in one call with them.

In a joint call the base's heads would stand at other addresses and strides, and matrix kernels may round otherwise
then. So the base's heads go through the model's own attention function as the base would call it, without gradient,
and the inserted ones through the same function after them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from ..config import BaseGeometry
from .modules import cut_out_of_rows

_NAME = "otter_split_heads"
_ATTRIBUTE = "otter_base_heads"


@dataclass
class _BaseHeads:
    config: PreTrainedConfig
    """The model's own, which names the attention function in use."""
    query: int
    key_value: int
    head_dim: int
    split_sizes: dict[str, tuple[int, int]]
    """By attribute: the base's value, and that with the inserted heads."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Heads of queries, keys and values."""
        return self.query, self.key_value, self.key_value


def split_heads(attention: nn.Module, base: BaseGeometry, n_head_kv: int, split_sizes: Iterable[str] = ()) -> None:
    """Make a Hugging Face attention module compute its first heads as the base does.

    Args:
        n_head_kv: inserted KV heads.
        split_sizes: see :class:`otter_gguf.architectures.SubLayer`.
    """
    config: Any = attention.config
    # A copy for this module alone: masks are still made for the function that the model's configuration names.
    attention.config = own_config = copy.copy(config)
    own_config._attn_implementation = _NAME
    values = {path: int(attrgetter(path)(attention)) for path in split_sizes}
    # As many query heads a KV head as in the base: every size grows by the same factor.
    sizes = {path: (value, value + value * n_head_kv // base.n_head_kv) for path, value in values.items()}
    setattr(attention, _ATTRIBUTE, _BaseHeads(config, base.n_head, base.n_head_kv, base.head_dim, sizes))
    set_split_sizes(attention, True)


def set_split_sizes(attention: nn.Module, enabled: bool) -> None:
    """Let the module's code cut the output of its fused map with the inserted heads in it, or without."""
    heads: _BaseHeads = getattr(attention, _ATTRIBUTE)
    for path, sizes in heads.split_sizes.items():
        parent, _, name = path.rpartition(".")
        setattr(attrgetter(parent)(attention) if parent else attention, name, sizes[enabled])


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: (B, heads, T, n) each; returns (B, T, heads, n) and maybe weights."""
    base: _BaseHeads = getattr(module, _ATTRIBUTE)
    attend = _model_attention(module, base.config)
    if query.shape[1] == base.query:  # the insertion is disabled
        return attend(module, query, key, value, attention_mask, **options)
    with torch.no_grad():
        own = [_as_in_base(x, base, i) for i, x in enumerate((query, key, value))]  # (B, H or H_kv, T, n)
        outputs = [attend(module, *own, attention_mask, **options)]
    # Copies as well: views would keep the base's heads for the backward pass.
    inserted = [_compact(x[:, n:]) for x, n in zip((query, key, value), base.counts, strict=True)]  # (B, ., T, n)
    outputs.append(attend(module, *inserted, attention_mask, **options))
    states, weights = zip(*outputs, strict=True)
    return torch.cat(states, dim=2), None if weights[0] is None else torch.cat(weights, dim=1)


def _model_attention(module: nn.Module, config: PreTrainedConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the unmodified module would call: each model's file has its own eager one."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend: Callable[..., tuple[Tensor, Tensor | None]] = AttentionInterface().get(config._attn_implementation, eager)
    return attend


def _as_in_base(x: Tensor, base: _BaseHeads, index: int) -> Tensor:
    """The base's heads (B, heads, T, n) of queries (index 0), keys or values, laid out in memory as in the base."""
    heads = x[:, : base.counts[index]]  # (B, heads, T, n)
    if _has_no_gaps(x):
        return _compact(heads)
    if not base.split_sizes:  # queries, key and value of a head stand together
        strides = [size * heads.shape[1] // x.shape[1] if size > x.stride(1) else size for size in x.stride()]
        return torch.empty_strided(heads.shape, strides, dtype=x.dtype, device=x.device).copy_(heads)
    first, row_size = (base.head_dim * sum(counts) for counts in (base.counts[:index], base.counts))
    tokens = cut_out_of_rows(heads.transpose(1, 2).flatten(2), row_size, first)  # (B, T, heads n)
    return tokens.view(*tokens.shape[:2], -1, base.head_dim).transpose(1, 2)


def _has_no_gaps(x: Tensor) -> bool:
    """Whether x (B, heads, T, n) is a tensor of its own, and no slice of a fused map's output."""
    return x.is_contiguous() or x.transpose(1, 2).is_contiguous()


def _compact(x: Tensor) -> Tensor:
    """A copy without gaps and with dimensions in the same order in memory, as the base's own tensor has them."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return x.permute(order).contiguous().permute([order.index(dim) for dim in range(x.ndim)])


AttentionInterface.register(_NAME, _attend)
