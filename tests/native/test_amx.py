"""Intel's AMX: another library of the process may release the tiles that ggml configures once a thread."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.native.children import run_child

TILERELEASE = bytes.fromhex("c4e27849c0c3")
"""The instruction, and a return."""

CODE = f"""
import ctypes, mmap
from otter_gguf import Otter
from otter_gguf.demo import demo_files

page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write({TILERELEASE!r})
release_tiles = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

files = demo_files()
with Otter(files.base, otter=files.sidecar) as llm:
    text = "Once there was a mouse. " * 8
    before = llm.score(text).rewards
    release_tiles()
    assert (llm.score(text).rewards == before).all()
"""


def has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpuinfo.exists() and " amx_tile" in cpuinfo.read_text()


@pytest.mark.skipif(not has_amx(), reason="this processor has no AMX")
def test_tiles_that_another_library_released() -> None:
    """As PyTorch does after each of its own kernels; without a remedy the next prompt is SIGILL."""
    run_child(CODE)
