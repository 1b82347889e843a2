"""Phi-3 and Phi-4: queries, keys and values are one matrix, gate and up another.

llama.cpp leaves out the sliding window, so texts longer than it are computed otherwise there. It takes the long rotary
factors where the context may grow beyond the original length, transformers where the text does.
"""

from __future__ import annotations

import math
from typing import Any

from . import Architecture, SubLayer


def _refusal(config: Any) -> str | None:
    rope = config.rope_parameters
    if rope["rope_type"] != "longrope":
        return None
    original = rope["original_max_position_embeddings"]
    scale = config.max_position_embeddings / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    for name, expected in (("factor", scale), ("attention_factor", factor)):
        given = rope.get(name)
        if given is not None and not math.isclose(given, expected, rel_tol=1e-4):
            return f"{name} of its rope_parameters is {given}, expected {expected:.6g} for its lengths"
    return None


ARCHITECTURE = Architecture(
    gguf="phi3",
    model_class="Phi3ForCausalLM",
    interleaved_rope=False,
    notes="with long rotary factors; up to its sliding window, which llama.cpp leaves out; no widened checkpoint",
    known_as="Phi-3, Phi-3.5, Phi-4, dense",
    refusal=_refusal,
    attention=SubLayer(
        norm="input_layernorm",
        inputs=("self_attn.qkv_proj",) * 3,
        output="self_attn.o_proj",
        split_sizes=("config.num_attention_heads", "num_key_value_heads"),
    ),
    ffn=SubLayer(
        norm="post_attention_layernorm",
        inputs=("mlp.gate_up_proj",) * 2,
        output="mlp.down_proj",
        activation="mlp.activation_fn",
    ),
    not_widened="its head size would be the larger width divided by the number of heads",
)
