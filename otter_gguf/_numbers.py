"""Numbers that callers and files give, as what llama.cpp can compute with."""

from __future__ import annotations

import contextlib
import math
import numbers

from .errors import ConfigError

MAX_INT = 2**31 - 1
"""llama.cpp counts with 32 bits."""


def real(value: object, what: str, expected: str = "a number") -> float:
    """The number as a float, which may be NaN or infinite. ``ConfigError``, which says ``what`` it is, for what is no
    real number (numpy would drop imaginary parts in silence), or more than a float can hold."""
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise ConfigError(f"{what} is {shown(value)}, expected {expected}")


def finite(value: object, what: str, expected: str = "a finite number") -> float:
    """As :func:`real`; infinity and NaN are refused too."""
    number = real(value, what, expected)
    if not math.isfinite(number):
        raise ConfigError(f"{what} is {shown(value)}, expected {expected}")
    return number


def is_whole(value: object, least: int = 0, most: int | None = None) -> bool:
    """Whether it is a whole number within these bounds. True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most)


def shown(value: object) -> str:
    """A value in a message: some have a million digits, or cannot be written at all."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= 100 else f"{text[:100]}... ({len(text)} characters)"
