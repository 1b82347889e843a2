"""From prompts to tokens: lanes of a context, the step loop, and the workspace of searches."""

from __future__ import annotations

from .batches import common_length
from .lanes import Lane, Lanes
from .steps import Event, FinishReason, Logprobs, Step

__all__ = ["Event", "FinishReason", "Lane", "Lanes", "Logprobs", "Step", "common_length"]
