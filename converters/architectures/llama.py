"""Llama 1 to 3, and Mistral, which llama.cpp runs as the same architecture."""

from __future__ import annotations

from . import Architecture

ARCHITECTURE = Architecture(
    hf_classes=("LlamaForCausalLM", "MistralForCausalLM"),
    interleaved_rope=True,
)
