"""ERNIE 4.5 (dense): a Llama whose neighbouring channels are rotated in transformers too, so no rows are permuted."""

from __future__ import annotations

from typing import Any

from . import Architecture


def _refusal(config: Any) -> str | None:
    return "its maps have biases" if config.use_bias else None


ARCHITECTURE = Architecture(
    gguf="ernie4_5",
    model_class="Ernie4_5ForCausalLM",
    interleaved_rope=False,
    notes="trained from Hugging Face folders alone",
    known_as="ERNIE 4.5, dense",
    refusal=_refusal,
)
