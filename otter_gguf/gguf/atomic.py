"""One way to write a file: under a temporary name beside it, synced, then renamed over the final name.

The final name therefore holds the old file or the whole new one at every moment, also after ``kill -9`` or a power
cut. The temporary name is fixed and locked: a second writer is refused, and what a killed one left is taken over.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileError

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".otter-tmp"
_MAX_NAME = 255
# Some network file systems have no locks; writing there is safe but for a second writer at the same time.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def temporary_name(target: Path) -> Path:
    """The hidden name beside ``target`` under which it is written."""
    room = _MAX_NAME - len(_SUFFIX) - 1
    stem = os.fsdecode(os.fsencode(target.name)[-room:])
    return target.with_name(f".{stem}{_SUFFIX}")


def check_target(target: Path, *, inputs: Sequence[str | Path] = (), force: bool = False) -> None:
    """Refuse a target that is an input (also by another name), exists without ``force``, or cannot be replaced."""
    if not target.parent.is_dir():
        raise FileError(f"{target}: the folder {target.parent} does not exist")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    for path in inputs:
        if Path(path).exists() and target.samefile(path):
            raise FileError(f"{target}: the output is the input {path}; give another name")
    if not stat.S_ISREG(mode):
        raise FileError(f"{target}: exists and is no regular file; give another name")
    if not force:
        raise FileError(f"{target}: exists already; give another name, or --force to replace it")


@contextmanager
def atomic_path(target: str | Path, *, inputs: Sequence[str | Path] = (), force: bool = False) -> Iterator[Path]:
    """Give a temporary path to write ``target`` to; renamed at the end of the block, removed if the block raises.

    The writer may be another process, as long as it writes into the (empty) file that is there.

    Raises:
        FileError: ``target`` is one of ``inputs``, exists without ``force``, is being written, or an operation failed.
    """
    target = Path(target)
    try:
        check_target(target, inputs=inputs, force=force)
        temporary = temporary_name(target)
        descriptor = _open_locked(temporary, target)
        try:
            yield temporary
            _sync(temporary)
            _replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            if descriptor is not None:
                os.close(descriptor)
    except OSError as error:
        # Errors of write and fsync carry no name; those of a file that could not be opened do.
        raise FileError(f"{error.filename or target}: {error.strerror or error}") from None


def _open_locked(temporary: Path, target: Path) -> int | None:
    """Create or take over the temporary file; the returned descriptor holds its lock."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        descriptor = os.open(temporary, flags, 0o666)
        if sys.platform == "win32":
            os.close(descriptor)  # an open file cannot be renamed there
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise FileError(f"{target}: another process is writing it") from None
        # Between open and lock the writer before us may have renamed or removed the file that we hold.
        if _is_at(descriptor, temporary):
            os.ftruncate(descriptor, 0)
            os.set_inheritable(descriptor, True)  # a child that writes the file holds the lock even if we are killed
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, target: Path) -> None:
    """Rename, then sync the folder, or the new name may be lost in a power cut."""
    os.replace(temporary, target)
    if sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot sync folders
            raise
    finally:
        os.close(descriptor)
