"""Run GGUF language models that predict a reward with every token, and guide decoding with it.

    from otter_gguf import ARGS, Otter

    llm = Otter("base.Q4_K_M.gguf", otter="harmless.otter.gguf")
    out = llm.create_completion("The old man", max_tokens=64, guidance=ARGS(weight=1.5))

Names are loaded on first use: ``import otter_gguf`` alone is instant, and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import BaseGeometry, HeadConfig, InsertionConfig
    from .context.state import ContextState
    from .errors import (
        ConfigError,
        ContextFullError,
        EngineError,
        FileError,
        MismatchError,
        OtterError,
        UnsupportedError,
    )
    from .guidance import (
        ARGS,
        CARDS,
        PARGS,
        RAD,
        BestOfN,
        Candidates,
        ChunkBeam,
        Contrast,
        DExperts,
        Ensemble,
        Gated,
        Policy,
        Search,
        Signal,
        SpeculativeRejection,
        Threshold,
        Vocabulary,
    )
    from .isolation import IsolatedOtter, open_model
    from .model import Otter
    from .scoring import Score

__version__ = "0.1.0"

_HOME = {
    "ARGS": "guidance",
    "CARDS": "guidance",
    "PARGS": "guidance",
    "RAD": "guidance",
    "BaseGeometry": "config",
    "BestOfN": "guidance",
    "Candidates": "guidance",
    "ChunkBeam": "guidance",
    "ConfigError": "errors",
    "ContextFullError": "errors",
    "ContextState": "context.state",
    "Contrast": "guidance",
    "DExperts": "guidance",
    "EngineError": "errors",
    "Ensemble": "guidance",
    "FileError": "errors",
    "Gated": "guidance",
    "HeadConfig": "config",
    "InsertionConfig": "config",
    "IsolatedOtter": "isolation",
    "MismatchError": "errors",
    "Otter": "model",
    "OtterError": "errors",
    "Policy": "guidance",
    "Score": "scoring",
    "Search": "guidance",
    "Signal": "guidance",
    "SpeculativeRejection": "guidance",
    "Threshold": "guidance",
    "UnsupportedError": "errors",
    "Vocabulary": "guidance",
    "open_model": "isolation",
}

__all__ = [
    "ARGS",
    "CARDS",
    "PARGS",
    "RAD",
    "BaseGeometry",
    "BestOfN",
    "Candidates",
    "ChunkBeam",
    "ConfigError",
    "ContextFullError",
    "ContextState",
    "Contrast",
    "DExperts",
    "EngineError",
    "Ensemble",
    "FileError",
    "Gated",
    "HeadConfig",
    "InsertionConfig",
    "IsolatedOtter",
    "MismatchError",
    "Otter",
    "OtterError",
    "Policy",
    "Score",
    "Search",
    "Signal",
    "SpeculativeRejection",
    "Threshold",
    "UnsupportedError",
    "Vocabulary",
    "__version__",
    "open_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
