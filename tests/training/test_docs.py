"""The commands and the code of docs/training.md work as they stand."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

from otter_gguf.cli import insert, train
from otter_gguf.errors import FileError
from otter_gguf.train_options import TrainOptions
from otter_gguf.training import DataOptions, tokenise_rows
from otter_gguf.training.data import Classed, Graded, Pair, Stepped
from otter_gguf.training.objectives import METRICS, NOT_LOGGED
from tests.documents import DOCS, fenced
from tests.refusals import refused
from tests.training.toy import toy_folder, toy_rows, toy_tokenizer, write_rows

DOCUMENT = DOCS / "training.md"


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_folder(tmp_path / "base-folder", hidden_size=64, intermediate_size=256)
    write_rows(tmp_path / "pairs.jsonl", toy_rows(16))
    write_rows(tmp_path / "held_out.jsonl", toy_rows(8, seed=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (code,) = fenced(DOCUMENT, "python")
    names: dict[str, object] = {"__name__": "docs"}
    exec(compile(code, DOCUMENT.name, "exec", dont_inherit=True), names)
    assert (tmp_path / "harmless" / "otter_model.safetensors").exists()


def test_rows_are_understood() -> None:
    rows = [json.loads(line) for line in "".join(fenced(DOCUMENT, "json")).splitlines()]
    options = DataOptions(rewards=("reward", "tone.friendly", "tone.rude"))
    with refused(FileError, "4 bad", *(f"row {row}" for row in (1, 2, 3, 5)), "reward", ", ".join(options.rewards)):
        tokenise_rows(rows, toy_tokenizer(), options)
    dataset = tokenise_rows([{"reward": "reward", **row} for row in rows], toy_tokenizer(), options)
    assert [type(row) for row in dataset.rows] == [Pair, Pair, Graded, Classed, Stepped]


def test_every_logged_name_is_described() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = {*METRICS, "correlation"} - {*NOT_LOGGED}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_commands_are_understood() -> None:
    verbs = {"insert": insert, "train": train}
    understood = 0
    for line in "".join(fenced(DOCUMENT, "sh")).splitlines():
        _, verb, *arguments = shlex.split(line, comments=True)
        if verb in verbs:
            parser = argparse.ArgumentParser()
            verbs[verb].add_arguments(parser)
            parser.parse_args(arguments)
            understood += 1
    assert understood == 4


def test_an_unknown_flag_would_be_noticed() -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "x", "-o", "y", "--unknown"])


def test_every_option_that_changes_the_result_is_described() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    fields = TrainOptions.__dataclass_fields__
    names = ("append_eos", "max_length", "loss", "calibrate", "center", "step_separator")
    flags = [fields[name].metadata["flags"][-1] for name in names]
    assert [flag for flag in flags if f"`{flag}" not in text] == []
