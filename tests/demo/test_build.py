"""The script that builds the demo model, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf import Otter
from otter_gguf.demo import DemoFiles, demo_files

ROOT = Path(__file__).resolve().parents[2]


def build(tmp_path: Path, name: str) -> DemoFiles:
    arguments = ["--stories", "600", "--pairs", "16", "--work", tmp_path / f"{name}-work", "--output", tmp_path / name]
    script = [sys.executable, ROOT / "benchmarks" / "demo_model" / "build.py", *arguments]
    subprocess.run([str(argument) for argument in script], check=True, timeout=600)
    return demo_files(tmp_path / name)


@pytest.mark.slow
def test_two_builds_from_nothing_give_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    first, second = build(tmp_path, "first"), build(tmp_path, "second")
    for name in ("base", "sidecar", "prompts"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes(), name
    with Otter(first.base, otter=first.sidecar, n_ctx=256, n_threads=1) as llm:
        assert llm.reward_labels == ("reward",)
    assert len(first.load_prompts()) >= 128


@pytest.mark.slow
def test_results_in_the_work_folder_are_not_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = build(tmp_path, "only").base.read_bytes()
    weights = tmp_path / "only-work" / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert build(tmp_path, "only").base.read_bytes() == made
    assert weights.stat().st_mtime_ns == before
