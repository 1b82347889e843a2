"""Adapter checkpoint to sidecar: every number in its place, and every wrong checkpoint refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.recipes import permute_rows, unpermute_rows

from otter_gguf import _native
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.demo.assets import NAME
from otter_gguf.errors import ConfigError, FileError, MismatchError, OtterError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.sidecar import validate_insertion
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from tests.refusals import assert_names, refused

from ..gguf.toy_files import (
    GEOMETRY,
    Float32,
    adapter_shapes,
    adapter_tensors,
    base_metadata,
    insertion,
    rope_order,
    write_adapter,
    write_base,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf", type="Q8_0")


def convert(folder: Path, base: Path, outtype: str = "f32") -> dict[str, tuple[str, Float32]]:
    """Type and values of every tensor of the sidecar."""
    target = folder.with_suffix(".gguf")
    with BaseFiles.open(base) as files:
        convert_adapter(folder, target, files, outtype=outtype)
    with _native.GgufFile(str(target)) as file:
        validate_insertion(file)
        return {
            tensor.name: (tensor.type, _native.dequantize(file.tensor_data(tensor.name), tensor.type, tensor.shape[0]))
            for tensor in file.tensors
        }


def refusal(folder: Path, base: Path, kind: type[OtterError], *names: object, outtype: str = "f32") -> str:
    """The one line with which a folder is refused; no file is left. Names are looked for outside its path."""
    with refused(kind) as caught:
        convert(folder, base, outtype)
    assert not folder.with_suffix(".gguf").exists()
    message = str(caught.value).replace(f"{folder}", "FOLDER")
    assert_names(message, *names)
    return message


# ---- values ----------------------------------------------------------------------------------------------------


def test_every_number_is_in_its_place(tmp_path: Path, base: Path) -> None:
    config = insertion(state_source="table")
    source = adapter_tensors(config)
    made = {name: values for name, (_, values) in convert(write_adapter(tmp_path / "a", config, source), base).items()}
    for layer in (0, 1):
        hf, gg = f"model.layers.{layer}", f"blk.{layer}"
        attention = [source[f"{hf}.self_attn.{part}_proj.otter.weight"] for part in "qkv"]
        expected = np.concatenate([rope_order(attention[0], 16), rope_order(attention[1], 16), attention[2]])
        np.testing.assert_array_equal(made[f"{gg}.attn_qkv.otter.weight"], expected)
        np.testing.assert_array_equal(
            made[f"{gg}.attn_output.otter.weight"], source[f"{hf}.self_attn.o_proj.otter.weight"]
        )
    mlp = [source[f"model.layers.0.mlp.{part}_proj.otter.weight"] for part in ("gate", "up", "down")]
    np.testing.assert_array_equal(made["blk.0.ffn_up.otter.weight"], np.concatenate(mlp[:2]))
    np.testing.assert_array_equal(made["blk.0.ffn_down.otter.weight"], mlp[2])
    np.testing.assert_array_equal(made["token_embd.otter.weight"], source["model.embed_tokens.otter.weight"])
    np.testing.assert_array_equal(made["output_norm.otter.weight"][0], source["model.norm.otter.weight"])
    np.testing.assert_array_equal(made["cls.output.safety.otter.weight"], source["heads.safety.otter.weight"])
    np.testing.assert_array_equal(made["cls.output.safety.otter.bias"][0], source["heads.safety.otter.bias"])


def test_permutation_is_the_slow_one_and_has_an_inverse() -> None:
    rows = np.arange(3 * 16 * 5, dtype=np.float32).reshape(48, 5)
    np.testing.assert_array_equal(permute_rows(rows, 16), rope_order(rows, 16))
    np.testing.assert_array_equal(unpermute_rows(permute_rows(rows, 16), 16), rows)
    assert not np.array_equal(permute_rows(rows, 16), rows)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sixteen_bit_checkpoints_keep_their_values(tmp_path: Path, base: Path, dtype: str) -> None:
    exact = {name: (values * 8).round() / 8 for name, values in adapter_tensors(insertion()).items()}
    wide = convert(write_adapter(tmp_path / "wide", tensors=exact), base)
    short = convert(write_adapter(tmp_path / "short", tensors=exact, dtype=dtype), base)
    for name, (_, values) in wide.items():
        np.testing.assert_array_equal(short[name][1], values)


@pytest.mark.parametrize(
    ("outtype", "matrix", "tolerance"),
    [("f32", "F32", 0.0), ("f16", "F16", 1e-3), ("bf16", "BF16", 1e-2), ("q8_0", "Q8_0", 1e-2), ("q4_0", "Q4_0", 0.2)],
)
def test_matrices_have_the_type_asked_for(
    tmp_path: Path, base: Path, outtype: str, matrix: str, tolerance: float
) -> None:
    exact = convert(write_adapter(tmp_path / "exact"), base)
    made = convert(write_adapter(tmp_path / "made"), base, outtype)
    for name, (type, values) in made.items():
        small = "norm" in name or name.startswith("cls.")
        mixed = matrix == "Q8_0" and "ffn_down" in name
        assert type == ("F32" if small else "F16" if mixed else matrix)
        np.testing.assert_allclose(values, exact[name][1], atol=0.0 if small else tolerance)


@pytest.mark.parametrize(("width", "expected"), [(32, "Q8_0"), (20, "F16")])
def test_auto_falls_back_where_blocks_do_not_fit(tmp_path: Path, base: Path, width: int, expected: str) -> None:
    config = insertion(width=width, n_head_kv=(1, 1), n_ff=(32, 32))
    made = convert(write_adapter(tmp_path / "a", config), base, "auto")
    assert made["blk.0.attn_qkv.otter.weight"][0] == expected  # 64 + width columns
    assert made["blk.0.attn_output.otter.weight"][0] == "Q8_0"  # 96 columns, whatever the width


VOCABULARY = insertion(
    heads=(
        HeadConfig("next", ("reward",), "both", kind="vocabulary", rank=32),
        HeadConfig(),
        HeadConfig("wide", ("reward",), "base", kind="vocabulary", rank=20),
    )
)


@pytest.mark.parametrize(
    ("outtype", "whole", "odd", "tolerance"),
    [
        ("f32", "F32", "F32", 0.0),
        ("f16", "F16", "F16", 1e-3),
        ("q8_0", "Q8_0", "F16", 1e-2),
        ("auto", "Q8_0", "F16", 1e-2),
    ],
)
def test_token_tables_follow_outtype_and_their_heads_do_not(
    tmp_path: Path, base: Path, outtype: str, whole: str, odd: str, tolerance: float
) -> None:
    source = adapter_tensors(VOCABULARY)
    made = convert(write_adapter(tmp_path / "a", VOCABULARY, source), base, outtype)
    assert [made[f"cls.table.{name}.otter.weight"][0] for name in ("next", "wide")] == [whole, odd]
    for name in ("next", "wide"):
        table = source[f"heads.{name}.table.otter.weight"]
        np.testing.assert_allclose(made[f"cls.table.{name}.otter.weight"][1], table, atol=tolerance)
        assert made[f"cls.output.{name}.otter.weight"][0] == "F32"
        np.testing.assert_array_equal(made[f"cls.output.{name}.otter.weight"][1], source[f"heads.{name}.otter.weight"])
        np.testing.assert_array_equal(made[f"cls.output.{name}.otter.bias"][1][0], source[f"heads.{name}.otter.bias"])


def test_the_shipped_sidecar_is_reproduced_from_its_adapter(tmp_path: Path) -> None:
    files = demo_files()
    with BaseFiles.open(files.base) as base:
        convert_adapter(files.adapter, tmp_path / "demo.gguf", base, outtype="q8_0", name=NAME)
    assert (tmp_path / "demo.gguf").read_bytes() == files.sidecar.read_bytes()


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["heads.next.table.otter.weight", "heads.next.otter.weight"])
def test_a_vocabulary_head_without_a_part_is_refused(tmp_path: Path, base: Path, missing: str) -> None:
    tensors = adapter_tensors(VOCABULARY)
    del tensors[missing]
    refusal(write_adapter(tmp_path / "a", VOCABULARY, tensors), base, FileError, "FOLDER", missing)


def test_a_table_of_another_rank_is_refused(tmp_path: Path, base: Path) -> None:
    heads = [replace(head, rank=24) if head.rank == 20 else head for head in VOCABULARY.heads]
    folder = write_adapter(tmp_path / "a", replace(VOCABULARY, heads=tuple(heads)), adapter_tensors(VOCABULARY))
    message = refusal(folder, base, FileError, "heads.wide.table.otter.weight", "[288, 20]", "[288, 24]")
    assert_names(message, "heads.wide.otter.weight", "[21, 64]", "[25, 64]")


def test_all_wrong_tensors_are_named_together(tmp_path: Path, base: Path) -> None:
    tensors = adapter_tensors(insertion())
    del tensors["model.norm.otter.weight"]
    tensors["model.norm.weight"] = np.ones(64, np.float32)
    tensors["heads.reward.otter.bias"] = np.ones(2, np.float32)
    message = refusal(write_adapter(tmp_path / "a", tensors=tensors), base, FileError)
    assert_names(message, "model.norm.otter.weight", "model.norm.weight", "heads.reward.otter.bias", "[2]", "[1]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, base: Path, value: float) -> None:
    tensors = adapter_tensors(insertion())
    tensors["model.layers.1.self_attn.k_proj.otter.weight"][3, 5] = value
    name = "model.layers.1.self_attn.k_proj.otter.weight"
    message = refusal(write_adapter(tmp_path / "a", tensors=tensors), base, FileError, name, "[3, 5]", value)
    assert "outtype" not in message


def test_what_f16_cannot_hold_is_refused_with_advice(tmp_path: Path, base: Path) -> None:
    tensors = adapter_tensors(insertion())
    tensors["model.layers.0.mlp.up_proj.otter.weight"][1, 2] = 70000.0
    folder = write_adapter(tmp_path / "a", tensors=tensors)
    name = "model.layers.0.mlp.up_proj.otter.weight"
    refusal(folder, base, FileError, name, "[1, 2]", 70000.0, "F16", "--outtype", "bf16", "f32", outtype="f16")
    assert convert(folder, base, "bf16")["blk.0.ffn_up.otter.weight"][1].max() == pytest.approx(70000, rel=1e-2)


def test_a_base_of_other_sizes_is_refused_before_reading(tmp_path: Path, base: Path) -> None:
    config = replace(insertion(), base=replace(GEOMETRY, n_ff=128))
    refusal(write_adapter(tmp_path / "a", config), base, MismatchError, "FOLDER", base, "n_ff", 96, 128)


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    geometry = replace(GEOMETRY, architecture="mamba")
    base = write_base(tmp_path / "mamba.gguf", geometry=geometry)
    refusal(write_adapter(tmp_path / "a", insertion(base=geometry)), base, UnsupportedError, "mamba", "llama")


@pytest.mark.parametrize(
    ("changes", "kind", "names"),
    [
        ({"format": "lora"}, FileError, ("format", "lora", "otter-adapter")),
        ({"version": 2}, UnsupportedError, ("version", 2, 1)),
        ({"version": "1"}, UnsupportedError, ("version", "'1'", 1)),
        ({"insertion": None}, FileError, ("insertion", "missing")),
        ({"insertion": {}}, FileError, ("insertion", "'base'")),
        ({"insertion": insertion().to_dict() | {"future": 1}}, FileError, ("'future'",)),
        ({"insertion": insertion().to_dict() | {"width": -1}}, FileError, ("width", -1)),
        ({"insertion": insertion().to_dict() | {"width": "64"}}, FileError, ("width", "'64'")),
        ({"insertion": insertion().to_dict() | {"base": 3}}, FileError, ("BaseGeometry",)),
        ({"insertion": insertion().to_dict() | {"n_ff": [1.5, 2]}}, FileError, ("n_ff",)),
        ({"insertion": insertion().to_dict() | {"heads": [{"labels": [1]}]}}, FileError, ("reward", "labels")),
        (
            {"insertion": insertion().to_dict() | {"state_source": "table", "state_offset": 2**32}},
            FileError,
            ("state_offset", 2**32),
        ),
        ({"insertion": insertion().to_dict() | {"heads": [{"scale": [1e300]}]}}, FileError, ("scales", "float32")),
        ({"insertion": insertion().to_dict() | {"heads": [{"scale": ["a"]}]}}, FileError, ("scale", "'a'")),
        ({"insertion": insertion().to_dict() | {"heads": [3]}}, FileError, ("HeadConfig",)),
    ],
)
def test_wrong_configurations_are_refused(
    tmp_path: Path, base: Path, changes: dict[str, Any], kind: type[OtterError], names: tuple[object, ...]
) -> None:
    refusal(write_adapter(tmp_path / "a", **changes), base, kind, "otter_config.json", *names)


def test_a_missing_part_of_the_folder_is_named(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "otter_model.safetensors").unlink()
    refusal(folder, base, FileError, "FOLDER", "otter_model.safetensors")
    (folder / "otter_config.json").unlink()
    refusal(folder, base, FileError, "FOLDER/otter_config.json")


def test_an_unknown_outtype_is_refused(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    refusal(folder, base, ConfigError, "--outtype", "q3_k", "f32", "f16", outtype="q3_k")


def test_inputs_are_not_overwritten(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    before = base.read_bytes(), (folder / "otter_config.json").read_bytes()
    for target in (base, folder / "otter_config.json"):
        with BaseFiles.open(base) as files, refused(FileError, target, "input"):
            convert_adapter(folder, target, files, force=True)
    assert before == (base.read_bytes(), (folder / "otter_config.json").read_bytes())


# ---- kill -9 and memory ----------------------------------------------------------------------------------------

_CONVERT_FOREVER = """
import sys
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.gguf.base import BaseFiles
print("ready", flush=True)
with BaseFiles.open(sys.argv[2]) as base:
    while True:
        convert_adapter(sys.argv[1], sys.argv[3], base, force=True)
"""


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_leaves_the_old_or_the_new_file(tmp_path: Path, base: Path, n_kills: int) -> None:
    folder = write_adapter(tmp_path / "a")
    convert(folder, base, "auto")
    new, target = folder.with_suffix(".gguf").read_bytes(), tmp_path / "killed.gguf"
    for number in range(n_kills):
        target.write_bytes(b"old")
        command = [sys.executable, "-c", _CONVERT_FOREVER, str(folder), str(base), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.004 * number)
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() in (b"old", new)
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) <= 1


# VmHWM and not ru_maxrss: that one counts what the parent held when it started the process.
_MEASURED = """
import re, sys
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.gguf.base import BaseFiles
with BaseFiles.open(sys.argv[2]) as base:
    convert_adapter(sys.argv[1], sys.argv[3], base)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_1b_adapter_with_a_large_table_converts_in_400_megabytes(tmp_path: Path) -> None:
    """Llama 3.2 1B's sizes, e 512; of the base only keys, names and the embedding's shape matter here."""
    geometry = BaseGeometry("llama", 16, 2048, 32, 8, 64, 8192, 128256)
    config = InsertionConfig.uniform(
        geometry, 512, n_head_kv=1, n_ff=256, state_source="table", heads=(HeadConfig(input="both"),)
    )
    tensors = {name: np.ones(shape, np.float32) for name, shape in adapter_shapes(config)}
    folder, base = write_adapter(tmp_path / "a", config, tensors), tmp_path / "base.gguf"
    embedding = TensorPlan("token_embd.weight", "Q4_0", (2048, 128256), lambda: [bytes(1152)] * 128256)
    metadata = [entry for entry in base_metadata(geometry) if entry.key.startswith(("general.", "llama."))]
    write_gguf(base, metadata, [embedding])
    command = [sys.executable, "-c", _MEASURED, str(folder), str(base), str(tmp_path / "s.gguf")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(result.stdout) < 400_000
    assert (tmp_path / "s.gguf").stat().st_size > 100_000_000
