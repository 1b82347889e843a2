"""Mixtral: a Llama with experts in GGUF. The inserted FFN stands beside the experts, and every token uses it.

llama.cpp leaves out a sliding window, as with Mistral.
"""

from __future__ import annotations

from . import EXPERTS, NOT_WIDENED_EXPERTS, Architecture

ARCHITECTURE = Architecture(
    gguf="llama",
    model_class="MixtralForCausalLM",
    interleaved_rope=True,
    notes="the inserted FFN stands beside the experts; no widened checkpoint; trained from Hugging Face folders alone",
    known_as="Mixtral",
    ffn=EXPERTS,
    n_expert="num_experts",
    not_widened=NOT_WIDENED_EXPERTS,
)
