"""``otter-gguf score``: JSON lines in and out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import FileError
from otter_gguf.cli import main as cli
from otter_gguf.cli.score import parse_row
from tests.refusals import assert_names, refused
from tests.synthetic_models import load, pair

ROWS = [
    {"text": "The otter eats."},
    {"prompt": "The otter", "response": " sleeps.", "id": 7},
    {"prompt": "The otter", "chosen": " is kind.", "rejected": " is mean."},
    {"chosen": "Kind otter.", "rejected": "Mean otter."},
]


def score(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    files = pair()
    code = cli.main(["score", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "256", *arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def write(folder: Path, rows: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_scores_every_kind_of_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, rows, err = score(capsys, write(tmp_path, ROWS))
    assert code == 0
    with load(n_ctx=256) as llm:
        assert rows[0]["reward"] == llm.score("The otter eats.").reward
        assert rows[1]["rewards"] == llm.score("The otter", " sleeps.").final
        assert rows[1]["id"] == 7
        assert rows[2]["chosen_reward"] == llm.score("The otter", " is kind.").reward
    assert rows[2]["margin"] == rows[2]["chosen_reward"] - rows[2]["rejected_reward"]
    assert_names(err, "2 pairs", "accuracy")


def test_tokens_on_demand(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    assert all("token_rewards" not in row for row in score(capsys, path)[1])
    rows = score(capsys, path, "--tokens")[1]
    assert len(rows[0]["token_rewards"]) == len(rows[0]["tokens"]) == len(rows[0]["pieces"])
    assert rows[0]["token_rewards"][-1][0] == rows[0]["reward"]
    assert rows[2]["chosen_n_prompt"] == rows[2]["rejected_n_prompt"]


def test_a_text_on_the_command_line_or_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The otter eats.")
    first = score(capsys, "-p", "The otter eats.")[1]
    assert score(capsys, "-f", str(tmp_path / "text"))[1] == first
    assert score(capsys, "-p", "The otter sleeps.")[1][0]["reward"] != first[0]["reward"]


def test_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n\n{"text": "b"}\n')))
    assert [row["text"] for row in score(capsys, "-")[1]] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", ("JSON", "column 2")),
        ("[1]", ("object", "list")),
        ('{"txt": "a"}', ("text", "prompt", "response", "chosen", "rejected")),
        ('{"prompt": "a"}', ("text", "prompt", "response", "chosen", "rejected")),
        ('{"text": 1}', ("text", "messages")),
        ('{"prompt": [], "response": "a"}', ("prompt", "messages")),
        ('{"prompt": 1, "chosen": "a", "rejected": "b"}', ("prompt", "messages")),
        ('{"prompt": "a", "chosen": "b"}', ("text", "prompt", "response", "chosen", "rejected")),
    ],
)
def test_bad_rows_name_their_line(line: str, names: tuple[str, ...]) -> None:
    with refused(FileError, "rows.jsonl", "line 3", *names):
        parse_row(line, "rows.jsonl: line 3: ")


def test_nothing_is_scored_if_a_row_is_bad(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, rows, err = score(capsys, write(tmp_path, [*ROWS, {"txt": "a"}]))
    assert (code, rows) == (2, [])
    assert_names(err, tmp_path / "rows.jsonl", "line 5")
    assert err.count("\n") == 1


def test_a_text_that_does_not_fit_names_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, rows, err = score(capsys, write(tmp_path, [{"text": "short"}, {"text": "x" * 3000}]))
    assert code == 2
    assert len(rows) == 1
    assert_names(err, tmp_path / "rows.jsonl", "line 2", 3001, 256, "n_ctx")


def test_input_is_needed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert score(capsys)[0] == 2
    assert score(capsys, "rows.jsonl", "-p", "text")[0] == 2


def test_a_plain_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "-m", str(pair().base), "-t", "1", "-c", "64", "-p", "a"]) == 2
    assert_names(capsys.readouterr().err, pair().base, "--otter")
