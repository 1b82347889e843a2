"""The script that builds the demo model, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf import Otter
from otter_gguf.demo import demo_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_build_from_nothing_and_again(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = ["--stories", "120", "--pairs", "16", "--work", tmp_path / "work"]
    for output in ("first", "second"):  # the second takes base and adapter from the work folder
        script = [sys.executable, ROOT / "benchmarks" / "demo_model" / "build.py", *arguments]
        subprocess.run([*map(str, script), "--output", str(tmp_path / output)], check=True, timeout=600)
    first, second = demo_files(tmp_path / "first"), demo_files(tmp_path / "second")
    for name in ("base", "sidecar", "prompts"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes(), name
    with Otter(first.base, otter=first.sidecar, n_ctx=256, n_threads=1) as llm:
        assert llm.reward_labels == ("reward",)
        assert len(first.load_prompts()) >= 128
