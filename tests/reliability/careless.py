"""Writers as they must not be, one fault each: the trials have to find every one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .writers import Writer

_DATA = bytes(range(256)) * 1024


def _in_place(path: Path) -> None:
    """No temporary name."""
    path.write_bytes(_DATA)


def _unsynced(path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(_DATA)
    temporary.replace(path)


def _not_removed(path: Path) -> None:
    """What a fault leaves stays there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(_DATA)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _half_written(path: Path) -> None:
    """Takes a short write for a whole one."""
    temporary = path.with_name(f".{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, _DATA)
    os.close(descriptor)
    temporary.replace(path)


def _writer(name: str, write: Callable[[Path], None]) -> Writer:
    def run(inputs: Path, out: Path) -> int:
        write(out / "file")
        return 0

    return Writer(name, ("file",), lambda inputs: None, run)


CARELESS = {
    writer.name: writer
    for writer in (
        _writer("in place", _in_place),
        _writer("unsynced", _unsynced),
        _writer("not removed", _not_removed),
        _writer("half written", _half_written),
    )
}
