"""`otter-gguf convert`: the kind of input is found, and what is missing or too much is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf import _native
from otter_gguf.cli.main import main
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.sidecar import check_binding, validate_insertion
from tests.refusals import assert_names

from ..converters.toy_hf import write_hf_model
from ..converters.toy_widened import write_widened
from ..gguf.toy_files import insertion, write_adapter, write_base


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The single line on stderr of a command that fails, with exit status 2."""
    assert main(["convert", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_an_adapter_becomes_a_sidecar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base.gguf", type="Q4_0")
    folder, target = write_adapter(tmp_path / "kind"), tmp_path / "s.gguf"
    assert main(["convert", str(folder), "--base", str(base), "-o", str(target), "--outtype", "f16"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    with BaseFiles.open(base) as files, _native.GgufFile(str(target)) as file:
        assert validate_insertion(file) == insertion()
        check_binding(files, file)
        assert file.value("general.name") == "kind"
        assert {tensor.type for tensor in file.tensors} == {"F32", "F16"}


def test_the_output_is_inside_the_folder_by_default(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base.gguf"), write_adapter(tmp_path / "kind")
    assert main(["convert", str(folder), "--base", str(base), "--name", "Kind 1.0"]) == 0
    with _native.GgufFile(str(folder / "kind.otter.gguf")) as file:
        assert file.value("general.name") == "Kind 1.0"


def test_a_widened_checkpoint_becomes_a_sidecar_or_a_merged_file(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base.gguf", type="F16"), write_widened(tmp_path / "wide")
    assert main(["convert", str(folder), "--base", str(base)]) == 0
    assert main(["convert", str(folder), "--base", str(base), "--merged"]) == 0
    assert main(["split", str(folder / "wide.merged.gguf"), "--otter", str(tmp_path / "s.gguf")]) == 0
    assert (tmp_path / "s.gguf").read_bytes() == (folder / "wide.otter.gguf").read_bytes()


def test_a_hugging_face_base_is_converted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its tokenizer compared with what llama.cpp's converter made of it: agreed but for two habits."""
    model, folder = write_hf_model(tmp_path / "toy"), write_adapter(tmp_path / "kind")
    assert main(["convert", str(folder), "--base", str(model), "-o", str(tmp_path / "s.gguf")]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert_names(first, "warning", tmp_path / "toy.gguf", "' otters'")
    assert_names(second, "warning", tmp_path / "toy.gguf", "'otter<s>otter <s> otter'")
    with BaseFiles.open(tmp_path / "toy.gguf") as base, _native.GgufFile(str(tmp_path / "s.gguf")) as file:
        check_binding(base, file)


def test_what_is_missing_or_too_much_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = write_base(tmp_path / "base.gguf"), write_adapter(tmp_path / "kind")
    model = write_hf_model(tmp_path / "hf")
    assert_names(failure(capsys, adapter), adapter, "--base")
    assert_names(failure(capsys, tmp_path / "nowhere"), tmp_path / "nowhere", "folder")
    assert_names(failure(capsys, base), base, "folder", "--to-adapter")
    assert_names(failure(capsys, adapter, "--base", base, "--merged"), "--merged", "`merge`")
    assert_names(failure(capsys, adapter, "--base", base, "--base-outfile", "x"), "--base-outfile", "--base")
    assert_names(failure(capsys, model, "--base", base), model, "otter_config.json", "--base")
    assert_names(failure(capsys, model, "--outtype", "q4_0"), "--outtype", "q4_0", "q8_0", "quantize")


def test_nothing_is_replaced_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter, target = write_base(tmp_path / "base.gguf"), write_adapter(tmp_path / "kind"), tmp_path / "s.gguf"
    target.write_text("old")
    assert_names(failure(capsys, adapter, "--base", base, "-o", target), target, "--force")
    assert target.read_text() == "old"
    assert main(["convert", str(adapter), "--base", str(base), "-o", str(target), "--force"]) == 0
    assert target.read_bytes().startswith(b"GGUF")


def test_a_sidecar_becomes_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = write_base(tmp_path / "b.gguf"), write_adapter(tmp_path / "a")
    sidecar = tmp_path / "kind.otter.gguf"
    assert main(["convert", str(adapter), "--base", str(base), "-o", str(sidecar), "--outtype", "f32"]) == 0
    capsys.readouterr()
    assert main(["convert", str(sidecar), "--to-adapter"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kind-adapter'}\n"
    assert main(["convert", str(sidecar), "--to-adapter", "-o", str(tmp_path / "b")]) == 0
    for name in ("otter_config.json", "otter_model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "kind-adapter" / name).read_bytes()
    capsys.readouterr()
    assert_names(failure(capsys, sidecar, "--to-adapter"), tmp_path / "kind-adapter" / "otter_config.json", "--force")
    assert main(["convert", str(sidecar), "--to-adapter", "--force"]) == 0


def test_options_without_a_meaning_for_an_adapter_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(capsys, tmp_path / "x.gguf", "--to-adapter", "--base", "b", "--outtype", "f16", "--merged")
    assert_names(message, "--to-adapter", "--base", "--merged", "--outtype")
    base = write_base(tmp_path / "base.gguf")
    assert_names(failure(capsys, base), base, "--to-adapter")
