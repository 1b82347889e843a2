"""Gemma 3, its language model: Gemma 2 with norms of queries and keys instead of caps.

Five layers of six attend within a window, with a rotary embedding of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import gemma, gemma2, other_windows

_PERIOD = 6
_LAYERS_OF_27B = 62


def _other_rope(config: Any) -> str | None:
    kinds = {kind: parameters["rope_type"] for kind, parameters in config.rope_parameters.items()}
    if kinds.get("sliding_attention") != "default" or kinds.get("full_attention") not in ("default", "linear"):
        return f"its rotary embeddings are {kinds}, expected default within windows, default or linear elsewhere"
    return None


def _refusal(config: Any) -> str | None:
    if config.attn_logit_softcapping:
        return "its scores are capped"
    return (
        gemma.other_form(config)
        or _other_rope(config)
        or gemma2.other_score_scale(config, _LAYERS_OF_27B)
        or other_windows(config, _PERIOD)
    )


ARCHITECTURE = dataclasses.replace(
    gemma2.ARCHITECTURE,
    gguf="gemma3",
    model_class="Gemma3ForCausalLM",
    notes="windows and both rotary embeddings hold for inserted heads; else as Gemma 1",
    known_as="Gemma 3, text",
    refusal=_refusal,
    attention=dataclasses.replace(
        gemma2.ARCHITECTURE.attention, head_norms=("self_attn.q_norm", "self_attn.k_norm"), heads_dim=-3
    ),
    attention_functions=(),
    lost_in_gguf="the scale of its scores and the rotary embedding of layers with a window",
)
