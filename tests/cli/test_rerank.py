"""``otter-gguf rerank``: documents in, documents out in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_gguf.cli import main as cli
from tests.refusals import assert_names
from tests.synthetic_models import load, pair

DOCUMENTS = [" swims.", " lives in the sea.", " eats urchins."]


def rerank(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    files = pair()
    command = ["rerank", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "512", "-q", "The otter"]
    code = cli.main([*command, "--separator", "", *arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_documents_come_out_by_their_rewards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    first, second, third = DOCUMENTS
    path.write_text(f"{json.dumps({'text': first, 'id': 7})}\n\n{json.dumps(second)}\n{third}\n", encoding="utf-8")
    code, rows, _ = rerank(capsys, str(path))
    assert code == 0
    with load(n_ctx=512) as llm:
        expected = llm.rerank("The otter", DOCUMENTS)
        rewards = [llm.score("The otter", document).reward for document in DOCUMENTS]
    assert [row["index"] for row in rows] == [one["index"] for one in expected]
    assert [row["text"] for row in rows] == [DOCUMENTS[row["index"]] for row in rows]
    assert [row["relevance_score"] for row in rows] == pytest.approx(sorted(rewards, reverse=True), abs=1e-4)
    assert next(row for row in rows if row["index"] == 0)["id"] == 7
    assert [row["index"] for row in rerank(capsys, str(path), "-n", "1")[1]] == [expected[0]["index"]]


@pytest.mark.parametrize(
    ("text", "flags", "names"),
    [
        ("", (), ["documents"]),
        ('{"body": 5}', (), ["line 1", "text"]),
        ("a", ("--label", "kind"), ["kind"]),
        ("a", ("-n", "0"), ["top_n"]),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, flags: tuple[str, ...], names: list[str]
) -> None:
    path = tmp_path / "documents"
    path.write_text(text)
    code, rows, err = rerank(capsys, str(path), *flags)
    assert code == 2
    assert rows == []
    assert_names(err, *names)
