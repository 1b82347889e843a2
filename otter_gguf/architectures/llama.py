"""Llama 1 to 3.x, and every checkpoint of its ``model_type``."""

from __future__ import annotations

from typing import Any

from ..config import BaseGeometry
from ..errors import ConfigError
from . import Architecture, widened_config


def _widened_config(base: BaseGeometry, width: int, n_head_kv: int, n_ff: int) -> dict[str, Any]:
    config = widened_config(base, width, n_head_kv, n_ff)
    if config["hidden_size"] % config["num_attention_heads"]:
        # transformers insists on it, although head_dim says the head size.
        raise ConfigError(
            f"a widened Llama needs a hidden size that is a multiple of its heads: {config['hidden_size']} with"
            f" {config['num_attention_heads']}; choose another width"
        )
    return config


ARCHITECTURE = Architecture(
    gguf="llama",
    model_class="LlamaForCausalLM",
    interleaved_rope=True,
    notes="with its rope scaling",
    known_as="Llama 1 to 3.x",
    widened_config=_widened_config,
)
