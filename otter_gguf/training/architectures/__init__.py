"""Architectures that can be widened, one file each; the file's name is the Hugging Face ``model_type``.

A new architecture is a new file here that defines ``ARCHITECTURE``, and a test.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...config import BaseGeometry
from ...errors import UnsupportedError


@dataclass(frozen=True)
class SubLayer:
    """One residual sub-layer, by module paths relative to its layer: norm, maps into it, the map back."""

    norm: str
    """The norm whose output the input maps read."""
    inputs: tuple[str, ...]
    """Linear maps that read the normed state."""
    output: str
    """Linear map whose output is added to the residual."""
    activation: str = ""
    """Module of the element-wise function between them, if there is one."""


@dataclass(frozen=True)
class Architecture:
    """Where the widened modules stand in a Hugging Face model, and its sizes."""

    model_class: str
    """Class name of the Hugging Face model with the language-model head."""
    geometry: Callable[[Any], BaseGeometry]
    """Sizes from the Hugging Face configuration."""
    decoder: str
    """The module that maps tokens to final normed states."""
    embedding: str
    layers: str
    attention: SubLayer
    """``inputs`` are the query, key and value maps, in this order."""
    attention_module: str
    """The module that calls transformers' attention function, by its path in a layer."""
    ffn: SubLayer
    norm: str
    """The final norm."""
    lm_head: str
    norm_epsilon: str
    """Attribute of a norm module that holds its epsilon."""
    widened_config: Callable[[BaseGeometry, int, int, int], dict[str, Any]]
    """Configuration fields of a widened checkpoint, from (base, inserted width, KV heads, inner size).

    ``ConfigError`` for sizes that transformers refuses."""


def supported() -> tuple[str, ...]:
    """Every ``model_type`` that has a file here."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(model_type: str, model_class: str | None = None) -> Architecture:
    """The architecture of a Hugging Face ``model_type``.

    Raises:
        UnsupportedError: no file for ``model_type``, or another class of model than the language model.
    """
    if not re.fullmatch(r"[a-z0-9_]+", model_type) or model_type not in supported():
        raise UnsupportedError(f"model type {model_type!r} is not supported; supported: {', '.join(supported())}")
    architecture: Architecture = importlib.import_module(f"{__name__}.{model_type}").ARCHITECTURE
    if model_class is not None and model_class != architecture.model_class:
        raise UnsupportedError(f"a {model_class} cannot be widened; load it as {architecture.model_class}")
    return architecture
