"""Arguments that are none, for every parameter of every public function, read off the stub and the signatures."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import otter_gguf
from otter_gguf import OtterError

STUB = Path(otter_gguf.__file__).with_name("_native.pyi")

ALLOWED = (TypeError, ValueError, OtterError)
"""What a wrong argument may be answered with (and it may be harmless)."""


def _read_only() -> Any:
    values = np.arange(4, dtype=np.int32)
    values.flags.writeable = False
    return values


BAD: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "2^31 - 1": 2**31 - 1,
    "-2^31": -(2**31),
    "2^31": 2**31,
    "2^63": 2**63,
    "2^64": 2**64,
    "-2^70": -(2**70),
    "0.5": 0.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "empty text": "",
    "NUL": "a\0b",
    "long text": "\N{OTTER}" * 5000,
    "half a surrogate": "\ud83e",
    "bytes": b"\xff\0\xfe",
    "empty list": [],
    "list of None": [None],
    "list of lists": [[1], [2, 3]],
    "list of 2^64": [2**64] * 4,
    "dict": {"a": None},
    "object": object(),
    "class": int,
    "no arguments": lambda: None,
    "no elements": np.empty(0, np.int32),
    "no dimensions": np.asarray(3, np.int32),
    "two dimensions": np.zeros((2, 2), np.int32),
    "float64": np.zeros(4),
    "int64 of 2^40": np.full(4, 2**40),
    "int32 of -2^31": np.full(4, -(2**31), np.int32),
    "int32 of 2^31 - 1": np.full(4, 2**31 - 1, np.int32),
    "every second": np.arange(8, dtype=np.int32)[::2],
    "backwards": np.arange(4, dtype=np.int32)[::-1],
    "big-endian": np.arange(4, dtype=">i4"),
    "read-only": _read_only(),
    "float32 NaN": np.full(4, np.nan, np.float32),
    "float32 of one dimension too many": np.zeros((1, 320), np.float32),
    "objects": np.asarray([None, 1, "a", b""], object),
    "complex": np.zeros(4, np.complex64),
    "texts": np.asarray(["a", "b", "c", "d"]),
    "records": np.zeros(4, [("a", "i4"), ("b", "f4")]),
}


class Callee(NamedTuple):
    """A function, a method or a constructor, and its parameters."""

    owner: str
    """Class, or "" of a function."""
    name: str
    parameters: tuple[str, ...]
    keyword_only: tuple[str, ...]

    @property
    def path(self) -> str:
        """As in a sentence."""
        return f"{self.owner}.{self.name}".strip(".")


def stub_callees(stub: Path = STUB) -> Iterator[Callee]:
    """Every function, method and constructor of the native module, with or without parameters."""
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield _of_definition("", node)
        elif isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef) and not item.decorator_list)
            for method in methods:
                if not method.name.startswith("_") or method.name == "__init__":
                    yield _of_definition(node.name, method)


def _of_definition(owner: str, node: ast.FunctionDef) -> Callee:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args) if argument.arg != "self"]
    return Callee(owner, node.name, tuple(names), tuple(argument.arg for argument in node.args.kwonlyargs))


def signature_callee(owner: str, name: str, function: Callable[..., object]) -> Callee:
    """Of a Python function, by its signature; parameters of any number are left out."""
    parameters = inspect.signature(function).parameters.values()
    given = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    keyword_only = tuple(p.name for p in given if p.kind is p.KEYWORD_ONLY)
    return Callee(owner, name, tuple(p.name for p in given if p.name not in ("self", *keyword_only)), keyword_only)


def calls(callee: Callee, good: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What to call it with: one bad value each time, in the place of a good one. Parameters without a good value keep
    their defaults."""
    for wrong in (*callee.parameters, *callee.keyword_only):
        for label, value in BAD.items():
            given = {**good, wrong: value}
            last = max((i for i, name in enumerate(callee.parameters) if name in given), default=-1)
            missing = [name for name in callee.parameters[: last + 1] if name not in given]
            named = {name: given[name] for name in callee.parameters if missing and name in given}
            positional = () if missing else tuple(given[name] for name in callee.parameters[: last + 1])
            named |= {name: given[name] for name in callee.keyword_only if name in given}
            yield f"{callee.path}({wrong}={label})", positional, named


def unexpected(
    function: Callable[..., object],
    callee: Callee,
    good: dict[str, Any],
    allowed: tuple[type[Exception], ...] = ALLOWED,
) -> list[str]:
    """Calls that were answered with another exception than the allowed ones."""
    found = []
    for label, positional, named in calls(callee, good):
        try:
            function(*positional, **named)
        except allowed:
            continue
        except Exception as error:
            found.append(f"{label}: {type(error).__name__}: {str(error)[:100]}")
    return found
