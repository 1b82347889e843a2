"""Run GGUF language models that predict a reward with every token, and guide decoding with it.

    from otter_gguf import ARGS, Otter

    llm = Otter("base.Q4_K_M.gguf", otter="harmless.otter.gguf")
    out = llm.create_completion("The old man", max_tokens=64, guidance=ARGS(weight=1.5))

The names are those that the stub ``__init__.pyi`` imports. Each is loaded on first use: ``import otter_gguf`` alone is
instant, and never imports torch.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
_HOME = {name: module for module, name in re.findall(r"^from (\.[\w.]+) import (\w+) as \2$", _STUB, re.MULTILINE)}
"""The module of each name."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
