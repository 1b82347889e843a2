"""Qwen3: queries and keys are normed, each head by itself. Inserted heads take the base's norm weights."""

from __future__ import annotations

import dataclasses

from . import ATTENTION, Architecture, sliding_window

ARCHITECTURE = Architecture(
    gguf="qwen3",
    model_class="Qwen3ForCausalLM",
    interleaved_rope=False,
    notes="inserted heads take the base's query and key norms; no sliding window",
    refusal=sliding_window,
    attention=dataclasses.replace(ATTENTION, head_norms=("self_attn.q_norm", "self_attn.k_norm")),
)
