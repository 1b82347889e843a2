"""OLMo 2: sub-layers read the state as it is, and their outputs are normed before they are added.

Queries are normed with one statistic for all heads, and so are keys. An inserted head must not change the base's, so it
takes the statistic of the base's queries or keys, with weights of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import ATTENTION, FFN, Architecture


def _refusal(config: Any) -> str | None:
    if config.attention_bias:
        return "its attention has biases"
    if getattr(config, "head_dim", None) not in (None, config.hidden_size // config.num_attention_heads):
        return "its heads together are not as wide as its state"
    return None


ARCHITECTURE = Architecture(
    gguf="olmo2",
    model_class="Olmo2ForCausalLM",
    interleaved_rope=False,
    notes="inserted queries and keys have norm weights of their own; trained from Hugging Face folders alone",
    known_as="OLMo 2",
    refusal=_refusal,
    attention=dataclasses.replace(
        ATTENTION,
        norm="",
        head_norms=("self_attn.q_norm", "self_attn.k_norm"),
        joint_head_norms=True,
        post_norm="post_attention_layernorm",
    ),
    ffn=dataclasses.replace(FFN, norm="", post_norm="post_feedforward_layernorm"),
)
