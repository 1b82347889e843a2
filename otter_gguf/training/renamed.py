"""What transformers renamed in the course of version 5, by the names of the version that is installed."""

from __future__ import annotations

from transformers import TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast


def _field(of: type, name: str, before: str) -> str:
    """``name`` if the dataclass has it, else the name that it had before."""
    return name if name in of.__dataclass_fields__ else before  # type: ignore[attr-defined]


CACHE = _field(CausalLMOutputWithPast, "cache", "past_key_values")
"""The KV cache, as an argument of a model's ``forward`` and in its output; renamed in 5.24 or shortly before."""

CHECKPOINTING = _field(TrainingArguments, "activation_checkpointing", "gradient_checkpointing")
"""The option of training that keeps no activations inside layers and computes them again."""
