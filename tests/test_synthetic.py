"""The generator of random models (benchmarks/synthetic.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from otter_gguf import _native
from tests.refusals import assert_names
from tests.synthetic_models import TEXT, load, pair

SCRIPT = Path(synthetic.__file__)


def generate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--output", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_every_type_loads_and_gives_sane_logits(type: str) -> None:
    with load(pair(type)) as llm:
        llm.create_completion(TEXT, max_tokens=3, temperature=0)
        logits = llm.context.logits()
        assert np.isfinite(logits).all()
        assert 0.3 < logits.std() < 3
        rewards = llm.score(TEXT).rewards
        assert np.isfinite(rewards).all()
        assert rewards.std() > 0.1


def test_script_writes_both_files(tmp_path: Path) -> None:
    run = generate(tmp_path / "new", "--type", "q4_0", "--otter-type", "f16", "--width", "32", "--inner", "0")
    assert run.returncode == 0, run.stderr
    with _native.GgufFile(str(tmp_path / "new" / "synthetic.otter.gguf")) as file:
        types = {tensor.name: tensor.type for tensor in file.tensors}
    assert types["blk.0.attn_qkv.otter.weight"] == "F16"
    assert types["blk.0.attn_norm.otter.weight"] == "F32"
    assert not any("ffn" in name for name in types)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert generate(tmp_path / name, "--seed", seed).returncode == 0
    first, second, third = ((tmp_path / name / "base.gguf").read_bytes() for name in "abc")
    assert first == second != third


@pytest.mark.parametrize("arguments", [["--width", "4000"], ["--width", "-1"], ["--labels", "a,a"]])
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str]) -> None:
    run = generate(tmp_path, *arguments)
    assert run.returncode == 2
    assert run.stderr.startswith("synthetic: ")
    assert run.stderr.count("\n") == 1


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    run = generate(tmp_path, "--type", "Q9")
    assert run.returncode == 2
    assert_names(run.stderr, "--type", "'Q9'")


@pytest.mark.parametrize("name", ["1b", "8b"])
def test_large_geometries_are_those_of_llama(name: str) -> None:
    geometry = synthetic.GEOMETRIES[name]
    tensors = {tensor.name: tensor for tensor in synthetic.base_tensors(geometry, "Q4_0")}
    parameters = sum(tensor.n_values for tensor in tensors.values())
    assert parameters == {"1b": 1_235_814_432, "8b": 8_030_261_312}[name]
    assert ("output.weight" in tensors) == (name == "8b")
    assert tensors["token_embd.weight"].type == {"1b": "Q6_K", "8b": "Q4_0"}[name]
    assert tensors["rope_freqs.weight"].shape == (geometry.base.head_dim // 2,)


def test_rope_frequencies_are_llama_3s() -> None:
    """Unscaled where the wave is short, by the whole factor where it is long, in between in between."""
    freqs = synthetic.rope_freqs(synthetic.GEOMETRIES["1b"])
    assert freqs[0] == 1
    assert freqs[-1] == 32
    assert (np.diff(freqs) >= 0).all()
    assert 1 < freqs[np.searchsorted(freqs, 1, side="right")] < 32
