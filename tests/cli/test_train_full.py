"""`otter-gguf train --full`, and training on a GGUF base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_gguf.cli import insert, train
from otter_gguf.errors import ConfigError
from otter_gguf.training import load
from otter_gguf.training.full import FullRewardModel
from tests.cli.test_train import FEW, call
from tests.refusals import refused
from tests.training.native_toy import WORDS, native_base, write_gguf_base
from tests.training.toy import toy_base, toy_folder, toy_rows, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full")
    toy_folder(path / "base")
    write_gguf_base(path / "base.gguf", native_base(), *WORDS)
    write_rows(path / "pairs.jsonl", toy_rows(40))
    return path


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder).state_dict())


def test_a_full_reward_model_is_trained_saved_and_resumed(folder: Path, tmp_path: Path, capfd: Any) -> None:
    data = ("--data", folder / "pairs.jsonl", "--no-calibrate")
    heads = ("--head", "harmless", "--activation", "tanh")
    assert call(train, "--base", folder / "base", "--full", *heads, *data, "-o", tmp_path / "out", *FEW, "--json") == 0
    result = json.loads(capfd.readouterr().out)
    assert result["rewards"] == ["harmless"]
    assert result["insertion"]["width"] == 0
    assert (tmp_path / "out" / "base" / "tokenizer.json").exists()
    model = load(tmp_path / "out")
    assert isinstance(model, FullRewardModel)
    before = toy_base().state_dict()["model.layers.0.mlp.up_proj.weight"]
    change = (model.base_model.state_dict()["model.layers.0.mlp.up_proj.weight"] - before).abs().max()
    assert 0 < change <= 4.1 * 2e-5  # AdamW's steps are at most the learning rate

    whole = tensors(tmp_path / "out")
    for name in ("otter_config.json", "otter_model.safetensors", "base", "checkpoint-4"):
        path = tmp_path / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert call(train, "--resume", *data, "-o", tmp_path / "out", *FEW) == 0
    resumed = tensors(tmp_path / "out")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    with refused(ConfigError, tmp_path / "out" / "checkpoint-4", "base"):
        call(train, "--resume", "--base", folder / "base", *data, "-o", tmp_path / "out", *FEW)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--width", 8), ("--full", "width")),
        (("--vocabulary-rank", 4), ("--full", "vocabulary_rank")),
        (("--resume",), ("--resume", "full")),
        (("adapter",), ("ADAPTER", "full")),
    ],
)
def test_contradictions_are_refused(folder: Path, tmp_path: Path, arguments: Any, names: tuple[str, ...]) -> None:
    with refused(ConfigError, *names):
        call(train, *arguments, "--base", folder / "base", "--full", "--data", folder / "pairs.jsonl", "-o", tmp_path)


def test_a_gguf_file_is_a_base_as_any_other(folder: Path, tmp_path: Path) -> None:
    base = folder / "base.gguf"
    before = base.read_bytes()
    call(insert, "--base", base, "-o", tmp_path / "fresh", "--width", 8, "--inner", 12)
    call(train, tmp_path / "fresh", "--data", folder / "pairs.jsonl", "-o", tmp_path / "out", *FEW)
    fresh, trained = (load(tmp_path / name) for name in ("fresh", "out"))
    assert trained.base_name == str(base)
    assert base.read_bytes() == before
    for name, tensor in trained.inserted_parameters().items():
        assert not torch.equal(tensor, fresh.inserted_parameters()[name]), name
