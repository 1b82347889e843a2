"""The report and the figure."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from otter_gguf import UnsupportedError
from otter_gguf.evaluation.plot import panels, save_plot, weight_families
from otter_gguf.evaluation.report import markdown, table
from tests.evaluation.made_up import results
from tests.refusals import refused


def test_every_policy_has_a_row_in_every_table() -> None:
    text = markdown(results())
    for arm in results().arms[1:]:
        assert sum(line.startswith(f"| `{arm.name}` ") for line in text.splitlines()) == 3
    assert sum(line.startswith("| `plain` ") for line in text.splitlines()) == 2  # it has no difference from itself
    assert "+1.000 ± 0.000" in text


def test_rows_are_as_long_as_their_head() -> None:
    lines = [line for line in markdown(results()).splitlines() if line.startswith("|")]
    counts = [line.replace("\\|", "").count("|") for line in lines]
    assert len(set(counts)) == 3
    assert len({len(line) for line in lines}) == 3


def test_what_is_unknown_has_no_column() -> None:
    assert " judge " in markdown(results())
    assert " judge " not in markdown(results(judge=False)).split("## Cost")[0].split("## Texts")[1]


def test_a_bar_in_a_cell_stays_in_it() -> None:
    assert table(["name"], [["a|b"]]).splitlines()[2] == "| a\\|b |"


def test_the_figure_is_named_if_there_is_one() -> None:
    assert "](plots.png)" in markdown(results(), "plots.png")
    assert ".png" not in markdown(results())


def test_weights_are_a_panel_only_where_one_policy_has_several() -> None:
    families = weight_families(results((3.0, 1.0)).arms)
    assert [arm.weight for arm in families["args"]] == [1.0, 3.0]
    assert len(panels(results((1.0, 3.0)))) == 5
    assert weight_families(results((1.0,)).arms) == {}
    assert len(panels(results((1.0,)))) == 3


def test_plot_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "plots.png"
    path.write_text("old")
    save_plot(results(), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24])[0] == 1560
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own way to make an import fail
    with refused(UnsupportedError, "otter-gguf[plot]"):
        save_plot(results(), tmp_path / "plots.png")
    assert not list(tmp_path.iterdir())
