"""Everything that is wrong with a file, kind by kind: the contents of ``otter-gguf check``.

The checks are those of loading, and two that loading leaves out by default: weights of the base that are NaN or
infinite, and checksums. A failure of one kind does not hide another, unless one rests on the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from .. import _native
from ..errors import FileError, OtterError
from ..text import listed
from .base import BaseFiles
from .checksums import check_checksums, has_checksums
from .merge import check_parts
from .sidecar import check_binding, check_tensors, is_merged, is_sidecar, read_insertion

T = TypeVar("T")

Kind = Literal["base", "sidecar", "merged"]
Check = Literal["header", "model", "keys", "tensors", "values", "checksums", "binding"]
"""What is looked at: the file's own structure; a base as llama.cpp needs it; keys and tensors of an inserted part; NaN
and infinities; checksums; whether base and inserted part belong together."""


@dataclass(frozen=True)
class Problem:
    """All that one check found."""

    check: Check
    message: str


@dataclass
class Report:
    """What was looked at in a file, and what was found."""

    path: str
    kind: Kind | None = None
    """None if the file cannot be read as GGUF."""
    passed: list[Check] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and is no fault of the file."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"path": self.path, "ok": self.ok, **{k: v for k, v in dataclasses.asdict(self).items() if k != "path"}}

    def attempt(self, check: Check, *actions: Callable[[], T]) -> T | None:
        """Run a check; returns what its last action gives, or None where one found something."""
        value: T | None = None
        found: list[str] = []
        for action in actions:
            try:
                value = action()
            except OtterError as error:
                found.append(str(error))
        if found:
            self.problems.append(Problem(check, "; ".join(found)))
            return None
        self.passed.append(check)
        return value


def check_file(path: str | Path, base: str | Path | None = None) -> Report:
    """Check a base (with its shards), a sidecar or a merged file, whatever it holds.

    Args:
        path: The file; of a base in several files the first.
        base: What a sidecar is for: whether they belong together is checked too. Not used for other files.
    """
    report = Report(str(path))
    files = report.attempt("header", lambda: BaseFiles.open(path))
    if files is None:
        return report
    with files:
        if is_sidecar(files.metadata_file):
            report.kind = "sidecar"
            _check_inserted(report, files.metadata_file)
            if base is not None:
                report.attempt("binding", lambda: _check_binding(files.metadata_file, base))
            else:
                report.notes.append("whether it belongs to a base is not known: name one with --base")
            return report
        report.kind = "merged" if is_merged(files.metadata_file) else "base"
        report.attempt("model", lambda: _native.check_base(files.metadata_file))
        if report.kind == "merged":
            _check_inserted(report, files.metadata_file)
            report.attempt("binding", lambda: check_binding(files, files.metadata_file))
        else:
            report.attempt("values", lambda: _check_values(files))
            report.notes.append("a base holds no checksums of its weights: compare the file with its source")
    return report


def _check_inserted(report: Report, file: _native.GgufFile) -> None:
    """The whole of a sidecar or merged file, but for what the base is."""
    config = report.attempt("keys", lambda: read_insertion(file))
    if config is not None:
        report.attempt("tensors", lambda: check_tensors(file, config))
    report.attempt("values", lambda: _check_values(file))
    actions = [lambda: check_checksums(file)] if has_checksums(file) else []
    if not actions:
        report.notes.append("the inserted part holds no checksums: a flipped bit in it would not be seen")
    if is_merged(file) and config is not None:
        actions.append(lambda: check_parts(file))
    if actions:
        report.attempt("checksums", *actions)


def _check_values(files: BaseFiles | _native.GgufFile) -> None:
    """``FileError`` that names every tensor with a NaN or an infinity."""
    parts = files.files if isinstance(files, BaseFiles) else [files]
    places = {tensor.name: part.non_finite(tensor.name) for part in parts for tensor in part.tensors}
    wrong = [f"{name} (first in value or block {place})" for name, place in places.items() if place >= 0]
    if wrong:
        raise FileError(f"{files.path}: values: NaN or infinity in {listed(wrong, ', ')}")


def _check_binding(sidecar: _native.GgufFile, base: str | Path) -> None:
    with BaseFiles.open(base) as files:
        if is_sidecar(files.metadata_file):
            raise FileError(f"{base}: an Otter sidecar, no base")
        check_binding(files, sidecar)
