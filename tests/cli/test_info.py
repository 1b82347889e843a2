"""`otter-gguf info`: what a file is, for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import _native
from otter_gguf.architectures import supported
from otter_gguf.cli.info import human_size
from otter_gguf.cli.main import main
from otter_gguf.config import HeadConfig
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.merge import merge
from tests.refusals import assert_names

from ..gguf.toy_files import insertion, rewrite, write_base, write_sidecar


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    base = write_base(tmp_path / "base.gguf", type="Q8_0")
    sidecar = write_sidecar(tmp_path / "s.gguf", base)
    merge(base, sidecar, tmp_path / "m.gguf")
    return {"base": base, "sidecar": sidecar, "merged": tmp_path / "m.gguf"}


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(info(capsys, str(path), "--json"))
    return found


def test_json_describes_each_kind(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = {kind: as_json(capsys, path) for kind, path in files.items()}
    for kind, entry in found.items():
        assert entry["kind"] == kind
        assert entry["size"] == files[kind].stat().st_size
        assert entry["architecture"] == "llama"
        assert entry["problem"] is None
        assert entry["geometry"]["n_embd"] == 64
        assert entry["fingerprint"] == found["base"]["fingerprint"]
    assert found["base"]["tensors"]["types"]["Q8_0"]["count"] == 16
    assert "insertion" not in found["base"]
    assert found["sidecar"]["tensors"] is None
    assert found["sidecar"]["insertion"] == found["merged"]["insertion"]
    expected = insertion().to_dict()
    del expected["base"]
    assert found["sidecar"]["insertion"] == expected
    assert found["sidecar"]["reward_labels"] == ["reward", "safety.harm", "safety.help"]
    assert found["merged"]["inserted_tensors"] == found["sidecar"]["inserted_tensors"]


def test_the_table_says_what_is_inserted(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split(maxsplit=2) for line in info(capsys, str(files["sidecar"])).splitlines()]
    assert ["kind", "sidecar,"] in [line[:2] for line in lines]
    assert ["layer", "0", "KV heads 1, FFN 32"] in lines
    assert ["layer", "1", "KV heads 2, FFN 0"] in lines
    assert [
        "head",
        "safety",
        "reads both, activation tanh: harm (scale 2, shift 0), help (scale 0.5, shift -1)",
    ] in lines


def test_equal_layers_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "s.gguf", base, insertion(n_head_kv=(0, 0), n_ff=(0, 0)))
    assert "layers 0-1       nothing inserted" in info(capsys, str(sidecar))


def test_text_of_a_file_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = KeyValue("general.name", "str", "a\x1b[2Jb\n\u202egnp.exe")
    hostile = rewrite(write_base(tmp_path / "base.gguf"), tmp_path / "h.gguf", metadata={name.key: name})
    for arguments in ([str(hostile)], [str(hostile), "--json"]):
        out = info(capsys, *arguments)
        assert "\x1b" not in out
        assert "\u202e" not in out


def test_ten_megabytes_of_a_name_are_told_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = KeyValue("general.name", "str", "\u202e\x1b[2J" * 2_000_000)
    hostile = rewrite(write_base(tmp_path / "base.gguf"), tmp_path / "h.gguf", metadata={name.key: name})
    out = info(capsys, str(hostile))
    assert len(out) < 5000
    assert "characters)" in out
    assert "\x1b" not in out


def test_a_base_that_cannot_be_widened_is_still_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base.gguf", metadata=(KeyValue("llama.attention.value_length", "u32", 8),))
    found = as_json(capsys, base)
    assert found["geometry"] is None
    assert "16 for keys and 8 for values" in found["problem"]
    assert "cannot be widened" in info(capsys, str(base))


def test_without_a_file_it_is_about_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(info(capsys, "--json"))
    assert found["llama_cpp_commit"] == _native.LLAMA_CPP_COMMIT
    assert any(device["type"] == "cpu" for device in found["devices"])
    assert _native.LLAMA_CPP_COMMIT in info(capsys)


def test_the_architectures_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(info(capsys, "--architectures", "--json"))
    assert [row["model_type"] for row in rows] == list(supported())
    title, *lines = info(capsys, "--architectures").splitlines()
    assert title.split() == ["Hugging", "Face", "GGUF", "models;", "notes"]
    assert [line.split(maxsplit=2) for line in lines] == [
        [row["model_type"], row["gguf"], f"{row['title']}; {row['notes']}"] for row in rows
    ]


def test_architectures_of_a_file_are_nobodys_question(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["info", "base.gguf", "--architectures"])
    assert_names(capsys.readouterr().err.splitlines()[-1], "--architectures", "FILE")


@pytest.mark.parametrize("kind", ["base", "sidecar", "merged"])
def test_a_damaged_file_is_one_line(
    tmp_path: Path, files: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files[kind].read_bytes()[:-100])
    assert main(["info", str(cut)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert_names(captured.err, cut, "bytes")


def test_sizes_have_units() -> None:
    assert [human_size(size) for size in (0, 1023, 1024, 3 << 20, 5 << 40, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
        "5120.0 TiB",
    ]


def test_a_vocabulary_head_says_what_it_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = (HeadConfig(), HeadConfig("next", input="both", kind="vocabulary", rank=32))
    sidecar = write_sidecar(tmp_path / "s.gguf", write_base(tmp_path / "base.gguf"), insertion(heads=heads))
    row = "head next        scores of every next token, rank 32, reads both, activation none: reward (scale 1, shift 0)"
    assert row in info(capsys, str(sidecar))
    found = as_json(capsys, sidecar)
    assert found["reward_labels"] == ["reward"]
    assert [head["kind"] for head in found["insertion"]["heads"]] == ["value", "vocabulary"]
