"""Widened checkpoints: cut apart exactly, and refused when a block is not what it must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.widened import convert_widened
from transformers import LlamaForCausalLM

from otter_gguf import _native
from otter_gguf.config import HeadConfig, StateSource
from otter_gguf.errors import FileError, MismatchError, OtterError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.merge import split
from otter_gguf.training import export_widened, insert
from otter_gguf.widened_format import is_widened
from tests.refusals import assert_names, refused

from ..gguf.toy_files import (
    GEOMETRY,
    Float32,
    base_tensors,
    insertion,
    save_safetensors,
    write_adapter,
    write_base,
)
from .toy_hf import write_hf_model
from .toy_widened import CONFIG, write_widened

VARIANTS = {
    "all": CONFIG,
    "attention only": replace(CONFIG, n_ff=(0, 0)),
    "FFN only": replace(CONFIG, n_head_kv=(0, 0)),
    "vocabulary head": replace(
        CONFIG, heads=(HeadConfig(), HeadConfig("next", input="both", kind="vocabulary", rank=32))
    ),
    "nothing but the state": replace(CONFIG, n_head_kv=(0, 0), n_ff=(0, 0)),
}


def write_hf_base(folder: Path, dtype: str = "F32", *, tied: bool = False) -> Path:
    """The toy base as a Hugging Face folder."""
    folder.mkdir()
    tensors = base_tensors()
    if tied:
        del tensors["lm_head.weight"]
    save_safetensors(folder / "model.safetensors", tensors, dtype)
    (folder / "config.json").write_text("{}")
    return folder


def convert(folder: Path, base: Path, target: Path, **options: Any) -> bytes:
    with BaseFiles.open(base) as files:
        convert_widened(folder, target, files, **options)
    return target.read_bytes()


def refusal(folder: Path, base: Path, kind: type[OtterError], *names: object, **options: Any) -> None:
    """A folder is refused with one line, and no file is left. Names are looked for outside the paths."""
    target = folder.parent / "refused.gguf"
    with refused(kind) as caught:
        convert(folder, base, target, **options)
    assert not target.exists()
    assert_names(str(caught.value).replace(str(folder), "FOLDER").replace(str(base), "BASE"), *names)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf")


# ---- accepted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_widened_checkpoint_gives_the_adapters_sidecar(tmp_path: Path, base: Path, variant: str) -> None:
    config = VARIANTS[variant]
    with BaseFiles.open(base) as files:
        convert_adapter(write_adapter(tmp_path / "same", config), tmp_path / "a.gguf", files, name="x")
    assert is_widened(write_widened(tmp_path / "w", config))
    convert(tmp_path / "w", base, tmp_path / "w.gguf", name="x")
    with _native.GgufFile(str(tmp_path / "a.gguf")) as wanted, _native.GgufFile(str(tmp_path / "w.gguf")) as made:
        assert [tensor.name for tensor in made.tensors] == [tensor.name for tensor in wanted.tensors]
        for tensor in wanted.tensors:
            assert bytes(made.tensor_data(tensor.name)) == bytes(wanted.tensor_data(tensor.name))
        for key in wanted.keys:
            if not key.startswith("general.base_model"):
                assert bytes(made.raw_value(key)) == bytes(wanted.raw_value(key))


def test_merged_is_base_and_sidecar(tmp_path: Path, base: Path) -> None:
    folder = write_widened(tmp_path / "w")
    sidecar = convert(folder, base, tmp_path / "s.gguf")
    convert(folder, base, tmp_path / "m.gguf", merged=True)
    split(tmp_path / "m.gguf", tmp_path / "base2", tmp_path / "sidecar2")
    assert (tmp_path / "base2").read_bytes() == base.read_bytes()
    assert (tmp_path / "sidecar2").read_bytes() == sidecar


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_an_unquantized_gguf_base_is_enough(tmp_path: Path, type: str) -> None:
    base = write_base(tmp_path / "base.gguf", type=type)
    assert convert(write_widened(tmp_path / "w"), base, tmp_path / "s.gguf")


def test_a_bfloat16_checkpoint_fits_its_bfloat16_base(tmp_path: Path, base: Path) -> None:
    folder, base_hf = write_widened(tmp_path / "w", dtype="BF16"), write_hf_base(tmp_path / "hf", "BF16")
    tensors = {name: _bf16(values) for name, values in base_tensors().items()}
    exact = write_base(tmp_path / "exact.gguf", tensors=tensors)
    assert convert(folder, exact, tmp_path / "a.gguf", base_hf=base_hf) == convert(folder, exact, tmp_path / "b.gguf")
    refusal(folder, base, MismatchError, "FOLDER", "BASE", "model.embed_tokens.weight", "[0, 0]")


def test_a_quantized_base_needs_the_original_beside_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", type="Q4_0")
    folder = write_widened(tmp_path / "w")
    refusal(folder, base, UnsupportedError, "BASE", "token_embd.weight", "Q4_0", "--base-hf")
    assert convert(folder, base, tmp_path / "s.gguf", base_hf=write_hf_base(tmp_path / "hf"))


def test_a_tied_base_is_compared_with_its_embedding(tmp_path: Path) -> None:
    def tie(tensors: dict[str, Float32]) -> None:
        tensors["lm_head.weight"][:, :64] = base_tensors()["model.embed_tokens.weight"]

    base = write_base(tmp_path / "base.gguf", leave_out=("lm_head.weight",))
    folder = write_widened(tmp_path / "w", change=tie)
    made = convert(folder, base, tmp_path / "a.gguf")
    assert made == convert(folder, base, tmp_path / "b.gguf", base_hf=write_hf_base(tmp_path / "hf", tied=True))
    refusal(write_widened(tmp_path / "untied"), base, MismatchError, "FOLDER", "BASE", "lm_head.weight")


@pytest.mark.parametrize("state_source", ["table", "slice"])
def test_what_training_exports_is_accepted(tmp_path: Path, state_source: StateSource) -> None:
    model = LlamaForCausalLM.from_pretrained(write_hf_model(tmp_path / "hf", "F32"), dtype=torch.float32)
    trained = insert(model, replace(CONFIG, state_source=state_source), "normal", init_std=0.1)
    export_widened(trained, tmp_path / "w")
    trained.save_pretrained(tmp_path / "adapter")
    base = write_base(tmp_path / "base.gguf")
    convert(tmp_path / "w", base, tmp_path / "w.gguf", base_hf=tmp_path / "hf")
    with BaseFiles.open(base) as files:
        convert_adapter(tmp_path / "adapter", tmp_path / "a.gguf", files)
    with _native.GgufFile(str(tmp_path / "a.gguf")) as wanted, _native.GgufFile(str(tmp_path / "w.gguf")) as made:
        table = {"token_embd.otter.weight"}  # a slice becomes a table of the embedding's own channels
        assert {t.name for t in made.tensors} == {t.name for t in wanted.tensors} | table
        for tensor in wanted.tensors:
            assert bytes(made.tensor_data(tensor.name)) == bytes(wanted.tensor_data(tensor.name))


# ---- refused: blocks -------------------------------------------------------------------------------------------

ORIGINAL = [
    ("model.embed_tokens.weight", 7, 3),
    ("model.layers.0.self_attn.q_proj.weight", 5, 9),
    ("model.layers.1.self_attn.k_proj.weight", 31, 63),
    ("model.layers.1.self_attn.o_proj.weight", 63, 63),
    ("model.layers.0.mlp.down_proj.weight", 0, 95),
    ("lm_head.weight", 287, 0),
]
ZEROS = [
    ("model.layers.0.self_attn.q_proj.weight", 63, 64),
    ("model.layers.1.self_attn.v_proj.weight", 0, 95),
    ("model.layers.0.self_attn.o_proj.weight", 63, 64),
    ("model.layers.1.mlp.gate_proj.weight", 95, 70),
    ("model.layers.1.mlp.down_proj.weight", 2, 100),
    ("lm_head.weight", 3, 64),
]


@pytest.mark.parametrize("reference", ["hf", "gguf"])
@pytest.mark.parametrize(("name", "row", "column"), ORIGINAL)
def test_a_changed_original_element_is_named(
    tmp_path: Path, base: Path, name: str, row: int, column: int, reference: str
) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        tensors[name][row, column] = 9.0

    folder = write_widened(tmp_path / "w", change=change)
    options = {"base_hf": write_hf_base(tmp_path / "hf")} if reference == "hf" else {}
    other = options.get("base_hf", "BASE")
    refusal(folder, base, MismatchError, "FOLDER", name, f"[{row}, {column}]", 9.0, other, **options)


@pytest.mark.parametrize(("name", "row", "column"), ZEROS)
def test_an_element_that_is_not_zero_is_named(tmp_path: Path, base: Path, name: str, row: int, column: int) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        tensors[name][row, column] = 1e-30

    folder = write_widened(tmp_path / "w", change=change)
    refusal(folder, base, MismatchError, "FOLDER", name, f"[{row}, {column}]", float(np.float32(1e-30)), 0)


def test_a_changed_norm_is_named(tmp_path: Path, base: Path) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        tensors["model.norm.weight"][63] = 9.0

    folder = write_widened(tmp_path / "w", change=change)
    refusal(folder, base, MismatchError, "model.norm.weight", "[0, 63]", 9.0, "BASE")


@pytest.mark.parametrize(
    ("variant", "name", "row"),
    [
        ("attention only", "model.layers.0.mlp.down_proj.weight", 64),
        ("FFN only", "model.layers.1.self_attn.o_proj.weight", 95),
    ],
)
def test_a_sub_layer_with_nothing_inserted_must_not_write_the_state(
    tmp_path: Path, base: Path, variant: str, name: str, row: int
) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        tensors[name][row, 4] = 0.5

    folder = write_widened(tmp_path / "w", VARIANTS[variant], change=change)
    refusal(folder, base, MismatchError, name, f"[{row}, 4]", 0.5, "inserted", 0)


def test_nan_in_a_zero_block_is_not_zero(tmp_path: Path, base: Path) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        tensors["lm_head.weight"][0, 95] = np.nan

    refusal(write_widened(tmp_path / "w", change=change), base, MismatchError, "lm_head.weight", "[0, 95]", "nan")


# ---- refused: names, shapes, configuration ---------------------------------------------------------------------


def test_all_wrong_tensors_are_named_together(tmp_path: Path, base: Path) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        del tensors["lm_head.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(96, np.float32)
        tensors["model.norm.weight"] = np.ones(64, np.float32)

    wrong = ("lm_head.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.weight", "[64]", "[96]")
    refusal(write_widened(tmp_path / "w", change=change), base, FileError, *wrong)


def test_a_missing_head_is_named(tmp_path: Path, base: Path) -> None:
    def change(tensors: dict[str, Float32]) -> None:
        del tensors["heads.safety.otter.bias"]

    refusal(write_widened(tmp_path / "w", change=change), base, FileError, "heads.safety.otter.bias")


@pytest.mark.parametrize(
    ("changes", "kind", "names"),
    [
        ({"hidden_size": 64}, MismatchError, ("hidden_size", 64, 96)),
        (
            {"num_key_value_heads": 2, "intermediate_size": 1},
            MismatchError,
            ("num_key_value_heads", 2, 3, "intermediate_size", 1, 128),
        ),
        ({"architectures": ["MambaForCausalLM"]}, UnsupportedError, ("MambaForCausalLM", "LlamaForCausalLM")),
        ({"architectures": None}, UnsupportedError, ("architectures", None)),
        ({"attention_bias": True}, UnsupportedError, ("biases",)),
        ({"otter": {}}, FileError, ("insertion", "missing")),
        ({"otter": 1}, FileError, ("insertion", "missing")),
        ({"otter": {"insertion": insertion().to_dict()}}, UnsupportedError, ("sizes", "layer")),
        (
            {"otter": {"insertion": replace(CONFIG, state_source="slice").to_dict()}},
            FileError,
            ("source", "slice", "table"),
        ),
    ],
)
def test_wrong_configurations_are_refused(
    tmp_path: Path, base: Path, changes: dict[str, Any], kind: type[OtterError], names: tuple[object, ...]
) -> None:
    refusal(write_widened(tmp_path / "w", **changes), base, kind, "FOLDER/config.json", *names)


def test_another_base_is_refused(tmp_path: Path, base: Path) -> None:
    other = write_base(tmp_path / "other.gguf", tensors=base_tensors(seed=5))
    folder = write_widened(tmp_path / "w")
    refusal(folder, other, MismatchError, "FOLDER", "BASE", "model.embed_tokens.weight", "[0, 0]")
    smaller = write_base(tmp_path / "small.gguf", geometry=replace(GEOMETRY, n_vocab=280))
    refusal(folder, smaller, MismatchError, "BASE", "token_embd.weight", "[64, 280]", 288)


def test_an_existing_file_is_kept(tmp_path: Path, base: Path) -> None:
    (tmp_path / "s.gguf").write_text("old")
    with refused(FileError, tmp_path / "s.gguf", "--force"):
        convert(write_widened(tmp_path / "w"), base, tmp_path / "s.gguf", merged=True)
    assert (tmp_path / "s.gguf").read_text() == "old"


def _bf16(values: Float32) -> Float32:
    shortened: Float32 = (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return shortened
