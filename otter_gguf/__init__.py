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
    from .errors import (
        ConfigError,
        ContextFullError,
        EngineError,
        FileError,
        MismatchError,
        OtterError,
        UnsupportedError,
    )
    from .guidance import ARGS, Candidates, Policy, Signal
    from .model import Otter
    from .scoring import Score

__version__ = "0.1.0"

_HOME = {
    "ARGS": "guidance",
    "BaseGeometry": "config",
    "Candidates": "guidance",
    "ConfigError": "errors",
    "ContextFullError": "errors",
    "EngineError": "errors",
    "FileError": "errors",
    "HeadConfig": "config",
    "InsertionConfig": "config",
    "MismatchError": "errors",
    "Otter": "model",
    "OtterError": "errors",
    "Policy": "guidance",
    "Score": "scoring",
    "Signal": "guidance",
    "UnsupportedError": "errors",
}

__all__ = [
    "ARGS",
    "BaseGeometry",
    "Candidates",
    "ConfigError",
    "ContextFullError",
    "EngineError",
    "FileError",
    "HeadConfig",
    "InsertionConfig",
    "MismatchError",
    "Otter",
    "OtterError",
    "Policy",
    "Score",
    "Signal",
    "UnsupportedError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
