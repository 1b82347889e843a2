"""Granite 3 (dense): embeddings, residual, attention and logits are multiplied with numbers of the configuration.

The inserted part is multiplied with the same numbers, as that of a plainly widened model would be.
"""

from __future__ import annotations

from . import Architecture

ARCHITECTURE = Architecture(
    gguf="granite",
    model_class="GraniteForCausalLM",
    interleaved_rope=True,
    notes="its multipliers hold for the inserted part too",
    known_as="Granite 3, dense",
)
