"""The build: fetching llama.cpp (a local archive stands in for the index), and what the package must hold."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import otter_gguf.converters
from tests.refusals import assert_names, refused

ROOT = Path(__file__).resolve().parents[1]
HELPER = ROOT / "cmake" / "fetch_llama_cpp.py"
FETCH = ROOT / "cmake" / "FetchLlamaCpp.cmake"
VERSION = "0.3.36"
TOP = f"llama_cpp_python-{VERSION}"
TREE = f"{TOP}/vendor/llama.cpp"

# The smallest source distribution that pip accepts: it asks the backend for metadata and for nothing else.
BACKEND = f"""
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "llama_cpp_python-{VERSION}.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {VERSION}\\n")
    return info.name
def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""
FILES = {
    f"{TOP}/PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {VERSION}\n",
    f"{TOP}/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    f"{TOP}/backend.py": BACKEND,
    f"{TREE}/CMakeLists.txt": "project(llama.cpp)\n",
    f"{TREE}/common/json.cpp": "// JSON\n",
    f"{TREE}/src/models/llama.cpp": "// model\n",
    f"{TREE}/models/templates/Some.jinja": "{{ messages }}\n",
    f"{TREE}/models/ggml-vocab.gguf": "not needed\n",
    f"{TREE}/docs/build.md": "not needed\n",
}


def load_helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_llama_cpp", HELPER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helper = load_helper()


def write_archive(folder: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    """A gzipped tar named as the source distribution, with files (text by name) and symbolic links (target by name)."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{TOP}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return archive


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_helper(cache: Path, index: Path, *hashes: str) -> subprocess.CompletedProcess[str]:
    """The helper as CMake runs it with the hashes of archive and tree; pip sees the folder ``index`` and no network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"OTTER_CACHE_DIR": str(cache), "PIP_FIND_LINKS": str(index)}
    environment |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(HELPER), VERSION, *hashes]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def leftovers(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir()) if cache.is_dir() else []


def test_fetch_unpacks_what_is_needed_and_reuses_it(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "index", FILES)
    digest = sha256(archive)

    first = run_helper(tmp_path / "cache", tmp_path / "index", digest)
    assert first.returncode == 0, first.stderr
    tree = Path(first.stdout.strip())
    assert_names(first.stderr, helper.tree_sha256(tree))
    found = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    assert found == ["CMakeLists.txt", "common/json.cpp", "models/templates/Some.jinja", "src/models/llama.cpp"]
    assert leftovers(tmp_path / "cache") == [tree.name]

    archive.unlink()  # from here on pip could not fetch it
    again = run_helper(tmp_path / "cache", tmp_path / "index", digest, helper.tree_sha256(tree))
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")


@pytest.fixture
def pinned(tmp_path: Path) -> tuple[Path, str, str]:
    """A fetched tree, the hash of its archive, and its own."""
    digest = sha256(write_archive(tmp_path / "index", FILES))
    tree = Path(run_helper(tmp_path / "cache", tmp_path / "index", digest).stdout.strip())
    return tree, digest, helper.tree_sha256(tree)


def link_for_folder(tree: Path) -> None:
    (tree / "common").rename(tree.parent / "moved")
    (tree / "common").symlink_to(tree.parent / "moved")


def folder_for_file(tree: Path) -> None:
    (tree / "CMakeLists.txt").unlink()
    (tree / "CMakeLists.txt").mkdir()
    (tree / "CMakeLists.txt" / "file").write_text("")


def nothing_but_a_name(tree: Path) -> None:
    shutil.rmtree(tree)
    (tree / "common").mkdir(parents=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a changed file": lambda tree: (tree / "CMakeLists.txt").write_text("evil\n"),
    "a missing file": lambda tree: (tree / "common" / "json.cpp").unlink(),
    "a missing folder": lambda tree: shutil.rmtree(tree / "common"),
    "another file": lambda tree: (tree / "src" / "stdio.h").write_text("evil\n"),
    "a link": lambda tree: (tree / "src" / "more").symlink_to(tree / "common"),
    "a link for a folder": link_for_folder,
    "a folder for a file": folder_for_file,
    "nothing but a name": nothing_but_a_name,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tree_that_was_changed_is_mended(change: str, pinned: tuple[Path, str, str], tmp_path: Path) -> None:
    """What is as it was keeps its time, so that llama.cpp is not compiled again."""
    tree, *hashes = pinned
    before = (tree / "src" / "models" / "llama.cpp").stat()
    CHANGES[change](tree)
    assert helper.tree_sha256(tree) != hashes[1]
    result = run_helper(tmp_path / "cache", tmp_path / "index", *hashes)
    assert result.stdout.strip() == str(tree), result.stderr
    assert helper.tree_sha256(tree) == hashes[1]
    if change != "nothing but a name":
        after = (tree / "src" / "models" / "llama.cpp").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_tree_that_was_changed_is_never_built(pinned: tuple[Path, str, str], tmp_path: Path) -> None:
    """Where it cannot be fetched again, the error says why it must be."""
    tree, *hashes = pinned
    (tree / "CMakeLists.txt").write_text("evil\n")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").mkdir()
    result = run_helper(tmp_path / "cache", tmp_path / "index", *hashes)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert_names(result.stderr, tree, helper.tree_sha256(tree), hashes[1], "pip")


def test_byte_code_of_the_converter_is_no_change(pinned: tuple[Path, str, str], tmp_path: Path) -> None:
    tree, *hashes = pinned
    (tree / "src" / "__pycache__").mkdir()
    (tree / "src" / "__pycache__" / "a.pyc").write_text("")
    shutil.rmtree(tmp_path / "index")
    assert run_helper(tmp_path / "cache", tmp_path / "index", *hashes).returncode == 0


def test_a_tree_that_the_archive_does_not_hold_is_refused(pinned: tuple[Path, str, str], tmp_path: Path) -> None:
    _, digest, tree_hash = pinned
    shutil.rmtree(tmp_path / "cache")
    result = run_helper(tmp_path / "cache", tmp_path / "index", digest, "0" * 64)
    assert result.returncode == 1
    assert_names(result.stderr, tree_hash, "0" * 64)
    assert leftovers(tmp_path / "cache") == []


def test_the_pinned_tree_is_what_is_built() -> None:
    """Where it is in the cache: the value in FetchLlamaCpp.cmake is that of its files."""
    pins = dict(re.findall(r'set\((OTTER_LLAMA_CPP_\w+) "([^"]+)"\)', FETCH.read_text("utf-8")))
    version, digest = pins["OTTER_LLAMA_CPP_SDIST"], pins["OTTER_LLAMA_CPP_SHA256"]
    tree = helper.cache_dir() / f"llama.cpp-{version}-{digest[:12]}"
    if not tree.is_dir():
        pytest.skip("no tree in the cache")
    assert helper.tree_sha256(tree) == pins["OTTER_LLAMA_CPP_TREE_SHA256"]


def test_another_pinned_archive_gets_another_folder(tmp_path: Path) -> None:
    digest = sha256(write_archive(tmp_path / "index", FILES))
    first = run_helper(tmp_path / "cache", tmp_path / "index", digest)
    other = sha256(write_archive(tmp_path / "index", FILES | {f"{TREE}/LICENSE": "MIT\n"}))
    second = run_helper(tmp_path / "cache", tmp_path / "index", other)
    assert first.returncode == second.returncode == 0
    assert first.stdout != second.stdout


def test_fetch_without_network_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    result = run_helper(tmp_path / "cache", tmp_path / "index", "0" * 64)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert_names(result.stderr, "pip", VERSION, "-DOTTER_LLAMA_CPP_DIR")
    assert leftovers(tmp_path / "cache") == []


def test_fetch_refuses_another_archive(tmp_path: Path) -> None:
    digest = sha256(write_archive(tmp_path / "index", FILES))
    expected = digest.replace(digest[0], "0" if digest[0] != "0" else "1")
    result = run_helper(tmp_path / "cache", tmp_path / "index", expected)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert_names(result.stderr, digest, expected)
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("is_pinned", [False, True])
def test_nothing_of_an_unchecked_archive_runs(is_pinned: bool, tmp_path: Path) -> None:
    """pip asks the build backend for metadata; of the pinned archive alone."""
    evil = {f"{TOP}/backend.py": f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{BACKEND}"}
    digest = sha256(write_archive(tmp_path / "index", FILES | evil))
    result = run_helper(tmp_path / "cache", tmp_path / "index", digest if is_pinned else "0" * 64)
    assert result.returncode == (0 if is_pinned else 1), result.stderr
    assert (tmp_path / "ran").exists() is is_pinned
    if not is_pinned:
        assert_names(result.stderr, digest, "0" * 64)


def test_fetch_names_a_cache_it_cannot_write(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    with refused(helper.FetchError, cache, "OTTER_CACHE_DIR"):
        helper.fetch(VERSION, "0" * 64, cache)


def test_hash_of_the_pinned_archive_passes_and_of_a_truncated_one_does_not(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, FILES)
    digest = sha256(archive)
    helper.check_sha256(archive, digest)
    archive.write_bytes(archive.read_bytes()[:-1])
    with refused(helper.FetchError, archive.name, digest):
        helper.check_sha256(archive, digest)


@pytest.mark.parametrize("keep", [0, 10, 200, 500])
def test_unpack_refuses_a_truncated_archive(tmp_path: Path, keep: int) -> None:
    archive = write_archive(tmp_path, FILES)
    archive.write_bytes(archive.read_bytes()[:keep])
    with refused(helper.FetchError, archive.name):
        helper.unpack(archive, tmp_path / "tree")


@pytest.mark.parametrize(
    "name", [f"{TREE}/src/../../../../escaped", "/escaped", "../escaped", f"{TREE}/src/..\\..\\escaped"]
)
def test_unpack_refuses_a_path_that_leaves_the_archive(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / "index", FILES | {name: "outside\n"})
    with refused(helper.FetchError, archive.name, repr(name)):
        helper.unpack(archive, tmp_path / "deep" / "er" / "tree")
    assert not list(tmp_path.rglob("escaped"))


def test_unpack_refuses_a_link_among_the_needed_files_only(tmp_path: Path) -> None:
    harmless = write_archive(tmp_path / "a", FILES, {f"{TREE}/docs/link": "/etc/passwd"})
    helper.unpack(harmless, tmp_path / "tree")
    harmful = write_archive(tmp_path / "b", FILES, {f"{TREE}/src/link": "/etc/passwd"})
    with refused(helper.FetchError, f"'{TREE}/src/link'"):
        helper.unpack(harmful, tmp_path / "other")


def test_unpack_refuses_an_archive_without_the_tree(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, {f"{TOP}/PKG-INFO": "Name: llama-cpp-python\n"})
    with refused(helper.FetchError, "vendor/llama.cpp"):
        helper.unpack(archive, tmp_path / "tree")


def test_folders_of_killed_runs_are_removed_and_young_ones_kept(tmp_path: Path) -> None:
    for name in (".fetch-old", ".fetch-young", "llama.cpp-tree"):
        (tmp_path / name / "inside").mkdir(parents=True)
    for name in (".fetch-old", "llama.cpp-tree"):
        os.utime(tmp_path / name, (time.time() - 2 * helper.STALE_SECONDS,) * 2)
    helper.remove_stale(tmp_path)
    assert leftovers(tmp_path) == [".fetch-young", "llama.cpp-tree"]


def test_publish_beside_a_faster_build(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("the same")
    inode = (tmp_path / "theirs" / "file").stat().st_ino
    helper.publish(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "file").stat().st_ino == inode
    helper.publish(tmp_path / "mine", tmp_path / "free")
    assert (tmp_path / "free" / "file").read_text() == "the same"
    with pytest.raises(OSError, match="missing"):
        helper.publish(tmp_path / "mine", tmp_path / "missing" / "folder")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OTTER_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert helper.cache_dir() == tmp_path / "xdg" / "otter-gguf"
    monkeypatch.setenv("OTTER_CACHE_DIR", str(tmp_path / "own"))
    assert helper.cache_dir() == tmp_path / "own"


def configure(tmp_path: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    """CMake's configure step with the given llama.cpp tree."""
    beside = Path(sys.executable).parent
    cmake = shutil.which("cmake", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("needs cmake")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DOTTER_LLAMA_CPP_DIR={tree}"]
    command.append(f"-DPython_EXECUTABLE={sys.executable}")
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_configure_refuses_a_folder_that_is_no_llama_cpp(tmp_path: Path) -> None:
    result = configure(tmp_path, tmp_path)
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert_names(message, tmp_path, "CMakeLists.txt", "missing", "OTTER_LLAMA_CPP_DIR")


def native_symbols(*options: str) -> list[str]:
    """Symbols of the compiled module, by nm."""
    native = pytest.importorskip("otter_gguf._native")
    nm = shutil.which("nm")
    if nm is None or sys.platform != "linux":
        pytest.skip("needs nm and ELF")
    listing = subprocess.run([nm, *options, native.__file__], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listing.stdout.splitlines()]


def test_module_exports_its_entry_point_and_no_symbol_of_llama_cpp() -> None:
    assert native_symbols("--dynamic", "--defined-only") == ["PyInit__native"]


def test_module_needs_no_llama_cpp_and_no_openmp_at_run_time() -> None:
    needed = native_symbols("--dynamic", "--undefined-only")
    assert any(name.startswith("PyObject_") for name in needed)
    assert not [name for name in needed if name.startswith(("llama_", "ggml_", "gguf_", "GOMP_", "omp_", "__kmpc"))]


def shipped_converter() -> Path:
    for folder in otter_gguf.converters.__path__:
        if Path(folder, "llama_cpp").is_dir():
            return Path(folder, "llama_cpp")
    pytest.fail("llama.cpp's converter is not installed (otter_gguf/converters/llama_cpp)")


@pytest.mark.parametrize(
    "name", ["LICENSE", "convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/constants.py", "gguf-py/LICENSE"]
)
def test_llama_cpp_converter_is_shipped_with_its_licence(name: str) -> None:
    assert (shipped_converter() / name).is_file()


def test_converters_of_the_clone_are_importable_and_unknown_ones_are_not() -> None:
    assert importlib.util.find_spec("otter_gguf.converters.convert_otter_to_gguf") is not None
    assert importlib.util.find_spec("otter_gguf.converters.no_such_converter") is None
