"""`otter-gguf train`: from an adapter, from a base, resumed, and what is refused."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_gguf.cli import insert, train
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.training import OtterModel
from otter_gguf.training.runs import checkpoints
from tests.refusals import assert_names, refused
from tests.training.mixed import mixed_otter, mixed_rows, table_of
from tests.training.toy import toy_folder, toy_rows, write_rows

FEW = ("--max-steps", 4, "--save-steps", 2, "--cpu", "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fresh adapter, and data."""
    path = tmp_path_factory.mktemp("train")
    toy_folder(path / "base")
    write_rows(path / "pairs.jsonl", toy_rows(40))
    write_rows(path / "held_out.jsonl", toy_rows(16, seed=1))
    call(insert, "--base", path / "base", "-o", path / "fresh", "--width", 8, "--inner", 12)
    return path


def call(verb: Any, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return int(verb.run(parser.parse_args([str(argument) for argument in arguments])))


def tensors(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return dict(OtterModel.from_pretrained(base, adapter).inserted_parameters())


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_trains_an_adapter_and_says_how_well(folder: Path, tmp_path: Path, capfd: Any) -> None:
    data = ("--data", folder / "pairs.jsonl", "--eval-data", folder / "held_out.jsonl")
    assert call(train, folder / "fresh", *data, "-o", tmp_path / "out", *FEW, "--json") == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert result["steps"] == 4
    assert {"train_loss", "eval_loss", "eval_accuracy", "eval_prefix_accuracy", "eval_margin"} <= result.keys()
    assert result["output"] == str(tmp_path / "out")
    assert_names(captured.err, "40 pairs", "0 cut", "0 dropped")
    before, after = tensors(folder / "base", folder / "fresh"), tensors(folder / "base", tmp_path / "out")
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_rewards_are_calibrated_unless_told(folder: Path, tmp_path: Path, capfd: Any) -> None:
    data = ("--data", folder / "pairs.jsonl", *FEW)
    call(train, folder / "fresh", *data, "-o", tmp_path / "calibrated")
    assert_names(capfd.readouterr().err, "reward", "calibrated")
    call(train, folder / "fresh", *data, "-o", tmp_path / "raw", "--no-calibrate")
    assert "calibrated" not in capfd.readouterr().err
    calibrated, raw = (tensors(folder / "base", tmp_path / name) for name in ("calibrated", "raw"))
    assert [name for name in raw if not torch.equal(raw[name], calibrated[name])] == [
        "heads.reward.otter.weight",
        "heads.reward.otter.bias",
    ]


def test_inserting_and_training_in_one_gives_the_same(folder: Path, tmp_path: Path) -> None:
    data = ("--data", folder / "pairs.jsonl", *FEW)
    call(train, folder / "fresh", *data, "-o", tmp_path / "a")
    call(train, "--base", folder / "base", "--width", 8, "--inner", 12, *data, "-o", tmp_path / "b")
    call(train, "--base", folder / "base", "--width", 8, "--inner", 12, *data, "-o", tmp_path / "c", "--seed", 1)
    first, second, other = (tensors(folder / "base", tmp_path / name) for name in "abc")
    assert same(first, second)
    assert not same(first, other)


def test_resumes_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    data = ("--data", folder / "pairs.jsonl", *FEW)
    call(train, folder / "fresh", *data, "-o", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    (tmp_path / "cut" / "otter_model.safetensors").unlink()
    call(train, "--resume", *data, "-o", tmp_path / "cut")
    assert same(tensors(folder / "base", tmp_path / "whole"), tensors(folder / "base", tmp_path / "cut"))


def test_a_run_is_replaced_only_by_force(folder: Path, tmp_path: Path) -> None:
    data = ("--data", folder / "pairs.jsonl", *FEW, "-o", tmp_path)
    call(train, folder / "fresh", *data)
    before = tensors(folder / "base", tmp_path)
    with refused(ConfigError, tmp_path, "--resume", "--force"):
        call(train, folder / "fresh", *data, "--lr", 0.01)
    assert same(tensors(folder / "base", tmp_path), before)
    call(train, folder / "fresh", *data, "--lr", 0.01, "--max-steps", 2, "--force")
    assert not same(tensors(folder / "base", tmp_path), before)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_rows_of_every_kind_from_several_files(folder: Path, tmp_path: Path, capfd: Any) -> None:
    mixed_otter(base=AutoModelForCausalLM.from_pretrained(folder / "base")).save_pretrained(tmp_path / "fresh")
    write_rows(tmp_path / "rows.jsonl", mixed_rows(40))
    table_of(mixed_rows(40)).to_parquet(str(tmp_path / "rows.parquet"))
    found = {}
    for name in ("rows.jsonl", "rows.parquet"):
        data = ("--data", tmp_path / name, "--eval-data", tmp_path / name)
        assert call(train, tmp_path / "fresh", *data, "-o", tmp_path / f"out-{name}", *FEW, "--json") == 0
        captured = capfd.readouterr()
        assert_names(captured.err, "16 pairs", "8 graded", "8 classed", "8 texts", "steps", "reward: mean")
        assert "grade: mean" not in captured.err
        found[name] = json.loads(captured.out)
        names = ("loss", "accuracy", "squared_error", "correlation", "class_accuracy", "step_accuracy")
        assert {f"eval_{name}" for name in names} <= found[name].keys()
        assert not any("runtime" in name or "_time" in name for name in found[name])
    first, second = (tensors(folder / "base", tmp_path / f"out-{name}") for name in found)
    assert same(first, second)


def test_steps_end_with_the_separator_given(folder: Path, tmp_path: Path) -> None:
    row = {"prompt": "a", "completions": [" b", " c"], "labels": [1, 0]}
    data = ("--data", write_rows(tmp_path / "rows.jsonl", [row] * 8), *FEW)
    found = []
    for number, separator in enumerate([(), ("--step-separator", "\n"), ("--step-separator", ";")]):
        call(train, folder / "fresh", *data, "-o", tmp_path / str(number), *separator)
        found.append(tensors(folder / "base", tmp_path / str(number)))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ("ADAPTER", "--base")),
        (["{folder}/fresh", "--width", "8"], ("ADAPTER", "width")),
        (["{folder}/fresh", "--head", "a"], ("ADAPTER", "head")),
        (["--resume", "--inner", "8"], ("--resume", "n_ff")),
        (["{folder}/fresh", "--lr", "0"], ("learning_rate", 0.0)),
        (["{folder}/fresh", "--batch-size", "0"], ("batch_size", 0, 1)),
        (["{folder}/fresh", "--max-length", "1"], ("max_length", 1, 2)),
    ],
)
def test_contradictions_are_refused(
    folder: Path, tmp_path: Path, arguments: list[str], names: tuple[object, ...]
) -> None:
    given = [argument.format(folder=folder) for argument in arguments]
    with refused(ConfigError, *names):
        call(train, *given, "--data", folder / "pairs.jsonl", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    with refused(FileError, folder / "nothing.jsonl", "No such file"):
        call(train, folder / "fresh", "--data", folder / "nothing.jsonl", "-o", tmp_path / "out")
    with refused(FileError, folder / "base" / "otter_config.json"):
        call(train, folder / "base", "--data", folder / "pairs.jsonl", "-o", tmp_path / "out")
    with refused(FileError, tmp_path / "out", "checkpoint"):
        call(train, "--resume", "--data", folder / "pairs.jsonl", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "base" / name, bare)
    with refused(FileError, bare, "tokenizer"):
        call(train, "--base", bare, "--width", 8, "--data", folder / "pairs.jsonl", "-o", tmp_path / "out")
