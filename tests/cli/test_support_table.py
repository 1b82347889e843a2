"""The README's table of architectures is what the command writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from otter_gguf.architectures import describe, supported
from otter_gguf.cli.info import BEGIN, END
from otter_gguf.cli.main import main
from tests.refusals import assert_names

README = Path(__file__).parents[2] / "README.md"


def written(path: Path) -> str:
    """The file after the command has written its table."""
    assert main(["info", "--architectures", "--markdown", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def test_the_table_of_the_readme_is_up_to_date(tmp_path: Path) -> None:
    """If not: otter-gguf info --architectures --markdown README.md"""
    text = README.read_text(encoding="utf-8")
    assert written(Path(shutil.copy(README, tmp_path / "README.md"))) == text
    assert BEGIN == "<!-- otter-gguf info --architectures --markdown README.md -->"


def test_a_changed_table_is_found(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index(BEGIN) : text.index(END)]
    for changed in (
        table.replace("Qwen", "Kwen"),
        table.replace("`llama`", "`lama`"),
        table.rsplit("\n|", 1)[0] + "\n",
    ):
        assert changed != table
        stale = tmp_path / "README.md"
        stale.write_text(text.replace(table, changed), encoding="utf-8")
        assert written(stale) == text


def test_the_table_has_a_row_for_every_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--architectures", "--markdown"]) == 0
    title, ruler, *rows = capsys.readouterr().out.splitlines()
    assert title == "| model | GGUF | tested | notes |"
    assert set(ruler) == {"|", "-"}
    for model_type, row in zip(supported(), rows, strict=True):
        architecture = describe(model_type)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == [architecture.title, f"`{architecture.gguf}`", architecture.tested, architecture.notes]
        assert all(cells)


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_file_without_the_marks_is_left_alone(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    assert main(["info", "--architectures", "--markdown", str(path)]) == 2
    err = capsys.readouterr().err
    assert_names(err, path, BEGIN)
    assert END in err
    assert path.read_text() == text


def test_a_table_of_a_file_is_nobodys_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "base.gguf", "--markdown"]) == 2
    assert_names(capsys.readouterr().err, "--markdown", "--architectures")
