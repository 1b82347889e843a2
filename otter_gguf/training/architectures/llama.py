"""Llama, and every checkpoint of its ``model_type``."""

from __future__ import annotations

from typing import Any

from ...config import BaseGeometry
from ...errors import ConfigError
from . import Architecture, SubLayer


def _geometry(config: Any) -> BaseGeometry:
    return BaseGeometry(
        architecture="llama",
        n_layer=config.num_hidden_layers,
        n_embd=config.hidden_size,
        n_head=config.num_attention_heads,
        n_head_kv=config.num_key_value_heads,
        head_dim=config.head_dim,
        n_ff=config.intermediate_size,
        n_vocab=config.vocab_size,
    )


def _widened_config(base: BaseGeometry, width: int, n_head_kv: int, n_ff: int) -> dict[str, Any]:
    hidden_size, n_head = base.n_embd + width, base.n_head + base.group * n_head_kv
    if hidden_size % n_head:
        # transformers insists on it, although head_dim says the head size.
        raise ConfigError(
            f"a widened Llama needs a hidden size that is a multiple of its heads: {hidden_size} with {n_head};"
            " choose another width"
        )
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": n_head,
        "num_key_value_heads": base.n_head_kv + n_head_kv,
        "head_dim": base.head_dim,
        "intermediate_size": base.n_ff + n_ff,
        "tie_word_embeddings": False,
    }


ARCHITECTURE = Architecture(
    model_class="LlamaForCausalLM",
    geometry=_geometry,
    decoder="model",
    embedding="model.embed_tokens",
    layers="model.layers",
    attention=SubLayer(
        norm="input_layernorm",
        inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.o_proj",
    ),
    attention_module="self_attn",
    ffn=SubLayer(
        norm="post_attention_layernorm",
        inputs=("mlp.gate_proj", "mlp.up_proj"),
        output="mlp.down_proj",
        activation="mlp.act_fn",
    ),
    norm="model.norm",
    lm_head="lm_head",
    norm_epsilon="variance_epsilon",
    widened_config=_widened_config,
)
