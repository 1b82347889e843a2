"""Reading rows: JSONL (also gzipped), Parquet, folders saved by ``datasets``, and anything that yields dictionaries."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import FileError

MAX_LINE = 1 << 26
"""Characters of a line of JSON. No row that can be trained on has as many, and what has no end must not be read."""


@dataclass
class Source:
    """Rows as they were read."""

    name: str
    """What messages call the source."""
    rows: list[Any] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each row stands: ``line 3`` of a text file, ``row 3`` of anything else; both count from 1."""
    problems: list[str] = field(default_factory=list)
    """What could not be read at all, with its place."""


def read_file(path: Path) -> Source:
    """Read a source by its name's ending; a folder is one that ``Dataset.save_to_disk`` wrote.

    Raises:
        FileError: unreadable.
    """
    try:
        if path.is_dir():
            return read_rows(_read_folder(path), str(path))
        if path.suffix == ".parquet":
            return read_rows(_read_parquet(path), str(path))
        return _read_lines(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise FileError(f"{path}: {reason}") from None


def read_rows(rows: Iterable[Any], name: str = "rows") -> Source:
    """Rows at hand. In a table every row has every column, so those of a ``Dataset`` that are null count as absent."""
    found = list(rows)
    if hasattr(rows, "features"):  # a Dataset; a check of its class would import the package
        found = [_without_nulls(row) for row in found]
    return Source(name, found, [f"row {number}" for number in range(1, len(found) + 1)])


def _read_lines(path: Path) -> Source:
    source = Source(str(path))
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 2), ""), start=1):
            if len(line.rstrip("\n")) > MAX_LINE:
                raise FileError(f"{path}: line {number}: more than {MAX_LINE} characters: no file of JSON lines?")
            if not line.strip():
                continue
            try:
                source.rows.append(json.loads(line))
                source.places.append(f"line {number}")
            except (ValueError, RecursionError) as error:
                source.problems.append(f"line {number}: not JSON ({error})")
    return source


def _read_parquet(path: Path) -> list[Any]:
    parquet: Any = import_module("pyarrow.parquet")  # the package has no types
    return [_without_nulls(row) for row in parquet.read_table(path).to_pylist()]


def _read_folder(path: Path) -> Iterable[Any]:
    from datasets import DatasetDict, load_from_disk

    dataset: Iterable[Any] = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        raise FileError(f"{path}: holds several splits; give one of {', '.join(f'{path / name}' for name in dataset)}")
    return dataset


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value
