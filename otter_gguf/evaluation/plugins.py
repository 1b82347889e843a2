"""Functions of the user's own modules, named as ``MODULE:FUNCTION``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """Import the module and return the function; modules in the working folder are found too.

    Args:
        name: ``MODULE:FUNCTION``; the function may be an attribute of an object (``judges:strict.score``).
        flag: The option that named it, for messages.

    Raises:
        ConfigError: The name is not of this form, the module cannot be imported, or there is no such function in it.
    """
    module_name, _, attributes = name.partition(":")
    if not module_name or not attributes:
        raise ConfigError(f"{flag} {name}: expected MODULE:FUNCTION, such as my_judges:politeness")
    value: Any = _import(module_name, f"{flag} {name}")
    for attribute in attributes.split("."):
        value = getattr(value, attribute, None)
    if not callable(value):
        raise ConfigError(f"{flag} {name}: module {module_name} has no function {attributes}")
    return value  # type: ignore[no-any-return]


def _import(name: str, where: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: nothing in the folder hides an installed module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import {name}: {error}") from None
