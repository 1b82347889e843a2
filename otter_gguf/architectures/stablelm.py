"""StableLM and StableLM 2: a Llama with LayerNorm whose heads are rotated in part.

The 12B has one norm for attention and FFN, and norms for each head by itself: it is refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import ATTENTION, Architecture, unwritten_rope


def _refusal(config: Any) -> str | None:
    if config.use_parallel_residual:
        return "attention and FFN read one norm (use_parallel_residual)"
    if config.qk_layernorm:
        return "its query and key heads have norms of their own (qk_layernorm)"
    if config.tie_word_embeddings:
        return "its output projection is its embedding"
    return unwritten_rope(config)


ARCHITECTURE = Architecture(
    gguf="stablelm",
    model_class="StableLmForCausalLM",
    interleaved_rope=False,
    notes="not the 12B; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="StableLM 3B, StableLM 2 1.6B",
    refusal=_refusal,
    attention=dataclasses.replace(ATTENTION, split_sizes=("num_heads", "num_key_value_heads")),
    norm_epsilon="eps",
    layer_norm=True,
    not_widened="its head size would be the larger width divided by the number of heads",
)
