"""Vocabulary heads from the command line: inserted beside the heads of --head, distilled in the same run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.refusals import refused

pytest.importorskip("torch")

from otter_gguf.cli import insert, train
from otter_gguf.cli._common import given
from otter_gguf.cli.insert import InsertOptions, insertion_config
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError
from otter_gguf.training import OtterModel
from tests.training.toy import toy_folder, toy_rows, write_rows

GEOMETRY = BaseGeometry("llama", n_layer=3, n_embd=32, n_head=4, n_head_kv=2, head_dim=8, n_ff=48, n_vocab=258)


def parsed(verb: object, *arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args([str(argument) for argument in arguments])


def config(*arguments: object) -> InsertionConfig:
    args = parsed(insert, "--base", "b", "-o", "o", *arguments)
    fields = given(args, InsertOptions)
    return insertion_config(InsertOptions(**fields), GEOMETRY, args.head or (), fields.keys())


def test_a_rank_adds_a_head_for_the_first_reward() -> None:
    made = config("--width", 8, "--vocabulary-rank", 16, "--activation", "tanh")
    assert made.vocabulary_heads == (HeadConfig("next", ("reward",), "both", "tanh", kind="vocabulary", rank=16),)
    assert config("--width", 8).vocabulary_heads == ()


def test_input_and_reward_can_be_chosen() -> None:
    flags = ["--width", 8, "--vocabulary-rank", 4, "--head", "tone", "--head", "safety=a,b", "--activation", "none"]
    made = config(*flags, "--vocabulary-input", "inserted", "--vocabulary-reward", "safety.b")
    assert made.vocabulary_heads == (HeadConfig("next", ("safety.b",), "inserted", kind="vocabulary", rank=4),)


def test_one_class_of_a_softmax_is_scored_by_a_sigmoid() -> None:
    made = config("--width", 8, "--vocabulary-rank", 4, "--head", "c=x,y", "--activation", "softmax")
    assert made.vocabulary_heads == (HeadConfig("next", ("c.x",), "both", "sigmoid", kind="vocabulary", rank=4),)


def test_without_insertion_it_reads_the_base() -> None:
    assert config("--width", 0, "--vocabulary-rank", 4).vocabulary_heads[0].input == "base"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--vocabulary-rank", -1], ("next", "rank", -1)),
        (["--vocabulary-rank", 33], ("next", "rank", 33, 32)),
        (["--vocabulary-reward", "reward"], ("--vocabulary-reward", "--vocabulary-rank")),
        (["--vocabulary-input", "base"], ("--vocabulary-input", "--vocabulary-rank")),
        (["--vocabulary-rank", 4, "--vocabulary-reward", "tone"], ("--vocabulary-reward", "tone", "reward")),
        (["--vocabulary-rank", 4, "--head", "next"], ("heads", "next")),
    ],
)
def test_contradictions_are_refused(arguments: list[object], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        config("--width", 8, *arguments)


def test_train_distils_in_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = toy_folder(tmp_path / "base"), write_rows(tmp_path / "pairs.jsonl", toy_rows(8))
    common = ["--base", base, "--data", data, "--max-steps", 2, "-b", 2, "--cpu", "--logging-steps", 1, "--json"]
    insertion = ["--width", 8, "--inner", 8, "--vocabulary-rank", 8]
    distil = ["--distill-candidates", 5, "--distill-positions", 2, "--distill-weight", 0.5]
    args = parsed(train, *common, *insertion, *distil, "--eval-data", data, "-o", tmp_path / "out")
    assert train.run(args) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"eval_distill_error", "eval_distill_rank", "eval_distill_top"} <= set(result)
    model = OtterModel.from_pretrained(None, tmp_path / "out")
    assert model.vocabulary_heads["next"].otter.weight[:-1].abs().max() > 0


def test_distillation_without_a_vocabulary_head_is_refused(tmp_path: Path) -> None:
    base, data = toy_folder(tmp_path / "base"), write_rows(tmp_path / "pairs.jsonl", toy_rows(2))
    args = parsed(
        train, "--base", base, "--data", data, "-o", tmp_path / "out", "--width", 8, "--distill-weight", 2, "--cpu"
    )
    with refused(ConfigError, "--distill-weight", "--vocabulary-rank"):
        train.run(args)
