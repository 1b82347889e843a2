"""Gemma 2: norms before and behind each sub-layer, capped scores, and a window in every other layer.

Inserted heads have the cap, and the window of the layer that they stand in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import gemma, other_windows

_PERIOD = 2
_LAYERS_OF_27B = 46


def other_score_scale(config: Any, layers_of_27b: int) -> str | None:
    """The reason to refuse scores that llama.cpp scales otherwise: it goes by the sizes and the number of layers."""
    large = config.num_hidden_layers == layers_of_27b
    expected = config.hidden_size // config.num_attention_heads if large else config.head_dim
    if config.query_pre_attn_scalar != expected:
        return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, expected {expected}"
    return None


def _refusal(config: Any) -> str | None:
    if not config.attn_logit_softcapping or not config.final_logit_softcapping:
        return "its scores or its logits are not capped"
    return gemma.refusal(config) or other_score_scale(config, _LAYERS_OF_27B) or other_windows(config, _PERIOD)


ARCHITECTURE = dataclasses.replace(
    gemma.ARCHITECTURE,
    gguf="gemma2",
    model_class="Gemma2ForCausalLM",
    notes="caps and windows hold for inserted heads; trained without sdpa, which has no caps; else as Gemma 1",
    known_as="Gemma 2",
    refusal=_refusal,
    attention=dataclasses.replace(gemma.ARCHITECTURE.attention, post_norm="post_attention_layernorm"),
    ffn=dataclasses.replace(
        gemma.ARCHITECTURE.ffn, norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"
    ),
    hidden_act="hidden_activation",
    attention_functions=("eager", "flash_attention_2", "flex_attention"),
    lost_in_gguf="the scale of its scores",
)
