"""One way to write a file or a folder: under a temporary name beside it, synced, then renamed over the final name.

The final name therefore holds the old one or the whole new one at every moment, also after ``kill -9`` or a power
cut. The temporary name is fixed and locked: a second writer is refused, and what a killed one left is taken over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import FileError

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".otter-tmp"
_MAX_NAME = 255
# Some network file systems have no locks; writing there is safe but for a second writer at the same time.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
# fcntl.h, linux/fs.h: two names change places in one step.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_locks: dict[Path, int] = {}
"""The descriptor that holds the lock of each temporary name in use."""


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
        with _locked(temporary, target):
            try:
                os.truncate(temporary, 0)  # what a killed writer left
                yield temporary
                _sync(temporary)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)
    except OSError as error:
        raise _file_error(error, target) from None


def hand_over(finished: Path, temporary: Path) -> None:
    """Rename a finished file over the one that :func:`atomic_path` gave; its lock goes along.

    After a plain rename nobody would hold the temporary name until it becomes the final one.
    """
    lock = _locks.get(temporary)
    if lock is None:
        os.replace(finished, temporary)
        return
    descriptor = os.open(finished, os.O_RDONLY)
    try:
        _lock(descriptor)
        os.replace(finished, temporary)
        os.dup2(descriptor, lock)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(target: str | Path, *, names: Collection[str], last: str) -> Iterator[Path]:
    """Give an empty folder to fill; its entries are those of ``target`` at the end of the block, or never.

    A target that is missing, or holds nothing but ``names``, becomes the new folder in one step. One that holds other
    things too, such as the checkpoints of a training run, keeps them: entries of the same name are replaced one by one,
    and ``last`` is missing from before the first until after the others, so that no mixture is ever read. It is
    replaced like that as well where the file system cannot exchange two folders.

    Args:
        target: A folder, or a link to one; it and those above it are made if missing.
        names: Entries that the writer may leave in ``target``.
        last: The entry without which nobody reads the others.

    Raises:
        FileError: ``target`` is no folder, is being written, or an operation failed; then the old entries are there.
    """
    target = Path(os.path.realpath(target))
    try:
        _make_folder(target.parent)
        if target.exists() and not target.is_dir():
            raise FileError(f"{target}: cannot make this folder: a file is there; give another name")
        temporary = temporary_name(target)
        if not _is_whole(target, names):
            temporary = target / temporary.name
        with _locked(temporary, target, folder=True), _held(target):
            try:
                _empty(temporary)
                yield temporary
                sync_tree(temporary)
                _place_folder(temporary, target, names, last)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise _file_error(error, target) from None


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target``, for who holds ``target``'s lock; what a killed process left there goes."""
    folder = temporary_name(target)
    folder = folder.with_name(folder.name.removesuffix("tmp") + "dir")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder of a folder, itself last."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            _sync(path)
    _sync_folder(folder)


def _file_error(error: OSError, target: Path) -> FileError:
    # Errors of write and fsync carry no name; those of a file that could not be opened do.
    return FileError(f"{error.filename or target}: {error.strerror or error}")


# ---- locks -----------------------------------------------------------------------------------------------------


@contextmanager
def _locked(temporary: Path, target: Path, *, folder: bool = False) -> Iterator[None]:
    """The file or folder of a temporary name, made if missing, locked while the block runs."""
    descriptor = _open_locked(temporary, target, folder)
    if descriptor is not None:
        _locks[temporary] = descriptor
    try:
        yield
    finally:
        if descriptor is not None:
            _locks.pop(temporary, None)
            with suppress(OSError):  # nothing was written through it
                os.close(descriptor)


def _open_locked(temporary: Path, target: Path, folder: bool) -> int | None:
    """Create or find the temporary file or folder; the returned descriptor holds its lock."""
    while True:
        try:
            descriptor = _open(temporary, folder)
        except FileNotFoundError:
            if temporary.parent.exists():
                continue  # a folder that its writer renamed after we found it
            raise
        if descriptor is None:
            return None
        try:
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise FileError(f"{target}: another process is writing it") from None
        # Between open and lock the writer before us may have renamed or removed the file that we hold.
        if _is_at(descriptor, temporary):
            os.set_inheritable(descriptor, True)  # a child that writes the file holds the lock even if we are killed
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """``OSError`` if somebody else holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _open(temporary: Path, folder: bool) -> int | None:
    """``None`` on Windows, where what is open cannot be renamed."""
    if folder:
        with suppress(FileExistsError):
            temporary.mkdir()
        if sys.platform == "win32":
            return None
        return os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    if sys.platform == "win32":
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """The lock of the folder that is replaced: it stands under the temporary name until it is removed."""
    if sys.platform == "win32" or not target.is_dir():
        yield
        return
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # somebody's who does not write it
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


# ---- from the temporary name to the final one -------------------------------------------------------------------


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Or new names in it may be lost in a power cut."""
    if sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _is_whole(target: Path, names: Collection[str]) -> bool:
    """Whether ``target`` can be replaced as a whole: nobody else's entries, and its place can be written to."""
    if not target.exists():
        return True
    same_device = target.stat().st_dev == target.parent.stat().st_dev
    return set(os.listdir(target)) <= set(names) and same_device and os.access(target.parent, os.W_OK)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot make this folder: {error.strerror or error}") from None


def _place_folder(temporary: Path, target: Path, names: Collection[str], last: str) -> None:
    """``target`` gets the entries of ``temporary``, a name that is free afterwards: for the next writer, too."""
    if not target.exists():
        os.rename(temporary, target)
        _sync_folder(target.parent)
    elif temporary.parent != target and _is_whole(target, names) and _exchange(temporary, target):
        try:
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    else:
        _place_entries(temporary, target, names, last)
        _sync_folder(target)
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Whether the two names changed places; not every system can do that."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _place_entries(temporary: Path, target: Path, names: Collection[str], last: str) -> None:
    """Move entry by entry, ``last`` away before and in its place after the others; undone if one cannot be moved."""
    others = sorted({*names, *os.listdir(temporary)} - {last})
    backup = temporary / ".old"
    backup.mkdir()
    moves = []
    for name in (last, *others):
        moves += [(target / name, backup / name)] if (target / name).exists() else []
        moves += [(temporary / name, target / name)] if name != last and (temporary / name).exists() else []
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in [*moves, (temporary / last, target / last)]:
            os.rename(source, destination)
            done.append((source, destination))
    except BaseException:
        for source, destination in reversed(done):
            with suppress(OSError):
                os.rename(destination, source)
        raise
