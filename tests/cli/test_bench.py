"""``otter-gguf bench``."""

from __future__ import annotations

import json

import pytest

from otter_gguf.cli import main as cli
from otter_gguf.cli.bench import markdown, mebibytes, millions
from tests.refusals import assert_names
from tests.synthetic_models import pair


def bench(*arguments: str) -> int:
    files = pair()
    short = ["-p", "16", "-n", "4", "-r", "2", "-t", "1"]
    return cli.main(["bench", "-m", str(files.base), "--otter", str(files.otter), *short, *arguments])


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["decode"]["ratio"] > 0
    assert result["prefill"]["ratio"] > 0
    assert result["n_threads"] == 1


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model")
    assert [line.count("|") for line in lines[:6]] == [12] * 6
    assert sum("tg4" in line for line in lines) == 2
    assert lines[-1].startswith("python: ")


def test_markdown_is_aligned() -> None:
    lines = markdown(["model", "size"], [["a", "1.00 GiB"], ["longer name", "2"]])
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----------- | -------: |"


def test_units() -> None:
    assert (mebibytes(3 << 20), mebibytes(3 << 30)) == ("3.00 MiB", "3.00 GiB")
    assert (millions(1_500_000), millions(1_240_000_000)) == ("1.50 M", "1.24 B")


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("-r", "0") == 2
    assert_names(capsys.readouterr().err, "-r")
