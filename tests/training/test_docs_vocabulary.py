"""The commands and the code of docs/vocabulary-head.md work as they stand."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from otter_gguf.cli import insert, train
from tests.documents import DOCS, fenced
from tests.training.toy import toy_folder, toy_rows, write_rows

DOCUMENT = DOCS / "vocabulary-head.md"


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_folder(tmp_path / "base-folder", hidden_size=64, intermediate_size=256)
    write_rows(tmp_path / "pairs.jsonl", toy_rows(16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (code,) = fenced(DOCUMENT, "python")
    exec(compile(code, DOCUMENT.name, "exec", dont_inherit=True), {"__name__": "docs"})


def test_commands_are_understood() -> None:
    verbs = {"insert": insert, "train": train}
    lines = [shlex.split(line, comments=True) for line in "".join(fenced(DOCUMENT, "sh")).splitlines()]
    assert [line[1] for line in lines] == ["train", "insert"]
    for _, verb, *arguments in lines:
        parser = argparse.ArgumentParser()
        verbs[verb].add_arguments(parser)
        assert parser.parse_args(arguments).vocabulary_rank == 64
