"""What the linker and the compiler were told, read off the module itself (Linux)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf import _native
from tests.native.children import run_child

MODULE = Path(_native.__file__)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("readelf") is None or "asan" in str(MODULE),
    reason="needs readelf, and a module as users have it",
)


def readelf(*flags: str) -> str:
    return subprocess.run(["readelf", *flags, "-W", str(MODULE)], capture_output=True, text=True, check=True).stdout


def test_relocations_are_read_only_and_the_stack_is_no_code() -> None:
    assert "BIND_NOW" in readelf("-d")
    segments = {line.split()[0]: line for line in readelf("-l").splitlines() if line.startswith("  GNU_")}
    assert "GNU_RELRO" in segments
    assert "E" not in segments["GNU_STACK"].split()[-2]
    assert "TEXTREL" not in readelf("-d")
    assert "RPATH" not in readelf("-d")


def test_stacks_and_copies_are_guarded() -> None:
    symbols = readelf("--dyn-syms")
    for name in ("__stack_chk_fail", "__memcpy_chk", "__snprintf_chk"):
        assert name in symbols


def test_no_path_of_the_builder_is_inside() -> None:
    content = MODULE.read_bytes()
    for folder in {Path.home(), Path(__file__).parents[2]}:
        assert bytes(folder) + b"/" not in content
    assert b"llama.cpp/" in content  # what assertions name


def test_one_symbol_is_exported() -> None:
    defined = [line.split() for line in readelf("--dyn-syms").splitlines() if " UND " not in line]
    names = [parts[-1] for parts in defined if len(parts) == 8 and parts[4] == "GLOBAL"]
    assert names == ["PyInit__native"]


def test_no_debugger_is_started_by_an_assertion() -> None:
    code = """
    import ctypes, os
    os.environ.pop("GGML_NO_BACKTRACE", None)
    from otter_gguf import _native
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    print(getenv(b"GGML_NO_BACKTRACE").decode())
    """
    assert run_child(code) == "1\n"
