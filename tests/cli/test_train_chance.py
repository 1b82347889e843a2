"""`otter-gguf train` says where nothing was learnt, and nothing where something was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from otter_gguf.cli import main as cli
from tests.refusals import assert_names
from tests.training.toy import toy_folder, toy_rows, write_rows

KEY = "no_better_than_chance"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pairs that can be learnt, and the same with responses exchanged at random."""
    path, draw = tmp_path_factory.mktemp("chance"), random.Random(0)
    toy_folder(path / "base")
    for name, rows in (("train", toy_rows(160)), ("held_out", toy_rows(64, seed=1))):
        write_rows(path / f"{name}-real.jsonl", rows)
        swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
        drawn = [draw.choice(both) for both in zip(rows, swapped, strict=True)]
        write_rows(path / f"{name}-shuffled.jsonl", drawn)
    return path


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("labels", ["real", "shuffled"])
def test_shuffled_labels_are_warned_of(folder: Path, tmp_path: Path, capsys: Any, labels: str, held_out: bool) -> None:
    data = ["--data", str(folder / f"train-{labels}.jsonl")]
    data += ["--eval-data", str(folder / f"held_out-{labels}.jsonl")] if held_out else []
    options = "--width 8 --inner 12 --lr 0.01 --epochs 1 --cpu --threads 1 --json".split()
    assert cli.main(["train", "--base", str(folder / "base"), *data, *options, "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)[KEY]
    record = json.loads((tmp_path / "out/otter_config.json").read_text())["training"]
    assert len(found) == (labels == "shuffled")
    assert record.get(KEY, []) == found
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: {line}" for line in found]
    if found:
        assert_names(found[0], "64 held-out pairs" if held_out else "80 training pairs", "0.693", "docs/training.md")
