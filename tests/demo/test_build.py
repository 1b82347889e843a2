"""The script that builds the demo model, in small."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf import Otter
from otter_gguf.demo import DemoFiles, demo_files

ROOT = Path(__file__).resolve().parents[2]


def build(tmp_path: Path, name: str, *more: str | Path) -> DemoFiles:
    arguments = ["--stories", "600", "--pairs", "16", "--work", tmp_path / f"{name}-work", "--output", tmp_path / name]
    script = [sys.executable, ROOT / "benchmarks" / "demo_model" / "build.py", *arguments, *more]
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
        assert llm.vocabulary_heads == ("next",)
    assert len(first.load_prompts()) >= 128


@pytest.mark.slow
def test_results_in_the_work_folder_are_not_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = build(tmp_path, "only").base.read_bytes()
    weights = tmp_path / "only-work" / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert build(tmp_path, "only").base.read_bytes() == made
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_given_base_is_kept_and_the_insertion_is_fitted_to_it(tmp_path: Path) -> None:
    """Here to the shipped base, which lies where the results go: nothing of it is written."""
    pytest.importorskip("torch")
    shipped, name = demo_files(), "again"
    target = DemoFiles.in_folder(tmp_path / name)
    target.base.parent.mkdir()
    shutil.copyfile(shipped.base, target.base)
    before = target.base.stat().st_mtime_ns
    made = build(tmp_path, name, "--base", target.base)
    assert made.base.stat().st_mtime_ns == before
    assert made.base.read_bytes() == shipped.base.read_bytes()
    assert not (tmp_path / f"{name}-work" / "base").exists()
    with Otter(shipped.base, otter=made.sidecar, n_ctx=256, n_threads=1) as llm:  # refuses one for another base
        assert llm.vocabulary_heads == ("next",)
    assert made.sidecar.read_bytes() != shipped.sidecar.read_bytes()  # 16 pairs
