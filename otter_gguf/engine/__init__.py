"""From prompts to tokens: all texts of a model in one engine, which feeds their next tokens in one batch a step."""

from __future__ import annotations

from .engine import Engine
from .job import Handle, News
from .request import Guidance, LogitsProcessor, Request, StoppingCriterion, sequences_needed
from .stream import Stream

__all__ = [
    "Engine",
    "Guidance",
    "Handle",
    "LogitsProcessor",
    "News",
    "Request",
    "StoppingCriterion",
    "Stream",
    "sequences_needed",
]
