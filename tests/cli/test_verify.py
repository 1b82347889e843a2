"""``otter-gguf verify``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from otter_gguf.cli.verify import print_result
from otter_gguf.verify import Comparison, Verification
from tests.refusals import assert_names
from tests.synthetic_models import pair


def verify(*arguments: str) -> int:
    files = pair()
    return cli.main(["verify", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", *arguments])


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["identical"] is True
    assert result["logits_compared"] >= 1_000_000
    assert result["max_abs_diff"] == 0
    assert len(result["settings"]) == 4


def test_table_and_own_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Otters hold hands while they sleep.")
    assert verify("--logits", "1000", "-f", str(tmp_path / "text")) == 0
    out = capsys.readouterr().out
    assert out.count("identical") == 5
    assert "flash attention on" in out


def test_a_difference_is_said_and_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Verification((Comparison("decode", "off", logits=100, differing=3, max_abs_diff=0.5),), 1)
    print_result(result)
    out = capsys.readouterr().out
    assert "3 differ" in out
    assert "NOT identical (max abs 0.5)" in out
    monkeypatch.setattr("otter_gguf.verify.verify", lambda *args, **options: result)
    assert verify() == 1


def test_without_a_sidecar_there_is_nothing_to_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "-m", str(pair().base)]) == 2
    assert_names(capsys.readouterr().err, pair().base, "--otter")


def test_files_by_position(capsys: pytest.CaptureFixture[str]) -> None:
    base, otter = map(str, pair())
    assert cli.main(["verify", base, otter, "-t", "1", "--logits", "1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True
    assert cli.main(["verify", base, otter, "-m", base]) == 2
    assert_names(capsys.readouterr().err, "BASE", "OTTER", "-m", "--otter")


def test_a_sidecar_without_its_base_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--otter", str(pair().otter)]) == 2
    assert_names(capsys.readouterr().err, "--otter", "-m")
