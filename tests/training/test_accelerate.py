"""Two processes train as one with the same global batch: through accelerate, on the CPU with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from otter_gguf.training.renamed import CHECKPOINTING
from otter_gguf.training.runs import checkpoint_problem

ROOT = Path(__file__).parents[2]
WORKER = "tests.training.accelerate_worker"

pytestmark = pytest.mark.slow


def run(output: Path, processes: int, batch: int, *options: str) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", WORKER, str(output), str(batch), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads((output / "log.json").read_text())
    assert record["processes"] == processes
    return record


def figures(record: dict[str, Any]) -> Tensor:
    """Every logged figure but times."""
    timed = ("_runtime", "_per_second", "epoch", "step", "total_flos")
    values = [value for line in record["log"] for name, value in sorted(line.items()) if not name.endswith(timed)]
    assert len(values) > 60
    return torch.tensor(values)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("single")
    run(output, 1, 8)
    return output


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_train_as_one(single: Path, tmp_path: Path, checkpointing: bool) -> None:
    record = run(tmp_path, 2, 4, f"{CHECKPOINTING}={checkpointing}")
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    saved = load_file(tmp_path / "checkpoint-6" / "otter_model.safetensors")
    expected = load_file(single / "rank0.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        assert torch.equal(ranks[0][name], saved[name]), name
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-5, rtol=0, msg=name)
    found, one = figures(record), figures(json.loads((single / "log.json").read_text()))
    torch.testing.assert_close(found, one, atol=1e-5, rtol=1e-5)
    assert checkpoint_problem(tmp_path / "checkpoint-6") is None
    assert (tmp_path / "checkpoint-6" / "rng_state_1.pth").exists()


def test_another_global_batch_trains_otherwise(single: Path, tmp_path: Path) -> None:
    run(tmp_path, 1, 4)
    expected, other = (load_file(folder / "rank0.safetensors") for folder in (single, tmp_path))
    assert max(float((tensor - other[name]).abs().max()) for name, tensor in expected.items()) > 1e-3
