"""``otter-gguf check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from otter_gguf.demo import demo_files
from tests.refusals import assert_names
from tests.synthetic_models import pair


def test_good_files(capsys: pytest.CaptureFixture[str]) -> None:
    base, otter = pair()
    assert cli.main(["check", str(otter), str(base), "--base", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{otter}: sidecar, ok (header, keys, tensors, values, checksums, binding)"
    assert lines[1] == f"{base}: base, ok (header, model, values)"
    assert lines[2].startswith("  note: a base holds no checksums")
    assert len(lines) == 3


def test_the_shipped_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = demo_files()
    assert cli.main(["check", str(files.sidecar), str(files.base), "--base", str(files.base)]) == 0
    assert "NOT ok" not in capsys.readouterr().out


def test_a_bad_file_among_good_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    otter = pair().otter
    data = bytearray(otter.read_bytes())
    data[-100] ^= 4
    bad, missing = tmp_path / "bad.gguf", tmp_path / "missing.gguf"
    bad.write_bytes(data)
    assert cli.main(["check", str(bad), str(missing), str(otter)]) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == f"{bad}: sidecar, NOT ok"
    assert lines[1].startswith("  checksums: the data of cls.output.reward.otter.")
    assert lines[2] == f"{missing}: unreadable, NOT ok"
    assert lines[3] == "  header: cannot open: No such file or directory"
    assert ", ok (" in lines[4]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, otter = pair()
    other = pair(seed=7)
    assert cli.main(["check", "--json", str(otter), str(other.otter), "--base", str(base)]) == 2
    good, bad = json.loads(capsys.readouterr().out)
    assert good == {
        "path": str(otter),
        "ok": True,
        "kind": "sidecar",
        "passed": ["header", "keys", "tensors", "values", "checksums", "binding"],
        "problems": [],
        "notes": [],
    }
    assert not bad["ok"]
    assert [problem["check"] for problem in bad["problems"]] == ["binding"]
    assert_names(bad["problems"][0]["message"], other.otter, base, "fingerprint")


def test_nothing_in_a_name_reaches_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2Jclear\n.gguf"
    path.write_bytes(b"GGUF")
    assert cli.main(["check", str(path)]) == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 2


def test_folders_and_devices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", str(tmp_path), "/dev/null"]) == 2
    assert capsys.readouterr().out.count("NOT ok") == 2
