"""What the converters know of an architecture: one file each, named after llama.cpp's name of it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from otter_gguf.errors import UnsupportedError


@dataclass(frozen=True)
class Architecture:
    """An architecture whose modules carry Llama's names in Hugging Face checkpoints."""

    hf_classes: tuple[str, ...]
    """Values of ``architectures`` in ``config.json``."""
    interleaved_rope: bool
    """Whether llama.cpp rotates neighbouring channels, so that query and key rows are permuted in a GGUF."""


def names() -> list[str]:
    """Every architecture that can be converted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Architecture:
    """The architecture of that name. ``UnsupportedError`` if there is none."""
    if name not in names():
        raise UnsupportedError(f"architecture {name!r} cannot be converted, only: {', '.join(names())}")
    found: Architecture = importlib.import_module(f"{__name__}.{name}").ARCHITECTURE
    return found
