"""Sidecar back to adapter: bit for bit where the file is F32, and never over anything that was there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.sidecar import convert_sidecar
from otter_gguf.converters.widened import convert_widened

from otter_gguf import _native
from otter_gguf.adapter_format import AdapterRecord
from otter_gguf.config import HeadConfig
from otter_gguf.errors import FileError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.merge import merge
from tests.refusals import refused

from ..gguf.toy_files import Float32, adapter_tensors, float_tensor, insertion, rewrite, write_adapter, write_base
from .toy_widened import CONFIG as WIDENED
from .toy_widened import write_widened

NEXT = HeadConfig("next", ("safety.help",), "both", "none", (2.0,), (0.5,), kind="vocabulary", rank=32)
VALUE_HEADS = insertion().heads
CONFIGS = {
    "slice": insertion(),
    "table": insertion(state_source="table"),
    "heads alone": insertion(width=0, n_head_kv=(0, 0), n_ff=(0, 0), heads=(HeadConfig(input="base"),)),
    "vocabulary head": insertion(heads=(VALUE_HEADS[0], NEXT, VALUE_HEADS[1])),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf", type="Q8_0")


def to_sidecar(folder: Path, base: Path, target: Path, outtype: str = "f32") -> Path:
    with BaseFiles.open(base) as files:
        convert_adapter(folder, target, files, outtype=outtype)
    return target


def tensors_of(folder: Path) -> dict[str, Float32]:
    return safetensors.numpy.load_file(folder / "otter_model.safetensors")


def record_of(folder: Path) -> Any:
    return json.loads((folder / "otter_config.json").read_text())


def assert_same_bits(found: dict[str, Float32], expected: dict[str, Float32]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == values.shape
        assert np.array_equal(found[name].view(np.uint32), values.view(np.uint32)), name


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_an_f32_sidecar_comes_back_bit_for_bit(name: str, base: Path, tmp_path: Path) -> None:
    config = CONFIGS[name]
    tensors = adapter_tensors(config)
    source = write_adapter(tmp_path / "kind", config, tensors)
    sidecar = to_sidecar(source, base, tmp_path / "kind.otter.gguf")
    assert convert_sidecar(sidecar, tmp_path / "back") == config
    assert_same_bits(tensors_of(tmp_path / "back"), tensors)
    assert replace(AdapterRecord.read(tmp_path / "back"), training={}) == AdapterRecord.read(source)
    again = to_sidecar(tmp_path / "back", base, tmp_path / "again.otter.gguf")
    with _native.GgufFile(str(sidecar)) as first, _native.GgufFile(str(again)) as second:
        for tensor in first.tensors:
            assert bytes(first.tensor_data(tensor.name)) == bytes(second.tensor_data(tensor.name))


def test_one_other_weight_comes_back_as_one_other_weight(base: Path, tmp_path: Path) -> None:
    tensors = adapter_tensors(insertion())
    name = "model.layers.1.self_attn.k_proj.otter.weight"
    sidecar = to_sidecar(write_adapter(tmp_path / "a", tensors=tensors), base, tmp_path / "a.gguf")
    with _native.GgufFile(str(sidecar)) as file:
        rows = _native.dequantize(file.tensor_data("blk.1.attn_qkv.otter.weight"), "F32", 96).copy()
    rows[65, 7] += 1.0  # of 64 query rows and 2 * 32 key and value rows: the second row of the first key head
    plan = float_tensor("blk.1.attn_qkv.otter.weight", rows)
    changed = rewrite(sidecar, tmp_path / "b.gguf", tensors={plan.name: plan})
    convert_sidecar(changed, tmp_path / "b")
    found = tensors_of(tmp_path / "b")
    assert [key for key in tensors if not np.array_equal(found[key], tensors[key])] == [name]
    # llama.cpp's channel 1 is Hugging Face's channel n/2
    assert np.argwhere(found[name] != tensors[name]).tolist() == [[8, 7]]


def test_the_file_is_the_one_that_safetensors_writes(base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.gguf")
    convert_sidecar(sidecar, tmp_path / "back")
    written = (tmp_path / "back" / "otter_model.safetensors").read_bytes()
    assert written == safetensors.numpy.save(adapter_tensors(insertion()), metadata={"format": "pt"})


@pytest.mark.parametrize(("outtype", "expected"), [("q8_0", {"Q8_0": 5, "F16": 1}), ("f16", {"F16": 6}), ("f32", {})])
def test_other_types_are_dequantized_and_counted(
    outtype: str, expected: dict[str, int], base: Path, tmp_path: Path
) -> None:
    tensors = adapter_tensors(insertion())
    sidecar = to_sidecar(write_adapter(tmp_path / "a", tensors=tensors), base, tmp_path / "a.otter.gguf", outtype)
    convert_sidecar(sidecar, tmp_path / "back")
    made_from = record_of(tmp_path / "back")["training"]["converted_from"]
    assert made_from["file"] == "a.otter.gguf"
    assert made_from["dequantized_tensors"] == expected
    found = tensors_of(tmp_path / "back")
    name = "model.layers.0.self_attn.o_proj.otter.weight"
    with _native.GgufFile(str(sidecar)) as file:
        assert made_from["base_fingerprint"] == file.value("otter.base.fingerprint")
        stored = _native.dequantize(file.tensor_data("blk.0.attn_output.otter.weight"), outtype.upper(), 96)
    assert np.array_equal(found[name], stored)
    assert np.array_equal(found[name], tensors[name]) == (outtype == "f32")
    assert np.array_equal(found["heads.reward.otter.weight"], tensors["heads.reward.otter.weight"])


def test_a_merged_file_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.otter.gguf")
    merge(base, sidecar, tmp_path / "m.gguf")
    convert_sidecar(sidecar, tmp_path / "one")
    convert_sidecar(tmp_path / "m.gguf", tmp_path / "two")
    assert_same_bits(tensors_of(tmp_path / "two"), tensors_of(tmp_path / "one"))
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert two["training"]["converted_from"].pop("file") == "m.gguf"
    assert one["training"]["converted_from"].pop("file") == "a.otter.gguf"
    assert one == two


def test_a_widened_checkpoint_goes_round(tmp_path: Path) -> None:
    """Widened, sidecar, adapter, sidecar, adapter: no bit is lost on the way."""
    base = write_base(tmp_path / "base.gguf", type="F32")
    wide = write_widened(tmp_path / "wide")
    with BaseFiles.open(base) as files:
        convert_widened(wide, tmp_path / "1.gguf", files, outtype="f32")
    convert_sidecar(tmp_path / "1.gguf", tmp_path / "1")
    assert_same_bits(tensors_of(tmp_path / "1"), adapter_tensors(WIDENED))
    to_sidecar(tmp_path / "1", base, tmp_path / "2.gguf")
    convert_sidecar(tmp_path / "2.gguf", tmp_path / "2")
    weights = [(tmp_path / name / "otter_model.safetensors").read_bytes() for name in "12"]
    assert weights[0] == weights[1]


# ---- lineage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_name", "revision", "expected"),
    [
        ("toys/base", "abc123", ("toys/base", "abc123")),
        ("toys/base", None, ("toys/base", None)),
        ("plain", "abc123", ("plain", None)),
        ("/home/someone/base", None, ("base", None)),
        ("", None, (None, None)),
    ],
)
def test_the_base_is_named_as_the_sidecar_names_it(
    base_name: str, revision: str | None, expected: tuple[str | None, str | None], base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=base_name, revision=revision)
    convert_sidecar(to_sidecar(folder, base, tmp_path / "a.gguf"), tmp_path / "back")
    record = record_of(tmp_path / "back")
    assert (record["base_model_name_or_path"], record["revision"]) == expected


def test_odd_lineage_keys_are_no_base_name(base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.gguf")
    odd = {"general.base_model.0.name": KeyValue("general.base_model.0.name", "u32", 7)}
    convert_sidecar(rewrite(sidecar, tmp_path / "b.gguf", metadata=odd), tmp_path / "back")
    assert record_of(tmp_path / "back")["base_model_name_or_path"] is None


# ---- refusals --------------------------------------------------------------------------------------------------


def test_what_holds_no_insertion_is_refused(base: Path, tmp_path: Path) -> None:
    with refused(FileError, base, "adapter.type"):
        convert_sidecar(base, tmp_path / "back")
    with refused(FileError, tmp_path / "nowhere.gguf"):
        convert_sidecar(tmp_path / "nowhere.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_damage_and_other_architectures_are_refused(base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.gguf")
    bad = float_tensor("output_norm.otter.weight", np.full(32, np.nan, np.float32))
    rewrite(sidecar, tmp_path / "nan.gguf", tensors={bad.name: bad})
    rewrite(sidecar, tmp_path / "less.gguf", tensors={"output_norm.otter.weight": None})
    other = {"general.architecture": KeyValue("general.architecture", "str", "mamba")}
    rewrite(sidecar, tmp_path / "other.gguf", metadata=other)
    with refused(FileError, tmp_path / "nan.gguf", "output_norm.otter.weight", "NaN"):
        convert_sidecar(tmp_path / "nan.gguf", tmp_path / "back")
    with refused(FileError, tmp_path / "less.gguf", "output_norm.otter.weight"):
        convert_sidecar(tmp_path / "less.gguf", tmp_path / "back")
    with refused(UnsupportedError, "mamba", "llama"):
        convert_sidecar(tmp_path / "other.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("existing", ["otter_config.json", "otter_model.safetensors"])
def test_nothing_is_replaced_without_force(existing: str, base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.gguf")
    folder = tmp_path / "back"
    folder.mkdir()
    (folder / existing).write_text("old")
    (folder / "notes.txt").write_text("mine")
    with refused(FileError, folder / existing, "--force"):
        convert_sidecar(sidecar, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {existing: "old", "notes.txt": "mine"}
    convert_sidecar(sidecar, folder, force=True)
    assert_same_bits(tensors_of(folder), adapter_tensors(insertion()))
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_input_is_never_written(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "back"
    folder.mkdir()
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, folder / "otter_model.safetensors")
    content = sidecar.read_bytes()
    with refused(FileError, sidecar, "input"):
        convert_sidecar(sidecar, folder, force=True)
    assert sidecar.read_bytes() == content
    assert [path.name for path in folder.iterdir()] == ["otter_model.safetensors"]


def test_a_folder_that_cannot_be_made_is_said(base: Path, tmp_path: Path) -> None:
    sidecar = to_sidecar(write_adapter(tmp_path / "a"), base, tmp_path / "a.gguf")
    with refused(FileError, base, "folder"):
        convert_sidecar(sidecar, base)


def test_torch_is_not_needed() -> None:
    code = "import sys, otter_gguf.converters.sidecar; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
