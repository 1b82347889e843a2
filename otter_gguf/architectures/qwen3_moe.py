"""Qwen3 as a mixture of experts: the attention of a Qwen3; the inserted FFN stands beside the experts."""

from __future__ import annotations

from typing import Any

from . import EXPERTS, NOT_WIDENED_EXPERTS, Architecture, sliding_window
from .qwen3 import ARCHITECTURE as QWEN3


def _refusal(config: Any) -> str | None:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "some of its layers have no experts"
    if not config.norm_topk_prob:
        return "norm_topk_prob is false, so the weights of a token's experts do not add up to 1"
    return sliding_window(config)


ARCHITECTURE = Architecture(
    gguf="qwen3moe",
    model_class="Qwen3MoeForCausalLM",
    interleaved_rope=False,
    notes="as Qwen3; the inserted FFN stands beside the experts; no widened checkpoint",
    known_as="Qwen3-MoE",
    refusal=_refusal,
    attention=QWEN3.attention,
    ffn=EXPERTS,
    n_ff="moe_intermediate_size",
    n_expert="num_experts",
    not_widened=NOT_WIDENED_EXPERTS,
)
