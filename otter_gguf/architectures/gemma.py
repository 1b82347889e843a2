"""Gemma, the first: embeddings are scaled by the root of the width, norms add 1 to their weights, FFNs use GELU."""

from __future__ import annotations

from typing import Any

from . import Architecture, unwritten_rope


def other_form(config: Any) -> str | None:
    """The reason to refuse what no Gemma is in llama.cpp."""
    if not config.tie_word_embeddings:
        return "its output projection is not its embedding"
    if config.use_bidirectional_attention:
        return "it attends in both directions"
    if config.attention_bias:
        return "its attention has biases"
    return None


def refusal(config: Any) -> str | None:
    """The reason to refuse a configuration of the first two Gemmas."""
    return other_form(config) or unwritten_rope(config)


ARCHITECTURE = Architecture(
    gguf="gemma",
    model_class="GemmaForCausalLM",
    interleaved_rope=False,
    notes="rows of a trained table are not scaled; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="Gemma 1",
    refusal=refusal,
    norm_epsilon="eps",
    norm_offset=1.0,
    activations=("gelu_pytorch_tanh",),
    not_widened="its embeddings would be scaled by the root of the larger width",
)
