"""Falcon: attention beside an FFN without gate; queries, keys and values are one matrix.

With one KV head (7B) both read one norm, with several (40B, 180B) each has its own. llama.cpp computes GELU in its tanh
form, for the base and for what is inserted. Of Falcon2 11B its converter loses the rotary base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import BaseGeometry
from . import Architecture, SubLayer, unwritten_rope


def _n_head_kv(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _refusal(config: Any) -> str | None:
    if config.alibi:
        return "its scores have a bias by distance instead of a rotary embedding (alibi)"
    if config.bias:
        return "its maps have biases"
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn not in (None, 2):
        return "it has several KV heads, and one norm for attention and FFN (Falcon2 11B)"
    if config.new_decoder_architecture and config.num_kv_heads == 1:
        return "it has one KV head, and norms of their own for attention and FFN"
    if not (config.parallel_attn or config.new_decoder_architecture):
        return "its FFN reads what attention has added to (parallel_attn is false)"
    if not (config.multi_query or config.new_decoder_architecture):
        return "each of its query heads has a KV head (multi_query is false)"
    if config.ffn_hidden_size != 4 * config.hidden_size:
        return f"ffn_hidden_size is {config.ffn_hidden_size}, and llama.cpp's converter writes four times the width"
    return unwritten_rope(config)


_ATTENTION = SubLayer(
    norm="input_layernorm",
    inputs=("self_attention.query_key_value",) * 3,
    output="self_attention.dense",
    by_head=True,
)
_FFN = SubLayer(
    norm="input_layernorm",
    inputs=("mlp.dense_h_to_4h",),
    output="mlp.dense_4h_to_h",
    activation="mlp.act",
)


def _form(base: BaseGeometry) -> dict[str, Any]:
    if base.n_head_kv == 1:
        return {}
    return {"attention": replace(_ATTENTION, norm="ln_attn"), "ffn": replace(_FFN, norm="ln_mlp")}


ARCHITECTURE = Architecture(
    gguf="falcon",
    model_class="FalconForCausalLM",
    interleaved_rope=False,
    notes="without alibi; not Falcon2 11B; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="Falcon 7B, 40B, 180B",
    refusal=_refusal,
    decoder="transformer",
    embedding="transformer.word_embeddings",
    layers="transformer.h",
    form=_form,
    attention=_ATTENTION,
    attention_module="self_attention",
    own_attention=True,
    ffn=_FFN,
    norm="transformer.ln_f",
    norm_epsilon="eps",
    layer_norm=True,
    n_head_kv=_n_head_kv,
    n_ff="ffn_hidden_size",
    hidden_act="activation",
    activations=("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
    lost_in_gguf="which KV head a query head has",
    not_widened="its head size would be the larger width divided by the number of heads",
)
