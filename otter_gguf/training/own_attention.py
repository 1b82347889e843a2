"""Inserted heads beside an attention module that computes by code of its own (Falcon), so that it cannot hold them.

The base's module sees h alone and is never changed. What its heads give is read off the map back to the residual, and
the inserted heads run after it, with a layer of their own in its cache.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import eager_attention_forward

from ..architectures import SubLayer
from ..config import BaseGeometry
from ..errors import UnsupportedError
from .modules import Widened, inserted_product
from .parts import base_part, inserted_part, join


class WidenedAttention(Widened):
    """The base's module on h, and the inserted heads on [h, h']. Their maps are children, by the names of the base's.

    ``num_key_value_groups``, ``is_causal`` and ``config`` are what transformers' attention functions ask a module for.
    """

    is_causal = True

    def __init__(self, base: nn.Module, geometry: BaseGeometry, attention: SubLayer) -> None:
        super().__init__(base, geometry.n_embd)
        self.head_dim = geometry.head_dim
        self.num_key_value_groups = geometry.group
        self.config: Any = base.config
        self.cache_layer = geometry.n_layer + int(base.layer_idx)  # type: ignore[arg-type]
        self.input, self.output = (path.rpartition(".")[2] for path in (attention.inputs[0], attention.output))

    def forward(
        self,
        x: Tensor,
        *,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        layer_past: Cache | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base's module: (B, T, d + e) -> (B, T, d + e), and maybe the weights of the base's heads."""
        h = base_part(x, self.base_columns)
        options |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
        with torch.no_grad(), self._base_heads() as heads:
            y, weights = self.base(h, **options, layer_past=layer_past)
        if not self.enabled:
            return y, weights
        qkv = inserted_product(self._weight(self.input), h, inserted_part(x, self.base_columns))
        added = self._attend(qkv, attention_mask, position_embeddings, layer_past)
        return join(y, inserted_product(self._weight(self.output), heads[0], added)), weights

    @contextmanager
    def _base_heads(self) -> Iterator[list[Tensor]]:
        """Collects the output of the base's heads (B, T, H n)."""
        heads: list[Tensor] = []
        output = self.base.get_submodule(self.output)
        handle = output.register_forward_pre_hook(lambda _module, arguments: heads.append(arguments[0]))
        try:
            yield heads
        finally:
            handle.remove()

    def _attend(
        self, qkv: Tensor, mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        """Output (B, T, heads n) of the inserted heads; each KV head stands behind its queries in qkv."""
        shape = (*qkv.shape[:2], -1, self.num_key_value_groups + 2, self.head_dim)
        query, key, value = qkv.view(shape).split([self.num_key_value_groups, 1, 1], dim=3)
        query, key, value = (heads.flatten(2, 3).transpose(1, 2) for heads in (query, key, value))
        rotate = sys.modules[type(self.base).__module__].apply_rotary_pos_emb
        query, key = rotate(query, key, *position_embeddings)
        if cache is not None:
            key, value = _with_layer(cache, self.cache_layer).update(key, value, self.cache_layer)
        attend = AttentionInterface().get(self.config._attn_implementation, eager_attention_forward)
        states, _ = attend(self, query, key, value, mask, scaling=1 / math.sqrt(self.head_dim), dropout=0.0)
        return cast(Tensor, states.flatten(2))

    def _weight(self, name: str) -> Tensor:
        return self.get_submodule(name).get_parameter("otter.weight")


def _with_layer(cache: Cache, index: int) -> Cache:
    """The cache, with a layer behind those of the base."""
    if not isinstance(cache, DynamicCache):
        raise UnsupportedError(f"a {type(cache).__name__} has no place for the inserted heads; give a DynamicCache")
    cache.layers.extend(DynamicLayer() for _ in range(index + 1 - len(cache.layers)))
    return cache
