"""One way to write a file or a folder: under a temporary name beside it, synced, then renamed over the final name.

The final name therefore holds the old one or the whole new one at every moment, also after ``kill -9`` or a power
cut. The temporary name is fixed and locked: a second writer is refused, and what a killed one left is removed. Whatever
else stands under that name, such as an input or somebody's hard link to a file elsewhere, is left as it is.
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
_ATTEMPTS = 100
"""How often a temporary name is tried that other writers take and leave meanwhile."""
_NO_PLACES = (Path("/dev"), Path("/proc"), Path("/sys"))
"""Where names stand for something else than a file that can be replaced; /dev/shm is a folder as any other."""
_SHARED_MEMORY = Path("/dev/shm")
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


def check_target(target: Path, *, inputs: Sequence[str | Path] = (), force: bool = False) -> Path:
    """Refuse a target that is an input (also by another name), exists without ``force``, or cannot be replaced.

    Returns:
        Where the file will stand: the target, or what it leads to if it is a symbolic link, which then stays.
    """
    try:
        return _checked_target(target, inputs, force)
    except OSError as error:
        raise _file_error(error, target) from None


def _checked_target(target: Path, inputs: Sequence[str | Path], force: bool) -> Path:
    if not target.parent.is_dir():
        raise FileError(f"{target}: the folder {target.parent} does not exist")
    place = _followed(target)
    _check_place(target)
    _check_place(place, target)
    _check_inputs(temporary_name(place), target, inputs)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    for path in inputs:
        if _same_file(place, path):
            raise FileError(f"{target}: the output is the input {path}; give another name")
    if not stat.S_ISREG(mode):
        raise FileError(f"{target}: exists and is no regular file; give another name")
    if not force:
        raise FileError(f"{target}: exists already; give another name, or --force to replace it")
    return place


def same_target(path: str | Path, other: str | Path) -> bool:
    """Whether two outputs would be one file."""
    return os.path.realpath(path) == os.path.realpath(other)


@contextmanager
def atomic_path(target: str | Path, *, inputs: Sequence[str | Path] = (), force: bool = False) -> Iterator[Path]:
    """Give a temporary path to write ``target`` to; renamed at the end of the block, removed if the block raises.

    The writer may be another process, as long as it writes into the (empty) file that is there. What is replaced keeps
    its permissions; where ``target`` is a symbolic link, what it leads to is replaced, and the link stays.

    Raises:
        FileError: ``target`` is one of ``inputs``, exists without ``force``, is being written, or an operation failed.
    """
    target = Path(target)
    try:
        place = check_target(target, inputs=inputs, force=force)
        permissions = _permissions(place)
        temporary = temporary_name(place)
        descriptor = _new_locked_file(temporary, target, 0o666 if permissions is None else 0o600)
        with _holding(temporary, descriptor):
            try:
                yield temporary
                _sync(temporary)
                if permissions is not None:
                    temporary.chmod(permissions)
                os.replace(temporary, place)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(place.parent)
    except OSError as error:
        raise _file_error(error, target) from None


def _followed(target: Path) -> Path:
    """What a link leads to, if it is a file already. One that leads nowhere is refused: where would the file stand?"""
    if not target.is_symlink():
        return target
    if not _is_ours(os.lstat(target), target.parent):
        raise FileError(f"{target}: a symbolic link of another user; give another name")
    place = Path(os.path.realpath(target))
    if not place.exists():
        raise FileError(f"{target}: a symbolic link to {place}, which does not exist; give that name instead")
    return place


def _check_place(path: Path, target: Path | None = None) -> None:
    folder = Path(os.path.realpath(path.parent))
    bad = [place for place in _NO_PLACES if folder.is_relative_to(place)]
    if bad and not folder.is_relative_to(_SHARED_MEMORY):
        raise FileError(f"{target or path}: nothing can be replaced in {bad[0]}; give the name of a file")


def _check_inputs(temporary: Path, target: Path, inputs: Sequence[str | Path]) -> None:
    """What a killed writer left may be what somebody wants to rescue: an input is not removed."""
    place = Path(os.path.realpath(temporary))
    for path in inputs:
        if _same_file(temporary, path) or Path(os.path.realpath(path)).is_relative_to(place):
            raise FileError(
                f"{path}: the output {target} is written under the name {temporary} before it gets its own; rename "
                "the input, or give another name"
            )


def _same_file(path: Path, other: str | Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False  # one of them is not there


def _permissions(path: Path) -> int | None:
    """Of an existing file."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def _is_ours(status: os.stat_result, folder: Path) -> bool:
    """Whether we, or who owns the folder, made a file: in a folder for all, such as /tmp, anybody can plant one."""
    return sys.platform == "win32" or status.st_uid in (os.geteuid(), folder.stat().st_uid)


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
        _lock(descriptor, finished)
        os.replace(finished, temporary)
        os.dup2(descriptor, lock)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(
    target: str | Path, *, names: Collection[str], last: str, inputs: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """Give an empty folder to fill; its entries are those of ``target`` at the end of the block, or never.

    A target that is missing, or holds nothing but ``names``, becomes the new folder in one step. One that holds other
    things too, such as the checkpoints of a training run, keeps them: entries of the same name are replaced one by one,
    and ``last`` is missing from before the first until after the others, so that no mixture is ever read. It is
    replaced like that as well where the file system cannot exchange two folders.

    Args:
        target: A folder, or a link to one; it and those above it are made if missing.
        names: Entries that the writer may leave in ``target``.
        last: The entry without which nobody reads the others.
        inputs: Files and folders that are read meanwhile; none may lie where the new folder is filled.

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
        with _holding(temporary, _locked_folder(temporary, target, inputs)), _held(target):
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
    folder = temporary_name(_followed(target))
    folder = folder.with_name(folder.name.removesuffix("tmp") + "dir")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700)  # as what is replaced, its parts may not be for everybody
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
def _holding(temporary: Path, descriptor: int | None) -> Iterator[None]:
    """The lock that a descriptor holds is a temporary name's while the block runs."""
    if descriptor is not None:
        _locks[temporary] = descriptor
    try:
        yield
    finally:
        if descriptor is not None:
            _locks.pop(temporary, None)
            with suppress(OSError):  # nothing was written through it
                os.close(descriptor)


def _new_locked_file(temporary: Path, target: Path, permissions: int) -> int | None:
    """Create the temporary file; the returned descriptor holds its lock. None on Windows, where there are no locks."""
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions)
        except FileExistsError:
            _remove_left(temporary, target)
            continue
        if sys.platform == "win32":  # what is open cannot be renamed there
            os.close(descriptor)
            return None
        if _is_kept(descriptor, temporary, target):
            return descriptor
    raise _writes_too(target)


def _remove_left(temporary: Path, target: Path) -> None:
    """Remove what a killed writer left; ``FileError`` if it is anything else, or a writer is still there."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(FileNotFoundError):  # another one removed it
        descriptor = os.open(temporary, flags)
        try:
            status = os.fstat(descriptor)
            alone = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
            if not alone or not _is_ours(status, temporary.parent):
                raise _not_ours(temporary, target)
            if sys.platform != "win32":
                _lock(descriptor, target)
                if _is_at(descriptor, temporary):
                    temporary.unlink()
        finally:
            os.close(descriptor)
        if sys.platform == "win32":  # which removes no open file
            temporary.unlink()


def _not_ours(temporary: Path, target: Path) -> FileError:
    return FileError(
        f"{temporary}: under this name {target} is written before it gets its own, and what is there is no file of a "
        "writer of yours: another user's, or one with several names; remove it, or give another name"
    )


def _locked_folder(temporary: Path, target: Path, inputs: Sequence[str | Path]) -> int | None:
    """Create or find the temporary folder; the returned descriptor holds its lock. None on Windows."""
    _check_inputs(temporary, target, inputs)
    for _ in range(_ATTEMPTS):
        created = _make_new(temporary)
        if sys.platform == "win32":
            return None
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # a folder that its writer renamed after we found it
            continue
        if not created and not _is_ours(os.fstat(descriptor), temporary.parent):
            os.close(descriptor)
            raise _not_ours(temporary, target)
        if _is_kept(descriptor, temporary, target):
            return descriptor
    raise _writes_too(target)


def _make_new(folder: Path) -> bool:
    """Whether the folder was not there before."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _is_kept(descriptor: int, temporary: Path, target: Path) -> bool:
    """Lock what was opened; whether it still has its name then. If not, the descriptor is closed."""
    kept = False
    try:
        _lock(descriptor, target)
        # Between open and lock the writer before us may have renamed or removed the file that we hold.
        if _is_at(descriptor, temporary):
            os.set_inheritable(descriptor, True)  # a child that writes the file holds the lock even if we are killed
            kept = True
    finally:
        if not kept:
            os.close(descriptor)
    return kept


def _lock(descriptor: int, target: Path) -> None:
    """``FileError`` if somebody else holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _writes_too(target) from None


def _writes_too(target: Path) -> FileError:
    return FileError(f"{target}: another process is writing it; wait for it, or give another name")


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """The lock of the folder that is replaced: it stands under the temporary name until it is removed."""
    if sys.platform == "win32" or not target.is_dir():
        yield
        return
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(FileError):  # somebody's who does not write it
            _lock(descriptor, target)
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
