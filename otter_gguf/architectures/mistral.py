"""Mistral: a Llama in GGUF.

llama.cpp leaves out the sliding window of the first version, so texts longer than it are computed otherwise there.
"""

from __future__ import annotations

from . import Architecture

ARCHITECTURE = Architecture(
    gguf="llama",
    model_class="MistralForCausalLM",
    interleaved_rope=True,
    notes="v0.1 up to its window of 4096 tokens, which llama.cpp leaves out",
    known_as="Mistral 7B v0.1 to v0.3 and their like",
)
