"""GPT-2: learned positions instead of a rotary embedding, maps stored transposed, an FFN without gate.

h'_0 is a slice of the state that enters layer 0, positions included. Rows of a trained table get none: what a position
means to h' is learned from h.
"""

from __future__ import annotations

from typing import Any

from . import Architecture, SubLayer


def _refusal(config: Any) -> str | None:
    if config.n_inner not in (None, 4 * config.n_embd):
        return f"n_inner is {config.n_inner}, and llama.cpp's converter takes four times the width for granted"
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return "its attention is scaled otherwise (scale_attn_weights, scale_attn_by_inverse_layer_idx)"
    if config.reorder_and_upcast_attn:
        return "its attention is computed in another order (reorder_and_upcast_attn)"
    return "it has cross-attention" if config.add_cross_attention else None


ARCHITECTURE = Architecture(
    gguf="gpt2",
    model_class="GPT2LMHeadModel",
    interleaved_rope=False,
    notes="contexts are never shifted; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="GPT-2",
    refusal=_refusal,
    decoder="transformer",
    embedding="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    attention=SubLayer(
        norm="ln_1",
        inputs=("attn.c_attn",) * 3,
        output="attn.c_proj",
        input_bias=True,
        output_bias=True,
        split_sizes=("split_size",),
    ),
    attention_module="attn",
    ffn=SubLayer(
        norm="ln_2",
        inputs=("mlp.c_fc",),
        output="mlp.c_proj",
        activation="mlp.act",
        input_bias=True,
        output_bias=True,
    ),
    norm="transformer.ln_f",
    norm_epsilon="eps",
    layer_norm=True,
    n_ff="n_inner",
    hidden_act="activation_function",
    activations=("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh"),
    not_widened="its head size would be the larger width divided by the number of heads",
)
