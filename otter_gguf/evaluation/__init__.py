"""Policies compared: texts by each of them, read by a judge, with what they cost.

``otter-gguf eval`` runs it; what is measured and how: ``docs/evaluation.md``.
"""

from __future__ import annotations

from .embed import Embedder, load_embedder
from .evaluate import Plan, evaluate
from .judges import Judge, load_judge
from .results import ArmResult, Cost, Estimate, Results
from .runner import Settings

__all__ = [
    "ArmResult",
    "Cost",
    "Embedder",
    "Estimate",
    "Judge",
    "Plan",
    "Results",
    "Settings",
    "evaluate",
    "load_embedder",
    "load_judge",
]
