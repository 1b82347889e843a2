"""Qwen2 and Qwen2.5: queries, keys and values have biases.

The biases stay with the base's rows; inserted rows have none. A bias of inserted keys would fall out of the softmax but
for the rotation, one of inserted values would add a constant to h'; and the files are the same for every architecture.
"""

from __future__ import annotations

import dataclasses

from . import ATTENTION, Architecture, sliding_window

ARCHITECTURE = Architecture(
    gguf="qwen2",
    model_class="Qwen2ForCausalLM",
    interleaved_rope=False,
    notes="inserted rows have no biases; no sliding window",
    known_as="Qwen2, Qwen2.5",
    refusal=sliding_window,
    attention=dataclasses.replace(ATTENTION, input_bias=True),
)
