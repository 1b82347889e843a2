"""`otter-gguf split`."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from tests.refusals import assert_names

from ..gguf.toy_files import write_base, write_sidecar


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "s.gguf", base)
    assert main(["merge", str(base), str(sidecar), "-o", str(tmp_path / "m.gguf")]) == 0
    return tmp_path / "m.gguf"


def test_both_parts_come_back(tmp_path: Path, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["split", str(merged), "--base", str(tmp_path / "b"), "--otter", str(tmp_path / "o")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "b"), str(tmp_path / "o")]
    assert (tmp_path / "b").read_bytes() == (tmp_path / "base.gguf").read_bytes()
    assert (tmp_path / "o").read_bytes() == (tmp_path / "s.gguf").read_bytes()


def test_wrong_input_is_one_line(tmp_path: Path, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for arguments, names in (
        ([merged], ("--base", "--otter")),
        ([tmp_path / "base.gguf", "--base", tmp_path / "b"], (tmp_path / "base.gguf", "otter.merged.base_size")),
        ([merged, "--base", tmp_path / "base.gguf"], (tmp_path / "base.gguf", "--force")),
        ([tmp_path / "nowhere.gguf", "--base", tmp_path / "b"], (tmp_path / "nowhere.gguf",)),
    ):
        assert main(["split", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert_names(captured.err, *names)
    assert not (tmp_path / "b").exists()
