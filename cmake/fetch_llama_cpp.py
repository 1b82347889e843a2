"""Fetch the pinned llama.cpp: the source distribution of llama-cpp-python holds it, unpatched.

    python fetch_llama_cpp.py VERSION SHA256 [TREE_SHA256]        prints the folder of the unpacked tree

The build runs this. pip does the download, so that the user's own index, proxy and certificates count; it compares
SHA256 with the archive before it runs anything of it. What the build needs is unpacked beside its final place in the
cache and renamed into it, so that an interrupted run leaves nothing that a later run could take for the whole. A tree
in the cache is used if its files are the pinned ones: TREE_SHA256 is the hash of them all. Without it the archive is
fetched each time, and stderr says that hash. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath

PROJECT = "llama-cpp-python"
INSTEAD = "or pass -DOTTER_LLAMA_CPP_DIR=<unpacked llama.cpp tree>"

# What the module is compiled from and what llama.cpp's converter reads: 40 of 176 MB.
NEEDED = (
    "CMakeLists.txt",
    "LICENSE",
    "licenses",
    "cmake",
    "common",
    "include",
    "src",
    "ggml",
    "vendor",
    "convert_hf_to_gguf.py",
    "conversion",
    "gguf-py",
    "models/templates",
)
BYTE_CODE = "__pycache__"
"""What Python leaves where the converter has run from the tree. Nothing is compiled or installed from it."""
STALE_SECONDS = 24 * 3600


class FetchError(Exception):
    """Why there is no source tree, and what to do: one line."""


def cache_dir() -> Path:
    """``$OTTER_CACHE_DIR``, else ``otter-gguf`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("OTTER_CACHE_DIR"):
        return Path(own).expanduser().resolve()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "otter-gguf"


def download(version: str, sha256: str, folder: Path) -> Path:
    """The source distribution, fetched into ``folder`` by the pip of this interpreter.

    pip asks the archive's build backend for metadata, so it must know the hash: it compares that first.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PROJECT}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-r", str(requirement)]
    command += ["--require-hashes", "--dest", str(folder), "--no-deps", "--no-binary", PROJECT, "--progress-bar", "off"]
    if importlib.util.find_spec("scikit_build_core"):
        command.append("--no-build-isolation")  # with the backend at hand pip need not install another
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    archives = sorted(folder.glob("*.tar.gz"))
    if found := other_sha256(result, sha256):
        raise FetchError(refusal(f"{PROJECT}-{version}.tar.gz", found, sha256))
    if result.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"pip cannot download the source of {PROJECT} {version} ({pip_reason(result)}); check the network and "
            f"pip's index settings (pip config list), {INSTEAD}"
        )
    return archives[0]


def other_sha256(result: subprocess.CompletedProcess[str], expected: str) -> str | None:
    """The hash of an archive that pip refused for it."""
    hashes = set(re.findall(r"\b[0-9a-f]{64}\b", result.stdout + result.stderr)) if result.returncode else set()
    return min(hashes - {expected}) if expected in hashes and len(hashes) == 2 else None


def refusal(name: str, found: str, expected: str) -> str:
    """What to say of an archive with another hash."""
    return (
        f"{name} has sha256 {found}, expected {expected}: the download is damaged or the index serves another file; "
        f"try again, use another index, {INSTEAD}"
    )


def pip_reason(result: subprocess.CompletedProcess[str]) -> str:
    """The line of pip's output that says most: its first error, else the last line."""
    lines = [line.strip() for line in (result.stdout + "\n" + result.stderr).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or [f"exit status {result.returncode}"])[0]


def check_sha256(archive: Path, expected: str) -> None:
    """Refuse an archive that is not the pinned one, bit by bit."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise FetchError(refusal(archive.name, digest.hexdigest(), expected))


def unpack(archive: Path, target: Path) -> None:
    """Write the needed files below ``vendor/llama.cpp`` of the archive into the new folder ``target``."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                write_member(tar, member, target)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise FetchError(f"cannot unpack {archive.name} into {target.parent}: {error}") from error
    if not target.is_dir():
        raise FetchError(f"{archive.name} holds no vendor/llama.cpp: not a source distribution of {PROJECT}")


def write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One file of the archive, if needed. A name that leaves the archive's folder condemns the whole archive."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise ValueError(f"unsafe path {member.name!r}")
    inner = PurePosixPath(*path.parts[3:])
    if path.parts[1:3] != ("vendor", "llama.cpp") or not any(inner.is_relative_to(needed) for needed in NEEDED):
        return
    if member.isdir():
        return
    source = tar.extractfile(member) if member.isreg() else None
    if source is None:
        raise ValueError(f"{member.name!r} is neither a file nor a folder")
    file = target.joinpath(*inner.parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    with source, file.open("xb") as copy:
        shutil.copyfileobj(source, copy)
    os.utime(file, (member.mtime, member.mtime))  # a tree that is fetched again compiles nothing again


def remove_stale(cache: Path) -> None:
    """Remove what killed runs left, but nothing that a run beside this one is still writing."""
    for folder in cache.glob(".fetch-*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def tree_sha256(tree: Path) -> str:
    """The hash of all files of a tree, with their names; "" if there is none, or something else than files in it."""
    digest = hashlib.sha256()
    for path in tree_files(tree):
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(tree).as_posix()}\n".encode())
    return digest.hexdigest() if tree.is_dir() else ""


def tree_files(tree: Path) -> list[Path]:
    """Everything below ``tree`` but folders and byte code, sorted by name; a link to a folder is no folder."""
    found = []
    for place, folders, files in os.walk(tree):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*files, *links)]
        folders[:] = [name for name in folders if name != BYTE_CODE and name not in links]
    return sorted(found, key=lambda path: path.relative_to(tree).as_posix())


def fetch(version: str, sha256: str, cache: Path, tree_hash: str | None = None) -> Path:
    """The unpacked tree of this version in ``cache``; fetched unless the one that is there is the pinned one."""
    tree = cache / f"llama.cpp-{version}-{sha256[:12]}"
    try:
        if tree_hash and tree_sha256(tree) == tree_hash:
            return tree
        cache.mkdir(parents=True, exist_ok=True)
        remove_stale(cache)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            archive = download(version, sha256, Path(scratch))
            check_sha256(archive, sha256)
            unpack(archive, Path(scratch) / "tree")
            found = tree_sha256(Path(scratch) / "tree")
            if tree_hash and found != tree_hash:
                raise FetchError(
                    f"{archive.name} holds a tree of sha256 {found}, expected {tree_hash}: cmake/FetchLlamaCpp.cmake "
                    "pins an archive and a tree that do not belong together"
                )
            publish(Path(scratch) / "tree", tree)
    except FetchError as error:
        raise FetchError(f"{changed(tree, tree_hash)}{error}") from None
    except OSError as error:
        raise FetchError(f"cannot write the cache {cache}: {error}; set OTTER_CACHE_DIR, {INSTEAD}") from error
    if not tree_hash:
        print(f"the tree has sha256 {found}", file=sys.stderr)
    return tree


def changed(tree: Path, tree_hash: str | None) -> str:
    """What to say first of a tree in the cache that cannot be used."""
    if not tree_hash or not tree.is_dir():
        return ""
    return f"{tree} is not the pinned tree (sha256 {tree_sha256(tree)}, expected {tree_hash}) and must be fetched; "


def publish(complete: Path, tree: Path) -> None:
    """Give the tree its name. Where one is already, what differs is replaced file by file, and what is too much goes:
    the rest keeps its times, so that it is not compiled again, and a build beside this one its files."""
    try:
        complete.rename(tree)
        return
    except OSError:
        if not tree.is_dir():
            raise
    names = {path.relative_to(complete) for path in tree_files(complete)}
    for path in tree_files(tree):
        if path.relative_to(tree) not in names:
            path.unlink(missing_ok=True)
    for name in sorted(names):
        if not is_same_file(complete / name, tree / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            if (tree / name).is_dir():
                shutil.rmtree(tree / name)
            os.replace(complete / name, tree / name)


def is_same_file(path: Path, other: Path) -> bool:
    """Whether both are files with the same content."""
    try:
        return stat.S_ISREG(other.lstat().st_mode) and path.read_bytes() == other.read_bytes()
    except FileNotFoundError:
        return False


def main(arguments: list[str]) -> int:
    """Print the tree's folder; on failure one line on stderr and exit status 1."""
    version, sha256, *tree_hash = arguments
    try:
        print(fetch(version, sha256, cache_dir(), *tree_hash).as_posix())
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
