"""`otter-gguf train` says what memory it will need, and refuses what there is not, with the flags that help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from otter_gguf.cli import main as cli
from otter_gguf.training import memory
from tests.refusals import assert_names
from tests.training.toy import toy_folder, toy_rows, write_rows

MIB = 1 << 20
ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and long texts."""
    path = tmp_path_factory.mktemp("memory")
    toy_folder(path / "base", max_position_embeddings=1024, num_hidden_layers=10)
    rows = [{**row, "chosen": row["chosen"] * 40, "rejected": row["rejected"] * 40} for row in toy_rows(ROWS)]
    write_rows(path / "pairs.jsonl", rows)
    return path


def train(folder: Path, output: Path, *arguments: object) -> int:
    data = ("--base", folder / "base", "--width", 8, "--inner", 12, "--data", folder / "pairs.jsonl", "-o", output)
    few = ("--max-steps", 1, "--cpu", "--threads", 1, "--max-length", 512)
    return cli.main(["train", *map(str, (*data, *few, *arguments))])


def room(patch: pytest.MonkeyPatch, free: int | None) -> None:
    """Let the system say that so much is free."""
    patch.setattr(memory, "free_for", lambda _: free)


def said(capsys: Any) -> tuple[float, str]:
    """The gigabytes that a run said it would need, and the whole message."""
    message = capsys.readouterr().err
    found = re.search(r"about ([\d.]+) GB", message)
    assert found, message
    return float(found[1]), message


def test_says_what_it_will_need_and_trains(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(folder, tmp_path / "out", "--batch-size", 4) == 0
    needed, message = said(capsys)
    assert_names(message, "4 pairs", "512 tokens", "GB")
    assert 0.2 < needed < 5


def test_where_the_system_says_nothing_it_trains(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, None)
    assert train(folder, tmp_path / "out") == 0
    said(capsys)


def test_too_much_is_refused_before_anything_is_written_and_each_remedy_helps(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, memory.LATER + 70 * MIB)
    assert train(folder, tmp_path / "out") == 2
    _, message = said(capsys)
    assert not (tmp_path / "out").exists()
    assert message.splitlines()[-1].startswith("otter-gguf: ")
    assert_names(message, "8 pairs", "512 tokens", "--recompute", "--batch-size", "--max-length", "--no-memory-check")
    remedies = [flags.split() for flags in re.findall(r"((?:--[\w-]+(?: \d+)? )+)\([\d.]+ GB\)", message)]
    assert [flags[0] for flags in remedies] == ["--recompute", "--batch-size", "--max-length"]
    for number, flags in enumerate(remedies):
        assert train(folder, tmp_path / f"out{number}", *flags) == 0
    assert train(folder, tmp_path / "more", "--batch-size", int(remedies[1][1]) + 1) == 2


def test_fewer_rows_at_once_keep_the_rows_of_a_step(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, memory.LATER + 70 * MIB)
    assert train(folder, tmp_path / "out", "--accumulate", 3) == 2
    found = re.search(r"--batch-size (\d+) --accumulate (\d+)", said(capsys)[1])
    assert found
    assert int(found[1]) * int(found[2]) >= 24
    assert int(found[1]) * (int(found[2]) - 1) < 24


def test_a_flag_goes_on(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 1)
    assert train(folder, tmp_path / "out") == 2
    assert_names(said(capsys)[1], "base", "--no-memory-check")  # nothing else would help
    assert train(folder, tmp_path / "out", "--no-memory-check") == 0
    said(capsys)


def test_a_refused_run_does_not_replace_another(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(folder, tmp_path / "out", "--save-steps", 1) == 0
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert "checkpoint-1" in before
    room(monkeypatch, 1)
    assert train(folder, tmp_path / "out", "--force") == 2
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_the_real_figure_is_shared_by_the_processes_of_a_run(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(1 << 30))
    assert train(folder, tmp_path / "out") == 2
    said(capsys)
