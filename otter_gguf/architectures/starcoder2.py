"""StarCoder2: LayerNorm, biases everywhere, an FFN without gate, query heads in groups."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import ATTENTION, Architecture, SubLayer


def _refusal(config: Any) -> str | None:
    if not config.use_bias:
        return "its maps have no biases"
    return None


ARCHITECTURE = Architecture(
    gguf="starcoder2",
    model_class="Starcoder2ForCausalLM",
    interleaved_rope=False,
    notes="up to its window of 4096 tokens, which llama.cpp leaves out; no widened checkpoint",
    known_as="StarCoder2",
    refusal=_refusal,
    attention=dataclasses.replace(ATTENTION, input_bias=True, output_bias=True),
    ffn=SubLayer(
        norm="post_attention_layernorm",
        inputs=("mlp.c_fc",),
        output="mlp.c_proj",
        activation="mlp.act",
        input_bias=True,
        output_bias=True,
    ),
    norm_epsilon="eps",
    layer_norm=True,
    activations=("gelu_pytorch_tanh",),
    not_widened="its head size would be the larger width divided by the number of heads",
)
