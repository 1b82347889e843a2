"""``check_file``: all that is wrong, and nothing that is right."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import Otter, OtterError, _native
from otter_gguf.gguf import keys
from otter_gguf.gguf.check import Report, check_file
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.writer import TensorPlan
from otter_gguf.loading import check_files
from tests.gguf.gguf_builder import Gguf, toy_gpt2, toy_llama
from tests.gguf.mutants import mutants
from tests.gguf.toy_files import base_tensors, float_tensor, rewrite, split_base, write_base, write_sidecar
from tests.refusals import assert_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return write_base(folder / "base.gguf")


@pytest.fixture(scope="module")
def sidecar(folder: Path, base: Path) -> Path:
    return write_sidecar(folder / "toy.otter.gguf", base)


@pytest.fixture(scope="module")
def merged(folder: Path, base: Path, sidecar: Path) -> Path:
    merge(base, sidecar, folder / "merged.gguf")
    return folder / "merged.gguf"


def found(report: Report) -> dict[str, str]:
    """Messages by check; each check speaks once."""
    messages: dict[str, str] = {problem.check: problem.message for problem in report.problems}
    assert len(messages) == len(report.problems)
    assert not report.ok
    assert set(messages).isdisjoint(report.passed)
    return messages


# ---- good files ------------------------------------------------------------------------------------------------


def test_good_files_pass_every_check(base: Path, sidecar: Path, merged: Path) -> None:
    assert (check_file(base).kind, check_file(base).passed) == ("base", ["header", "model", "values"])
    assert check_file(sidecar).passed == ["header", "keys", "tensors", "values", "checksums"]
    assert check_file(sidecar, base).passed == ["header", "keys", "tensors", "values", "checksums", "binding"]
    report = check_file(merged)
    assert report.kind == "merged"
    assert report.passed == ["header", "model", "keys", "tensors", "values", "checksums", "binding"]
    assert check_file(base, base).ok  # what --base is for concerns sidecars alone
    assert all(check_file(path).ok for path in (base, sidecar, merged))


def test_what_was_not_looked_at_is_said(base: Path, sidecar: Path, merged: Path) -> None:
    assert_names(check_file(base).notes[0], "checksums")
    assert_names(check_file(sidecar).notes[0], "--base")
    assert check_file(sidecar, base).notes == []
    assert check_file(merged).notes == []


def test_a_base_in_several_files_is_one(tmp_path: Path) -> None:
    first = split_base(write_base(tmp_path / "base.gguf"), 2)
    report = check_file(first)
    assert report.ok
    assert report.kind == "base"
    second = first.with_name("part-00002-of-00002.gguf")
    assert_names(found(check_file(second))["header"], second.name, first.name)
    with _native.GgufFile(str(second)) as file:
        tensor = file.tensors[0]
    values = np.full(tensor.shape[::-1], np.nan, np.float32)
    bad = rewrite(second, tmp_path / "bad.gguf", tensors={tensor.name: float_tensor(tensor.name, values)})
    bad.replace(second)
    assert_names(found(check_file(first))["values"], tensor.name, 0)
    second.unlink()
    assert_names(found(check_file(first))["header"], second.name)


def test_a_base_in_several_files_runs(tmp_path: Path) -> None:
    whole = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "toy.otter.gguf", whole)
    n_tensors = KeyValue("split.tensors.count", "i32", len(base_tensors()))
    first = split_base(whole, 2)
    for path in sorted(tmp_path.glob("part-*")):
        rewrite(path, tmp_path / "part.gguf", metadata={n_tensors.key: n_tensors}).replace(path)
    rewards = []
    for model in (whole, first):
        with Otter(model, otter=sidecar, n_ctx=32, n_threads=1) as llm:
            rewards.append(llm.score("1 2").rewards.tolist())
    assert rewards[0] == rewards[1]


# ---- everything that is wrong ----------------------------------------------------------------------------------


def test_problems_of_several_kinds_are_all_told(tmp_path: Path, sidecar: Path) -> None:
    bad = rewrite(
        sidecar,
        tmp_path / "bad.gguf",
        tensors={
            "output_norm.otter.weight": float_tensor("output_norm.otter.weight", np.full(32, np.nan, np.float32)),
            "cls.output.safety.otter.bias": float_tensor(
                "cls.output.safety.otter.bias", np.full(2, np.inf, np.float32)
            ),
            "blk.0.ffn_norm.otter.weight": None,
            "blk.7.ffn_norm.otter.weight": float_tensor("blk.7.ffn_norm.otter.weight", np.ones(32, np.float32)),
        },
    )
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    other = write_base(tmp_path / "other.gguf", tensors=base_tensors(seed=9))
    problems = found(check_file(bad, other))
    assert_names(problems["tensors"], "blk.0.ffn_norm.otter.weight", "blk.7.ffn_norm.otter.weight")
    assert_names(problems["values"], "output_norm.otter.weight", "cls.output.safety.otter.bias")
    assert_names(problems["binding"], "fingerprint")
    assert set(problems) >= {"tensors", "values", "binding"}


def test_keys_are_all_told_and_tensors_rest_on_them(tmp_path: Path, sidecar: Path, base: Path) -> None:
    width, source = keys.WIDTH.name, keys.STATE_SOURCE.name
    bad = rewrite(sidecar, tmp_path / "bad.gguf", metadata={width: None, source: KeyValue(source, "u32", 1)})
    report = check_file(bad, base)
    problems = found(report)
    assert_names(problems["keys"], width, source, "u32", "str")
    assert "tensors" not in problems
    assert "tensors" not in report.passed
    assert {"values", "checksums"} <= set(report.passed)


def test_a_damaged_base_in_a_merged_file(tmp_path: Path, merged: Path) -> None:
    data = bytearray(merged.read_bytes())
    with_base = data.index(b"general.name")
    data[with_base + 24 : with_base + 27] = b"tox"
    (tmp_path / "m.gguf").write_bytes(data)
    problems = found(check_file(tmp_path / "m.gguf"))
    assert list(problems) == ["checksums"]
    assert_names(problems["checksums"], tmp_path / "m.gguf", "base", "sha256")


def test_a_model_that_would_not_run(tmp_path: Path) -> None:
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    bad = write_base(tmp_path / "bad.gguf", metadata=(KeyValue(epsilon, "f32", float("nan")),))
    tensor = TensorPlan("output.weight", "F32", (64, 288), lambda: [b"\xff" * 4 * 64 * 288])
    problems = found(check_file(rewrite(bad, tmp_path / "worse.gguf", tensors={"output.weight": tensor})))
    assert_names(problems["model"], epsilon, "nan")
    assert_names(problems["values"], "output.weight")


def test_the_base_of_a_sidecar_can_be_wrong_too(tmp_path: Path, sidecar: Path) -> None:
    for wrong in (tmp_path / "no such file", tmp_path, sidecar):
        assert set(found(check_file(sidecar, wrong))) == {"binding"}


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"text, no model", b"GGUF\3\0\0\0" + b"\xff" * 16])
def test_files_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "f.gguf"
    if content is not None:
        path.write_bytes(content)
    report = check_file(path)
    assert report.kind is None
    assert report.passed == []
    assert set(found(report)) == {"header"}


# ---- mutants ---------------------------------------------------------------------------------------------------


def refused(base: Path, sidecar: Path | None) -> bool:
    try:
        check_files(base, sidecar)
    except OtterError:
        return True
    return False


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_what_loading_refuses_is_found(tmp_path: Path, base: Path, sidecar: Path, seed: int) -> None:
    """Every mutant ends in a report, and in a bad one if it could not be loaded."""
    answers = {True: 0, False: 0}
    path = tmp_path / "m.gguf"
    for number, original in enumerate((toy_llama(), toy_gpt2(), Gguf.read(sidecar))):
        is_sidecar = number == 2
        for mutant in islice(mutants(original, 10 * seed + number), 100):
            path.write_bytes(mutant)
            report = check_file(path, base if is_sidecar else None)
            bad = refused(base, path) if is_sidecar else refused(path, None)
            assert not (bad and report.ok), report
            assert all("\n" not in problem.message for problem in report.problems)
            answers[report.ok] += 1
    assert min(answers.values()) > 10
