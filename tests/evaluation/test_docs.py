"""What docs/evaluation.md says is so."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from otter_gguf.evaluation.results import Cost
from tests.documents import DOCS, fenced
from tests.evaluation.made_up import results
from tests.synthetic_models import pair

PAGE = DOCS / "evaluation.md"


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(pair().base, tmp_path / "base.gguf")
    shutil.copy(pair().otter, tmp_path / "harmless.otter.gguf")
    monkeypatch.chdir(tmp_path)
    (block,) = fenced(PAGE, "python")
    exec(compile(block, PAGE.name, "exec", dont_inherit=True), {"__name__": "docs"})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_schema_is_whole() -> None:
    (schema,) = fenced(PAGE, "text")
    described = set(re.findall(r"\w+", schema))
    data = results().to_dict()
    arm = data["arms"][0]
    names = {
        *data,
        *data["run"],
        *arm,
        *arm["metrics"],
        *data["memory"]["plain"],
        *(f.name for f in dataclasses.fields(Cost)),
    }
    assert names <= described
