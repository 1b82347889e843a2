"""`otter-gguf convert` compares the base's tokenizer with that of training, where it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from tests.refusals import assert_names

from ..converters.toy_widened import write_widened
from ..gguf.toy_files import write_adapter, write_base
from ..tokenizer_toys import MERGES, bpe_base, bpe_folder, swapped


class Case:
    """An adapter, a base with the tokenizer of a folder, and one with two merges swapped."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.tokenizer = bpe_folder(folder / "hf")
        self.adapter = write_adapter(folder / "kind", base_model_name_or_path=str(self.tokenizer))
        self.base = bpe_base(folder / "base.gguf")
        self.other = bpe_base(folder / "other.gguf", swapped(MERGES))
        self.target = folder / "s.gguf"
        self._capsys = capsys

    def convert(self, *arguments: object) -> tuple[int, str]:
        """Exit code and stderr."""
        self.target.unlink(missing_ok=True)
        self._capsys.readouterr()
        code = main(["convert", *map(str, arguments), "-o", str(self.target)])
        assert self.target.exists() == (code == 0)
        return code, self._capsys.readouterr().err


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, capsys)


def test_the_recorded_base_is_compared(case: Case) -> None:
    assert case.convert(case.adapter, "--base", case.base) == (0, "")
    code, message = case.convert(case.adapter, "--base", case.other)
    assert code == 2
    assert message.count("\n") == 1
    assert_names(message, case.other, case.tokenizer, "--no-tokenizer-check")


def test_a_named_folder_comes_before_the_recorded_one(case: Case, tmp_path: Path) -> None:
    added = bpe_folder(tmp_path / "added", added=["holt"])
    code, message = case.convert(case.adapter, "--base", case.base, "--tokenizer", added)
    assert code == 2
    assert_names(message, case.base, added, 288, 289)
    write_adapter(case.adapter)  # a base that nobody has here
    assert case.convert(case.adapter, "--base", case.base, "--tokenizer", case.tokenizer) == (0, "")


def test_a_base_that_was_trained_as_well_has_its_own_tokenizer(case: Case) -> None:
    write_adapter(case.adapter, base_model_name_or_path=str(case.tokenizer), fine_tuned_base="base")
    bpe_folder(case.adapter / "base", added=["holt"])
    code, message = case.convert(case.adapter, "--base", case.base)
    assert code == 2
    assert_names(message, case.base, case.adapter / "base")


def test_the_comparison_can_be_left_out(case: Case) -> None:
    code, message = case.convert(case.adapter, "--base", case.other, "--no-tokenizer-check")
    assert (code, message.count("\n")) == (0, 1)
    assert_names(message, "warning", case.other, "tokenizer")


def test_without_a_tokenizer_a_line_says_so(case: Case, tmp_path: Path) -> None:
    for name in ("toys/base", "a name with spaces", "", str(tmp_path)):
        write_adapter(case.adapter, base_model_name_or_path=name)
        code, message = case.convert(case.adapter, "--base", case.other)
        assert (code, message.count("\n")) == (0, 1)
        assert_names(message, "warning", case.other, "--tokenizer")


def test_a_tokenizer_that_cannot_be_loaded(case: Case, tmp_path: Path) -> None:
    """Found by itself it is a warning, asked for it is an error."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{}")
    write_adapter(case.adapter, base_model_name_or_path=str(broken))
    code, message = case.convert(case.adapter, "--base", case.base)
    assert (code, message.count("\n")) == (0, 1)
    assert_names(message, "warning", case.base, broken)
    code, message = case.convert(case.adapter, "--base", case.base, "--tokenizer", broken)
    assert (code, message.count("\n")) == (2, 1)
    assert_names(message, broken)
    code, message = case.convert(case.adapter, "--base", case.base, "--tokenizer", tmp_path)
    assert code == 2
    assert_names(message, f"{tmp_path}:", "tokenizer.json")


def test_a_widened_checkpoint_brings_its_tokenizer(case: Case, tmp_path: Path) -> None:
    folder, base = write_widened(tmp_path / "wide"), write_base(tmp_path / "spm.gguf", type="F16")
    code, message = case.convert(folder, "--base", base)
    assert code == 0
    assert_names(message, "warning", base, "--tokenizer")
    bpe_folder(folder)
    code, message = case.convert(folder, "--base", base)
    assert code == 2
    assert_names(message, base, folder)


def test_options_that_contradict_or_mean_nothing_are_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        case.convert(case.adapter, "--base", case.base, "--tokenizer", tmp_path, "--no-tokenizer-check")
    code, message = case.convert(case.base, "--to-adapter", "--tokenizer", case.tokenizer)
    assert code == 2
    assert_names(message, "--to-adapter", "--tokenizer")
