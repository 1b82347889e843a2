"""Whether a file holds the tensors that belong in it, said in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import FileError
from .text import listed

Shape = tuple[int, ...]


def check_shapes(
    file: object, expected: Mapping[str, Shape], found: Mapping[str, Shape], further: Sequence[str] = ()
) -> None:
    """``FileError`` with every tensor that is missing, does not belong or has another shape.

    Args:
        file: What the message begins with.
        further: What else is wrong with the tensors.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} does not belong here" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems += further
    if problems:
        raise FileError(f"{file}: {len(problems)} tensors do not fit the configuration: {listed(problems)}")
