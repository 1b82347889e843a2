"""Functions and classes of the user's own modules, named as ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import ConfigError


def load_function(name: str, flag: str, kind: str = "function") -> Callable[..., Any]:
    """Import the module and return the function or class; modules in the working folder are found too.

    Args:
        name: ``MODULE:FUNCTION``; the function may be an attribute of an object (``judges:strict.score``).
        flag: The option that named it, for messages.
        kind: What is expected, for messages: a function or a class.

    Raises:
        ConfigError: The name is not of this form, the module cannot be imported, or there is nothing of the kind in it.
    """
    module_name, _, attributes = name.partition(":")
    if not module_name or not attributes:
        raise ConfigError(f"{flag} {name}: expected MODULE:{kind.upper()}, such as my_module:politeness")
    value: Any = _import(module_name, f"{flag} {name}")
    for attribute in attributes.split("."):
        value = getattr(value, attribute, None)
    if not callable(value):
        raise ConfigError(f"{flag} {name}: module {module_name} has no {kind} {attributes}")
    return value  # type: ignore[no-any-return]


def _import(name: str, where: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: nothing in the folder hides an installed module
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module can fail with anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}: cannot import {name}: {reason}") from error
