"""SmolLM3: each fourth layer attends without rotary embedding."""

from __future__ import annotations

from typing import Any

from . import Architecture, sliding_window

_STEP = 4
"""llama.cpp takes it for granted; no key of a GGUF says it."""


def _refusal(config: Any) -> str | None:
    expected = [int((i + 1) % _STEP != 0) for i in range(config.num_hidden_layers)]
    if list(map(int, config.no_rope_layers)) != expected:
        return f"other layers without rotary embedding than each {_STEP}th"
    return sliding_window(config)


ARCHITECTURE = Architecture(
    gguf="smollm3",
    model_class="SmolLM3ForCausalLM",
    interleaved_rope=True,
    notes="inserted heads of each fourth layer have no rotary embedding either; no sliding window",
    refusal=_refusal,
)
