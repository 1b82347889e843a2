"""GPT-NeoX and Pythia: LayerNorm, biases everywhere, an FFN without gate, attention beside the FFN or before it.

llama.cpp computes GELU in its tanh form whatever the configuration says, for the base and for what is inserted.
"""

from __future__ import annotations

from typing import Any

from . import Architecture, SubLayer, unwritten_rope


def _refusal(config: Any) -> str | None:
    if not config.attention_bias:
        return "its attention has no biases"
    if config.tie_word_embeddings:
        return "its output projection is its embedding"
    return unwritten_rope(config)


ARCHITECTURE = Architecture(
    gguf="gptneox",
    model_class="GPTNeoXForCausalLM",
    interleaved_rope=False,
    notes="GELU in its tanh form, as llama.cpp has it; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="GPT-NeoX-20B, Pythia",
    refusal=_refusal,
    decoder="gpt_neox",
    embedding="gpt_neox.embed_in",
    layers="gpt_neox.layers",
    attention=SubLayer(
        norm="input_layernorm",
        inputs=("attention.query_key_value",) * 3,
        output="attention.dense",
        input_bias=True,
        output_bias=True,
        by_head=True,
    ),
    attention_module="attention",
    ffn=SubLayer(
        norm="post_attention_layernorm",
        inputs=("mlp.dense_h_to_4h",),
        output="mlp.dense_4h_to_h",
        activation="mlp.act",
        input_bias=True,
        output_bias=True,
    ),
    norm="gpt_neox.final_layer_norm",
    norm_epsilon="eps",
    layer_norm=True,
    activations=("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
    not_widened="its head size would be the larger width divided by the number of heads",
)
