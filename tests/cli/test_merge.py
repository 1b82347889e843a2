"""`otter-gguf merge`."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from tests.refusals import assert_names

from ..gguf.toy_files import base_tensors, write_base, write_sidecar


def test_base_and_sidecar_become_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar, merged = write_sidecar(tmp_path / "s.gguf", base), tmp_path / "m.gguf"
    assert main(["merge", str(base), str(sidecar), "-o", str(merged)]) == 0
    assert capsys.readouterr().out == f"{merged}\n"
    assert merged.stat().st_size > base.stat().st_size


def test_a_foreign_sidecar_is_one_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base.gguf")
    other = write_base(tmp_path / "other.gguf", tensors=base_tensors(seed=4))
    sidecar, merged = write_sidecar(tmp_path / "s.gguf", other), tmp_path / "m.gguf"
    assert main(["merge", str(base), str(sidecar), "-o", str(merged)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert_names(captured.err, sidecar, base, "fingerprint")
    assert not merged.exists()


def test_the_output_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["merge", str(tmp_path / "a"), str(tmp_path / "b")])
    assert caught.value.code == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "--outfile")
