"""The figure."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from otter_gguf import UnsupportedError
from otter_gguf.demo.plot import save_plot
from tests.demo.made_up import experiment
from tests.refusals import refused


def test_plot_is_a_png_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    save_plot(experiment(16), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1800, 660)
    assert list(tmp_path.iterdir()) == [path]


def test_plot_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    path.write_text("old")
    save_plot(experiment(2), path)
    assert path.read_bytes()[1:4] == b"PNG"


def test_without_matplotlib_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own way to make an import fail
    with refused(UnsupportedError, "otter-gguf[plot]"):
        save_plot(experiment(2), tmp_path / "demo.png")
    assert not list(tmp_path.iterdir())
