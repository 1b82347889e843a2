"""Guided decoding: policies that score every candidate for the next token, and searches that judge whole segments.

Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .args import ARGS, PARGS
    from .base import AuxiliaryStream, Candidates, Capabilities, Policy, Signal, State
    from .best_of_n import BestOfN
    from .cards import CARDS
    from .chunk_beam import ChunkBeam
    from .contrast import Contrast
    from .dexperts import DExperts
    from .ensemble import Ensemble
    from .gated import Gated
    from .rad import RAD
    from .search import Branch, Search, Snapshot, Workspace
    from .speculative_rejection import SpeculativeRejection
    from .threshold import Threshold
    from .vocabulary import Vocabulary

_HOME = {
    "ARGS": "args",
    "CARDS": "cards",
    "PARGS": "args",
    "RAD": "rad",
    "BestOfN": "best_of_n",
    "Branch": "search",
    "Candidates": "base",
    "ChunkBeam": "chunk_beam",
    "Contrast": "contrast",
    "DExperts": "dexperts",
    "Ensemble": "ensemble",
    "AuxiliaryStream": "base",
    "Gated": "gated",
    "Snapshot": "search",
    "Capabilities": "base",
    "Policy": "base",
    "Search": "search",
    "Signal": "base",
    "SpeculativeRejection": "speculative_rejection",
    "State": "base",
    "Threshold": "threshold",
    "Vocabulary": "vocabulary",
    "Workspace": "search",
}

__all__ = [
    "ARGS",
    "CARDS",
    "PARGS",
    "RAD",
    "AuxiliaryStream",
    "BestOfN",
    "Branch",
    "Candidates",
    "Capabilities",
    "ChunkBeam",
    "Contrast",
    "DExperts",
    "Ensemble",
    "Gated",
    "Policy",
    "Search",
    "Signal",
    "Snapshot",
    "SpeculativeRejection",
    "State",
    "Threshold",
    "Vocabulary",
    "Workspace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
