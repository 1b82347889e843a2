"""The commands and the code of docs/interoperability.md work as they stand."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from otter_gguf.cli import train
from otter_gguf.training import OtterModel, OtterRewardModel
from tests.documents import DOCS, fenced
from tests.training.toy import toy_base, toy_folder, toy_otter, toy_rows, write_rows

ROOT = Path(__file__).parents[2]
DOCUMENT = DOCS / "interoperability.md"
SIZES = {"hidden_size": 64, "intermediate_size": 256}


def block(word: str) -> str:
    """The one Python block that mentions a word."""
    (code,) = (code for code in fenced(DOCUMENT, "python") if word in code)
    return code


def execute(code: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "docs"}
    exec(compile(code, DOCUMENT.name, "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_folder(tmp_path / "base-folder", **SIZES)
    write_rows(tmp_path / "pairs.jsonl", toy_rows(64))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_every_block_has_its_test() -> None:
    assert len(fenced(DOCUMENT, "python")) == 3
    assert len({block(word) for word in ("RewardTrainer", "PeftModel", "BitsAndBytesConfig")}) == 3


def test_trl(folder: Path) -> None:
    names = execute(block("RewardTrainer"))
    assert (folder / "harmless" / "otter_model.safetensors").exists()
    trained, loaded = names["model"], names["reward_model"]
    assert isinstance(trained, OtterModel)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(OtterRewardModel(trained)(tokens).logits, loaded(tokens).logits)  # type: ignore[operator]


def test_lora(folder: Path) -> None:
    adapted = get_peft_model(toy_base(**SIZES), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(folder / "lora-folder"))
    names = execute(block("PeftModel"))
    tokens = torch.tensor([[5, 6, 7]])
    model, merged = names["model"], names["merged"]
    assert isinstance(model, OtterModel)
    assert isinstance(merged, OtterModel)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, adapted.eval()(tokens).logits)
        torch.testing.assert_close(model.rewards(tokens), merged.rewards(tokens), atol=1e-4, rtol=0)


def test_quantized(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = execute(block("BitsAndBytesConfig"))["model"]
    assert isinstance(model, OtterModel)
    with torch.no_grad():
        assert torch.isfinite(model.rewards(torch.tensor([[5, 6, 7]]))).all()


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in "".join(fenced(DOCUMENT, "sh")).splitlines()]


def test_commands_are_understood() -> None:
    assert [command[0] for command in commands()] == ["accelerate", "torchrun"]
    for command in commands():
        start = command.index("-m")
        assert command[start : start + 3] == ["-m", "otter_gguf.cli.main", "train"]
        parser = argparse.ArgumentParser()
        train.add_arguments(parser)
        parser.parse_args(command[start + 3 :])


@pytest.mark.slow
def test_torchrun_trains(folder: Path) -> None:
    _, *arguments = commands()[1]
    model = toy_otter(base=toy_base(**SIZES))
    model.base_name = str(folder / "base-folder")
    model.save_pretrained(folder / "fresh")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    trained = OtterModel.from_pretrained(None, folder / "harmless").inserted_parameters()
    before = model.inserted_parameters()
    assert [name for name, tensor in trained.items() if torch.equal(tensor, before[name])] == []
