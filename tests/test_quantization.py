"""Quantizing bases, sidecars and merged files: the right types, the same model, whole files or none."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import Otter, _native
from otter_gguf.cli.main import main
from otter_gguf.errors import ConfigError, FileError, MismatchError, OtterError, UnsupportedError
from otter_gguf.gguf import encoding
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.checksums import check_checksums
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.merge import split
from otter_gguf.gguf.sidecar import check_binding, is_sidecar, read_insertion
from otter_gguf.quantization import SIDECAR_TYPES, QuantizeOptions, fitting_type, plan_quantization, quantize
from otter_gguf.quantization.importance import read_importance
from tests import quantizable
from tests.documents import DOCS, fenced
from tests.gguf.toy_files import float_tensor, rewrite
from tests.quantizable import types
from tests.refusals import refused

MATRIX = "blk.1.ffn_gate.weight"
INSERTED = "blk.1.ffn_up.otter.weight"


def options(type: str, **changes: Any) -> QuantizeOptions:
    return QuantizeOptions(type, n_threads=1, **changes)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_refused(
    error: type[OtterError], names: tuple[object, ...], *arguments: Any, folder: Path, **more: Any
) -> None:
    """Planning and writing fail alike, and no file is left."""
    before = names_in(folder)
    with refused(error, *names):
        plan_quantization(*arguments)
    with refused(error, *names):
        quantize(arguments[0], folder / "refused.gguf", *arguments[1:], **more)
    assert names_in(folder) == before


# ---- bases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "COPY"])
def test_a_base_comes_out_as_llama_quantize_writes_it(tmp_path: Path, type: str) -> None:
    source, target, expected = quantizable.base(), tmp_path / "a.gguf", tmp_path / "b.gguf"
    plan = quantize(source, target, options(type))
    _native.model_quantize(str(source), str(expected), type, 1)
    assert target.read_bytes() == expected.read_bytes()
    assert plan == plan_quantization(source, options(type))
    assert {tensor.name: tensor.new_type for tensor in plan.tensors} == types(target)
    with _native.GgufFile(str(target)) as file:
        assert plan.new_bytes == sum(tensor.n_bytes for tensor in file.tensors)
    assert names_in(tmp_path) == ["a.gguf", "b.gguf"]


def test_names_are_llama_quantizes_in_any_case() -> None:
    assert plan_quantization(quantizable.base(), options("q4_k")) == plan_quantization(
        quantizable.base(), options("Q4_K_M")
    )


def test_the_sidecar_still_fits_the_base(tmp_path: Path) -> None:
    quantize(quantizable.base(), tmp_path / "b.gguf", options("Q3_K_M"))
    with BaseFiles.open(tmp_path / "b.gguf") as base, _native.GgufFile(str(quantizable.sidecar())) as sidecar:
        check_binding(base, sidecar)
    with Otter(tmp_path / "b.gguf", otter=quantizable.sidecar(), n_ctx=64, n_threads=1) as llm:
        assert np.isfinite(llm.score("The otter").rewards).all()


def test_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    for name, source, type in (("b", quantizable.base(), "Q4_K_M"), ("s", quantizable.sidecar(), "Q4_K")):
        written = [tmp_path / f"{name}{n_threads}" for n_threads in (1, 3)]
        for path, n_threads in zip(written, (1, 3), strict=True):
            quantize(source, path, QuantizeOptions(type, n_threads=n_threads))
        assert written[0].read_bytes() == written[1].read_bytes()


def test_output_type_and_pure(tmp_path: Path) -> None:
    source = quantizable.base()
    mixed = {t.name: t.new_type for t in plan_quantization(source, options("Q4_0")).tensors}
    chosen = {t.name: t.new_type for t in plan_quantization(source, options("Q4_0", output_tensor_type="f16")).tensors}
    pure = {t.name: t.new_type for t in plan_quantization(source, options("Q4_0", pure=True)).tensors}
    assert [found["output.weight"] for found in (mixed, chosen, pure)] == ["Q6_K", "F16", "Q4_0"]
    assert {name for name in mixed if mixed[name] != chosen[name]} == {"output.weight"}
    assert set(pure.values()) == {"F32", "Q4_0"}


def test_rows_that_do_not_fit_get_another_type_and_are_named() -> None:
    from tests.synthetic_models import pair

    plan = plan_quantization(pair().base, options("Q4_K_M"))
    fallbacks = {tensor.name: tensor.new_type for tensor in plan.tensors if tensor.fallback}
    assert fallbacks["blk.0.attn_q.weight"] == "Q5_0"
    assert "blk.2.ffn_down.weight" not in fallbacks
    assert not any(tensor.fallback for tensor in plan_quantization(quantizable.base(), options("Q4_K_M")).tensors)


def test_several_files_become_one(tmp_path: Path) -> None:
    quantize(quantizable.shards(), tmp_path / "a.gguf", options("Q4_K_M"))
    assert (tmp_path / "a.gguf").read_bytes() == quantizable.base("Q4_K_M").read_bytes()


def test_several_files_stay_several(tmp_path: Path) -> None:
    first = tmp_path / "quantized-00001-of-00002.gguf"
    quantize(quantizable.shards(), first, options("Q4_K_M", keep_split=True))
    assert names_in(tmp_path) == [first.name, "quantized-00002-of-00002.gguf"]
    whole = types(quantizable.base("Q4_K_M"))
    with BaseFiles.open(first) as base, BaseFiles.open(quantizable.base("Q4_K_M")) as expected:
        assert {tensor.name: tensor.type for tensor in base.tensors} == whole
        assert all(bytes(base.tensor_data(name)) == bytes(expected.tensor_data(name)) for name in whole)
        assert fingerprint(base) == fingerprint(expected)
    with Otter(first, otter=quantizable.sidecar(), n_ctx=64, n_threads=1) as llm:
        assert np.isfinite(llm.score("The otter").rewards).all()


def test_several_files_need_the_first_ones_name(tmp_path: Path) -> None:
    with refused(ConfigError, "a.gguf", "--keep-split", "2 files", "NAME-00001-of-00002.gguf"):
        quantize(quantizable.shards(), tmp_path / "a.gguf", options("Q8_0", keep_split=True))
    for source in (quantizable.base(), quantizable.merged()):
        assert_refused(ConfigError, (source, "--keep-split"), source, options("Q8_0", keep_split=True), folder=tmp_path)
    assert names_in(tmp_path) == []


def test_a_shard_that_exists_is_kept(tmp_path: Path) -> None:
    other = tmp_path / "q-00002-of-00002.gguf"
    other.write_text("mine")
    with refused(FileError, other, "--force"):
        quantize(quantizable.shards(), tmp_path / "q-00001-of-00002.gguf", options("Q8_0", keep_split=True))
    assert names_in(tmp_path) == [other.name]
    assert other.read_text() == "mine"


# ---- what was quantized before ---------------------------------------------------------------------------------


def test_types_near_the_trained_values_are_taken(tmp_path: Path) -> None:
    for type in ("F16", "BF16", "Q8_0"):
        plan = plan_quantization(quantizable.base(type), options("Q4_0"))
        assert {tensor.old_type for tensor in plan.tensors} == {"F32", type}


def test_lower_types_only_if_allowed(tmp_path: Path) -> None:
    base, sidecar = quantizable.base("Q5_0"), quantizable.sidecar("Q5_0")
    names = ("Q5_0", "--allow-requantize")
    assert_refused(ConfigError, (base, *names), base, options("Q4_0"), folder=tmp_path)
    assert_refused(ConfigError, (sidecar, *names), sidecar, options("Q4_0"), folder=tmp_path)
    for number, source in enumerate((base, sidecar)):
        target = tmp_path / str(number)
        quantize(source, target, options("Q4_0", allow_requantize=True))
        assert "Q5_0" not in types(target).values()


def test_what_keeps_its_type_needs_no_permission(tmp_path: Path) -> None:
    quantize(quantizable.sidecar("Q5_0"), tmp_path / "s", options("Q5_0"))
    assert (tmp_path / "s").read_bytes() == quantizable.sidecar("Q5_0").read_bytes()


# ---- sidecars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q4_K", "IQ4_XS"])
def test_a_sidecars_matrices_get_the_type(tmp_path: Path, type: str) -> None:
    plan = quantize(quantizable.sidecar(), tmp_path / "s", options(type))
    assert {tensor.name: tensor.new_type for tensor in plan.tensors} == types(tmp_path / "s")
    with _native.GgufFile(str(quantizable.sidecar())) as old, _native.GgufFile(str(tmp_path / "s")) as new:
        assert read_insertion(new) == read_insertion(old)
        for tensor in plan.tensors:
            small, mixed = "norm" in tensor.name or "cls." in tensor.name, type == "Q8_0" and "ffn_down" in tensor.name
            assert tensor.new_type == ("F32" if small else "F16" if mixed else type)
            values = np.frombuffer(old.tensor_data(tensor.name), np.float32).reshape(-1, tensor.shape[0])
            assert bytes(new.tensor_data(tensor.name)) == _native.quantize(values, tensor.new_type)


def test_a_pure_q8_0_sidecar_is_no_mixture(tmp_path: Path) -> None:
    plans = {pure: plan_quantization(quantizable.sidecar(), options("Q8_0", pure=pure)) for pure in (False, True)}
    mixed, pure = ({tensor.name: tensor.new_type for tensor in plan.tensors} for plan in plans.values())
    changed = {name for name in mixed if mixed[name] != pure[name]}
    assert changed == {name for name in mixed if "ffn_down" in name}
    assert set(pure.values()) == {"F32", "Q8_0"}
    merged = quantize(quantizable.merged(), tmp_path / "m", options("COPY", otter_type="Q8_0", pure=True))
    assert {tensor.name: tensor.new_type for tensor in merged.tensors if tensor.part == "inserted"} == pure
    assert pure.items() <= types(tmp_path / "m").items()


def test_a_sidecars_keys_stay(tmp_path: Path) -> None:
    quantize(quantizable.sidecar(), tmp_path / "s", options("Q8_0"))
    with _native.GgufFile(str(quantizable.sidecar())) as old, _native.GgufFile(str(tmp_path / "s")) as new:
        assert is_sidecar(new)
        kept = [key for key in old.keys if not key.startswith("otter.checksum.")]
        assert set(new.keys) == {*old.keys, "general.quantization_version"}
        assert all(bytes(new.raw_value(key)) == bytes(old.raw_value(key)) for key in kept)
        assert new.value("otter.checksum.tensors") != old.value("otter.checksum.tensors")
        check_checksums(new)


def test_a_damaged_sidecar_does_not_get_new_checksums(tmp_path: Path) -> None:
    data = bytearray(quantizable.sidecar().read_bytes())
    with _native.GgufFile(str(quantizable.sidecar())) as file:
        offset = next(tensor.offset for tensor in file.tensors if tensor.name == INSERTED)
    data[offset] ^= 1
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "s").write_bytes(data)
    with refused(FileError, tmp_path / "in" / "s", "checksums", INSERTED):
        quantize(tmp_path / "in" / "s", tmp_path / "out", options("Q8_0"))
    assert names_in(tmp_path) == ["in"]


def test_rows_of_a_sidecar_that_do_not_fit() -> None:
    assert fitting_type("Q4_K", 512) == "Q4_K"
    assert [fitting_type(type, 96) for type in ("Q6_K", "Q5_K", "Q4_K", "Q2_K", "IQ4_XS", "Q8_0")] == [
        "Q8_0",
        "Q5_1",
        "Q5_0",
        "Q4_0",
        "IQ4_NL",
        "Q8_0",
    ]
    assert [fitting_type(type, 24) for type in ("Q6_K", "Q4_0", "F32")] == ["F16", "F16", "F32"]


def test_a_value_too_large_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    values = np.zeros((512, 512), np.float32)
    values[3, 5] = 1e5
    (tmp_path / "in").mkdir()
    big = rewrite(quantizable.sidecar(), tmp_path / "in" / "s", tensors={INSERTED: float_tensor(INSERTED, values)})
    with refused(FileError, big, INSERTED, "row 3", "column 5", "F16"):
        quantize(big, tmp_path / "out", options("F16"))
    assert names_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "flags",
    [{"imatrix": "x"}, {"otter_type": "Q8_0"}, {"keep_split": True}, {"output_tensor_type": "F16"}],
)
def test_options_that_are_not_for_a_sidecar(tmp_path: Path, flags: dict[str, Any]) -> None:
    flag = "--" + next(iter(flags)).replace("_", "-")
    assert_refused(
        ConfigError, (quantizable.sidecar(), flag), quantizable.sidecar(), options("Q8_0", **flags), folder=tmp_path
    )


# ---- merged files ----------------------------------------------------------------------------------------------


def test_both_parts_of_a_merged_file(tmp_path: Path) -> None:
    plan = quantize(quantizable.merged(), tmp_path / "m", options("Q4_K_M", otter_type="Q6_K"))
    assert {tensor.name: tensor.new_type for tensor in plan.tensors} == types(tmp_path / "m")
    split(tmp_path / "m", tmp_path / "b", tmp_path / "s")
    assert (tmp_path / "b").read_bytes() == quantizable.base("Q4_K_M").read_bytes()
    assert (tmp_path / "s").read_bytes() == quantizable.sidecar("Q6_K").read_bytes()
    assert names_in(tmp_path) == ["b", "m", "s"]
    with (
        Otter(tmp_path / "m", n_ctx=64, n_threads=1) as one,
        Otter(quantizable.base("Q4_K_M"), otter=quantizable.sidecar("Q6_K"), n_ctx=64, n_threads=1) as two,
    ):
        assert np.array_equal(one.score("The otter").rewards, two.score("The otter").rewards)


def test_one_part_alone(tmp_path: Path) -> None:
    quantize(quantizable.merged(), tmp_path / "m1", options("Q4_0"))
    quantize(quantizable.merged(), tmp_path / "m2", options("COPY", otter_type="Q4_0"))
    for number in "12":
        split(tmp_path / f"m{number}", tmp_path / f"b{number}", tmp_path / f"s{number}")
    assert (tmp_path / "s1").read_bytes() == quantizable.sidecar().read_bytes()
    assert (tmp_path / "b2").read_bytes() == quantizable.base().read_bytes()
    assert types(tmp_path / "s2")[INSERTED] == types(tmp_path / "b1")[MATRIX] == "Q4_0"


def test_the_plan_of_a_merged_file_is_that_of_its_parts() -> None:
    merged = plan_quantization(quantizable.merged(), options("Q3_K_M", otter_type="Q8_0"))
    base = plan_quantization(quantizable.base(), options("Q3_K_M"))
    sidecar = plan_quantization(quantizable.sidecar(), options("Q8_0"))
    assert merged.tensors == base.tensors + sidecar.tensors


def test_errors_name_the_merged_file_and_not_its_parts(tmp_path: Path) -> None:
    quantize(quantizable.merged(), tmp_path / "m", options("Q4_0"))
    with refused(ConfigError, f"{tmp_path / 'm'}:", "--allow-requantize"):
        plan_quantization(tmp_path / "m", options("Q8_0"))


def test_a_damaged_base_in_a_merged_file_is_found(tmp_path: Path) -> None:
    data = bytearray(quantizable.merged().read_bytes())
    with _native.GgufFile(str(quantizable.merged())) as file:
        offset = next(tensor.offset for tensor in file.tensors if tensor.name == MATRIX)
    data[offset] ^= 1
    (tmp_path / "m").write_bytes(data)
    with refused(FileError, tmp_path / "m", "sha256"):
        quantize(tmp_path / "m", tmp_path / "out", options("Q8_0"))
    assert names_in(tmp_path) == ["m"]


# ---- importance matrices ---------------------------------------------------------------------------------------


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    values = quantizable.importance()
    for write in (quantizable.write_importance, quantizable.write_importance_dat):
        matrix = read_importance(write(tmp_path / "imatrix", values))
        assert (matrix.dataset, matrix.n_chunks, set(matrix.values)) == ("calibration.txt", 5, set(values))
        assert all(np.allclose(matrix.values[name], values[name], rtol=1e-6) for name in values)


def test_a_matrix_that_no_token_met_counts_evenly(tmp_path: Path) -> None:
    file = quantizable.write_importance(tmp_path / "imatrix", {"a": np.full(8, 3.0, np.float32)}, count=0)
    assert read_importance(file).values["a"].tolist() == [1.0] * 8


def test_importance_lowers_the_error_where_it_matters(tmp_path: Path) -> None:
    values = quantizable.importance()
    imatrix = quantizable.write_importance(tmp_path / "imatrix.gguf", values)
    plan = quantize(quantizable.base(), tmp_path / "with", options("Q4_K_M", imatrix=imatrix))
    assert plan.without_importance == ("token_embd.weight",)
    errors = []
    for path in (quantizable.base("Q4_K_M"), tmp_path / "with"):
        with _native.GgufFile(str(path)) as file, _native.GgufFile(str(quantizable.base())) as exact:
            rows = _native.dequantize(file.tensor_data(MATRIX), types(path)[MATRIX], 256)
            wanted = _native.dequantize(exact.tensor_data(MATRIX), "F32", 256)
            errors.append(float(((rows - wanted) ** 2 * values[MATRIX]).sum()))
    assert errors[1] < 0.9 * errors[0]
    with _native.GgufFile(str(tmp_path / "with")) as file:
        assert file.value("quantize.imatrix.file") == "imatrix.gguf"
        assert file.value("quantize.imatrix.entries_count") == len(values)


def test_types_made_from_importance(tmp_path: Path) -> None:
    imatrix = quantizable.write_importance(tmp_path / "imatrix", quantizable.importance())
    assert_refused(ConfigError, ("IQ2_XS", "--imatrix"), quantizable.base(), options("IQ2_XS"), folder=tmp_path)
    quantize(quantizable.base(), tmp_path / "b", options("IQ2_XS", imatrix=imatrix))
    assert types(tmp_path / "b")[MATRIX] == "IQ2_XS"
    names = (quantizable.base(), "'token_embd.weight'", "IQ2_XS")
    pure = options("IQ2_XS", imatrix=imatrix, pure=True)
    assert_refused(ConfigError, names, quantizable.base(), pure, folder=tmp_path)


def test_importance_of_a_merged_file_is_its_bases(tmp_path: Path) -> None:
    imatrix = quantizable.write_importance(tmp_path / "imatrix", quantizable.importance())
    quantize(quantizable.merged(), tmp_path / "m", options("Q4_0", imatrix=imatrix))
    quantize(quantizable.base(), tmp_path / "b", options("Q4_0", imatrix=imatrix))
    split(tmp_path / "m", tmp_path / "b2", None)
    assert (tmp_path / "b2").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_models_importance_is_refused(tmp_path: Path) -> None:
    base, values = quantizable.base(), quantizable.importance()
    short = values | {MATRIX: values[MATRIX][:-1]}
    for other, found in ((short, (MATRIX, 255, 256)), ({"x": values[MATRIX]}, ("none",))):
        imatrix = quantizable.write_importance(tmp_path / "imatrix", other)
        names = (imatrix, base, *found)
        assert_refused(MismatchError, names, base, options("Q4_0", imatrix=imatrix), folder=tmp_path)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", ("early",)),
        (struct.pack("<i", 0), ("entries", 0)),
        (struct.pack("<ii", 1, -1), ("name", -1)),
        (struct.pack("<ii", 1, 1 << 30), ("name", 1 << 30)),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 1 << 30), ("early",)),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, float("nan")), ("'a'", "negative")),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, -1.0), ("'a'", "negative")),
    ],
)
def test_damaged_importance_files(tmp_path: Path, data: bytes, names: tuple[object, ...]) -> None:
    (tmp_path / "imatrix").write_bytes(data)
    with refused(FileError, tmp_path / "imatrix", *names):
        read_importance(tmp_path / "imatrix")


def test_gguf_files_that_hold_no_importance(tmp_path: Path) -> None:
    with refused(FileError, quantizable.base(), "*.in_sum2"):
        read_importance(quantizable.base())
    whole = quantizable.write_importance(tmp_path / "whole", {"a": np.ones(8, np.float32)})
    half = rewrite(whole, tmp_path / "half", tensors={"a.counts": None})
    with refused(FileError, half, "'a'", "counts"):
        read_importance(half)
    two = rewrite(whole, tmp_path / "two", tensors={"a.counts": float_tensor("a.counts", np.ones((2, 1), np.float32))})
    with refused(FileError, two, "'a'", "2 counts", "1 matrices"):
        read_importance(two)
    with refused(FileError, tmp_path / "nowhere"):
        read_importance(tmp_path / "nowhere")


# ---- files -----------------------------------------------------------------------------------------------------


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    imatrix = quantizable.write_importance(tmp_path / "imatrix", quantizable.importance())
    base = tmp_path / "base"
    base.write_bytes(quantizable.base().read_bytes())
    (tmp_path / "link").symlink_to(base)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    for target in ("base", "link", "imatrix"):
        with refused(FileError, tmp_path / target, "input"):
            quantize(base, tmp_path / target, options("Q8_0", imatrix=imatrix), force=True)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    for source in (quantizable.base(), quantizable.sidecar(), quantizable.merged()):
        target = tmp_path / source.name
        target.write_text("mine")
        with refused(FileError, target, "--force"):
            quantize(source, target, options("Q8_0"))
        assert target.read_text() == "mine"
        quantize(source, target, options("Q8_0"), force=True)
        assert "Q8_0" in types(target).values()


def test_weights_that_are_nan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nan = float_tensor(MATRIX, np.full((256, 256), np.nan, np.float32))
    bad = rewrite(quantizable.base(), tmp_path / "in" / "b", tensors={MATRIX: nan})
    with refused(OtterError, bad, MATRIX):
        quantize(bad, tmp_path / "out", options("Q4_K_M"))
    assert names_in(tmp_path) == ["in"]


def test_other_alignments_are_refused(tmp_path: Path) -> None:
    entries = {"general.alignment": KeyValue("general.alignment", "u32", 32)}
    base = rewrite(quantizable.base(), tmp_path / "base", metadata=entries)
    quantize(base, tmp_path / "out", options("Q8_0"))
    aligned = tmp_path / "aligned"
    write_aligned(base, aligned, 64)
    with refused(UnsupportedError, aligned, 64, 32):
        quantize(aligned, tmp_path / "out2", options("Q8_0"))


def write_aligned(source: Path, target: Path, alignment: int) -> None:
    """The same model with all tensors at multiples of another alignment."""
    with _native.GgufFile(str(source)) as file:
        infos, data = b"", b""
        for tensor in file.tensors:
            infos += encoding.encode_tensor_info(tensor.name, tensor.shape, tensor.type, len(data))
            data += bytes(file.tensor_data(tensor.name))
            data += bytes(encoding.padding(len(data), alignment))
        values = {key: bytes(file.raw_value(key)) for key in file.keys} | {
            "general.alignment": struct.pack("<I", alignment)
        }
        entries = [encoding.encode_raw_entry(key, file.key_type(key), value) for key, value in values.items()]
        header = encoding.encode_header(3, len(file.tensors), len(entries)) + b"".join(entries) + infos
        target.write_bytes(header + bytes(encoding.padding(len(header), alignment)) + data)


@pytest.mark.parametrize("changes", [{"type": "Q9_0"}, {"type": "NVFP4"}])
def test_unknown_types(tmp_path: Path, changes: dict[str, Any]) -> None:
    for source in (quantizable.base(), quantizable.sidecar(), quantizable.merged()):
        unknown = dataclasses.replace(options("Q8_0"), **changes)
        assert_refused(ConfigError, (changes["type"], "Q8_0"), source, unknown, folder=tmp_path)


def test_options_that_are_wrong_for_any_file() -> None:
    with refused(ConfigError, "--otter-type", "Q4_K_M", "Q8_0"):
        options("Q8_0", otter_type="Q4_K_M")
    with refused(ConfigError, "--threads", -1, 0):
        QuantizeOptions("Q8_0", n_threads=-1)
    with refused(ConfigError, quantizable.base(), "--otter-type"):
        plan_quantization(quantizable.base(), options("Q8_0", otter_type="Q8_0"))
    with refused(ConfigError, "Q4_K_M", "mixture", "Q8_0"):
        plan_quantization(quantizable.sidecar(), options("Q4_K_M"))
    with refused(FileError, "'Q9'", "Q8_0"):
        plan_quantization(quantizable.base(), options("Q8_0", output_tensor_type="Q9"))


# ---- interruption ----------------------------------------------------------------------------------------------


def test_what_progress_raises_stops_the_quantizer(tmp_path: Path) -> None:
    done: list[tuple[str, str]] = []

    def stop(name: str, type: str) -> None:
        done.append((name, type))
        if len(done) == 3:
            raise KeyboardInterrupt

    target = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        _native.model_quantize(str(quantizable.base()), target, "Q8_0", 1, progress=stop)
    assert len(done) == 3
    _native.model_quantize(str(quantizable.base()), target, "Q8_0", 1, progress=lambda *_: None)
    assert dict(done).items() <= types(Path(target)).items()


def test_a_signal_leaves_no_file(tmp_path: Path) -> None:
    """IQ3_S takes more than half a second for this base, the signal comes after a twentieth."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            quantize(quantizable.base(), tmp_path / "out", options("IQ3_S"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    assert names_in(tmp_path) == []


KILLED = """
import os, signal, sys
from otter_gguf import _native, quantization
from otter_gguf.quantization import QuantizeOptions

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

quantization.quantizer._Base._check = die
quantization.quantize(sys.argv[1], sys.argv[2], QuantizeOptions("Q8_0", n_threads=1))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
@pytest.mark.parametrize("source", ["base", "merged"])
def test_a_killed_run_leaves_no_final_name_and_the_next_one_cleans_up(tmp_path: Path, source: str) -> None:
    path, target = getattr(quantizable, source)(), tmp_path / "out.gguf"
    process = subprocess.run([sys.executable, "-c", KILLED, path, target], env=os.environ, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    left = names_in(tmp_path)
    assert left
    assert all(name.startswith(".") for name in left)
    quantize(path, target, options("Q8_0"))
    assert names_in(tmp_path) == ["out.gguf"]


# ---- docs/quantization.md --------------------------------------------------------------------------------------


@pytest.fixture
def folder_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, path in (
        ("base.gguf", quantizable.base()),
        ("f32.otter.gguf", quantizable.sidecar()),
        ("merged.gguf", quantizable.merged()),
    ):
        (tmp_path / name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_documents_commands_run(folder_of_the_document: Path) -> None:
    (block,) = fenced(DOCS / "quantization.md", "sh")
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(command[:2] == ["otter-gguf", "quantize"] for command in commands)
    assert [main([*command[1:], "-t", "1"]) for command in commands] == [0] * len(commands)
    written = {command[3] for command in commands if "--dry-run" not in command}
    assert set(names_in(folder_of_the_document)) == written | {"base.gguf", "f32.otter.gguf", "merged.gguf"}


def test_the_documents_code_runs(folder_of_the_document: Path) -> None:
    (block,) = fenced(DOCS / "quantization.md", "python")
    exec(compile(block, "quantization.md", "exec", dont_inherit=True), {"__name__": "docs"})
    assert (folder_of_the_document / "quantized.gguf").read_bytes() == quantizable.base("Q4_K_M").read_bytes()


def test_the_document_names_every_type() -> None:
    text = (DOCS / "quantization.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| inserted | ")]
    assert set(row.split("`")[1].split()) == set(SIDECAR_TYPES) - {"COPY"}
