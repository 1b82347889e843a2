"""Fetch the pinned llama.cpp: the source distribution of llama-cpp-python holds it, unpatched.

    python fetch_llama_cpp.py VERSION SHA256        prints the folder of the unpacked tree

The build runs this. pip does the download, so that the user's own index, proxy and certificates count. The archive is
checked by sha256, what the build needs of it is unpacked beside its final place in the cache and renamed into it, so
that an interrupted run leaves nothing that a later run could take for the whole. Standard library only: it runs
before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
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
# The part that a tree in the cache lacks if a version of this package unpacked it that did not need it.
LATEST = "common"
STALE_SECONDS = 24 * 3600


class FetchError(Exception):
    """Why there is no source tree, and what to do: one line."""


def cache_dir() -> Path:
    """``$OTTER_CACHE_DIR``, else ``otter-gguf`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("OTTER_CACHE_DIR"):
        return Path(own).expanduser().resolve()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "otter-gguf"


def download(version: str, folder: Path) -> Path:
    """The source distribution, fetched into ``folder`` by the pip of this interpreter."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", f"{PROJECT}=={version}"]
    command += ["--dest", str(folder), "--no-deps", "--no-binary", PROJECT, "--progress-bar", "off"]
    if importlib.util.find_spec("scikit_build_core"):
        # pip asks the archive's build backend for metadata; with the backend at hand it need not install another.
        command.append("--no-build-isolation")
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    archives = sorted(folder.glob("*.tar.gz"))
    if result.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"pip cannot download the source of {PROJECT} {version} ({pip_reason(result)}); check the network and "
            f"pip's index settings (pip config list), {INSTEAD}"
        )
    return archives[0]


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
        raise FetchError(
            f"{archive.name} has sha256 {digest.hexdigest()}, expected {expected}: the download is damaged or the "
            f"index serves another file; try again, use another index, {INSTEAD}"
        )


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


def fetch(version: str, sha256: str, cache: Path) -> Path:
    """The unpacked tree of this version in ``cache``; fetched only when it is not there yet, or not whole."""
    tree = cache / f"llama.cpp-{version}-{sha256[:12]}"
    if (tree / LATEST).exists():
        return tree
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_stale(cache)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            archive = download(version, Path(scratch))
            check_sha256(archive, sha256)
            unpack(archive, Path(scratch) / "tree")
            publish(Path(scratch) / "tree", tree)
    except OSError as error:
        raise FetchError(f"cannot write the cache {cache}: {error}; set OTTER_CACHE_DIR, {INSTEAD}") from error
    return tree


def publish(complete: Path, tree: Path) -> None:
    """Give the tree its name. Another build may have been faster, or have needed less: its tree gets what it lacks."""
    try:
        complete.rename(tree)
    except OSError:
        if not tree.is_dir():
            raise
        for part in complete.iterdir():
            if not (tree / part.name).exists():
                publish(part, tree / part.name)


def main(arguments: list[str]) -> int:
    """Print the tree's folder; on failure one line on stderr and exit status 1."""
    version, sha256 = arguments
    try:
        print(fetch(version, sha256, cache_dir()).as_posix())
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
