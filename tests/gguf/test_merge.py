"""Merging and splitting: both files come back byte for byte, or nothing is written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import FileError, MismatchError, UnsupportedError
from otter_gguf.gguf import keys
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue, padding
from otter_gguf.gguf.merge import data_end, merge, split
from otter_gguf.gguf.sidecar import check_binding, is_merged, validate_insertion
from tests.refusals import refused

from .toy_files import base_tensors, insertion, rewrite, split_base, write_base, write_sidecar


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf", type="Q8_0")


@pytest.fixture
def sidecar(tmp_path: Path, base: Path) -> Path:
    return write_sidecar(tmp_path / "toy.otter.gguf", base)


@pytest.fixture
def merged(tmp_path: Path, base: Path, sidecar: Path) -> Path:
    merge(base, sidecar, tmp_path / "merged.gguf")
    return tmp_path / "merged.gguf"


def assert_nothing_left(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# ---- there and back --------------------------------------------------------------------------------------------


def test_both_parts_come_back(tmp_path: Path, base: Path, sidecar: Path, merged: Path) -> None:
    split(merged, tmp_path / "b", tmp_path / "s")
    assert (tmp_path / "b").read_bytes() == base.read_bytes()
    assert (tmp_path / "s").read_bytes() == sidecar.read_bytes()


def test_one_part_alone(tmp_path: Path, sidecar: Path, merged: Path) -> None:
    split(merged, None, tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == sidecar.read_bytes()
    assert not (tmp_path / "b").exists()


def write_aligned(tmp_path: Path, alignment: int) -> Path:
    """The base, by the reference writer."""
    base = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(base, "llama")
    writer.add_custom_alignment(alignment)
    with _native.GgufFile(str(write_base(tmp_path / "plain.gguf"))) as plain:
        for key in plain.keys:
            if key != "general.architecture":
                kind = plain.key_type(key)
                types = {"u32": 4, "f32": 6, "str": 8, "i32": 5}
                sub_type = gguf.GGUFValueType(types[kind[4:-1]]) if kind.startswith("arr") else None
                main_type = gguf.GGUFValueType.ARRAY if sub_type else gguf.GGUFValueType(types[kind])
                writer.add_key_value(key, plain.value(key), main_type, sub_type=sub_type)
        for tensor in plain.tensors:
            values = np.frombuffer(plain.tensor_data(tensor.name), np.float32).reshape(tensor.shape[::-1])
            writer.add_tensor(tensor.name, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return base


def test_an_alignment_that_llama_cpp_does_not_load_is_refused(tmp_path: Path, sidecar: Path) -> None:
    base = write_aligned(tmp_path, 8)
    with refused(UnsupportedError, "aligned.gguf", "general.alignment", 8, 32):
        merge(base, sidecar, tmp_path / "m.gguf")
    with refused(UnsupportedError, "aligned.gguf", "general.alignment", 8, 32):
        write_sidecar(tmp_path / "s.gguf", base)
    assert not (tmp_path / "m.gguf").exists()
    assert not (tmp_path / "s.gguf").exists()


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_every_alignment_of_a_base(tmp_path: Path, alignment: int) -> None:
    base = write_aligned(tmp_path, alignment)
    sidecar = write_sidecar(tmp_path / "s.gguf", base)
    merge(base, sidecar, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b", tmp_path / "s2")
    assert (tmp_path / "b").read_bytes() == base.read_bytes()
    assert (tmp_path / "s2").read_bytes() == sidecar.read_bytes()


def test_a_base_without_padding_at_its_end_comes_back(tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors["model.norm.weight"] = tensors.pop("model.norm.weight")
    whole = write_base(tmp_path / "whole.gguf", tensors=tensors)
    with _native.GgufFile(str(whole)) as file:
        end = file.tensors[-1].offset + file.tensors[-1].n_bytes
    base = tmp_path / "base.gguf"
    base.write_bytes(whole.read_bytes()[:end])
    sidecar = write_sidecar(tmp_path / "s.gguf", base)
    merge(base, sidecar, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b", None)
    assert (tmp_path / "b").read_bytes() == base.read_bytes()


def test_a_merged_file_holds_what_both_held(base: Path, sidecar: Path, merged: Path) -> None:
    files = (_native.GgufFile(str(path)) for path in (base, sidecar, merged))
    with next(files) as first, next(files) as second, next(files) as both:
        assert is_merged(both)
        assert validate_insertion(both) == insertion()
        assert both.value("general.architecture") == first.value("general.architecture")
        assert both.keys[: len(first.keys)] == first.keys
        names = [tensor.name for tensor in both.tensors]
        assert names == [tensor.name for file in (first, second) for tensor in file.tensors]
        for file in (first, second):
            for tensor in file.tensors:
                assert bytes(both.tensor_data(tensor.name)) == bytes(file.tensor_data(tensor.name))
    with BaseFiles.open(merged) as opened:
        check_binding(opened, opened.metadata_file)


# ---- refused ---------------------------------------------------------------------------------------------------


def test_another_base_is_refused(tmp_path: Path, sidecar: Path) -> None:
    other = write_base(tmp_path / "other.gguf", tensors=base_tensors(seed=9))
    with refused(MismatchError, sidecar, other, "fingerprint"):
        merge(other, sidecar, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_base_in_shards_is_refused(tmp_path: Path, base: Path, sidecar: Path) -> None:
    with refused(UnsupportedError, "part-00001-of-00002.gguf", 2, "llama-gguf-split --merge"):
        merge(split_base(base, 2), sidecar, tmp_path / "m.gguf")


def test_merging_twice_or_the_wrong_way_round_is_refused(
    tmp_path: Path, base: Path, sidecar: Path, merged: Path
) -> None:
    with refused(UnsupportedError, merged, "inserted"):
        merge(merged, sidecar, tmp_path / "m.gguf")
    with refused(FileError, base, "adapter.type"):
        merge(base, base, tmp_path / "m.gguf")
    with refused(UnsupportedError, sidecar, "otter.version"):
        merge(sidecar, sidecar, tmp_path / "m.gguf")


@pytest.mark.parametrize("part", ["base", "sidecar"])
@pytest.mark.parametrize("damage", ["padding", "trailing bytes"])
def test_what_could_not_be_given_back_is_refused(
    tmp_path: Path, base: Path, sidecar: Path, part: str, damage: str
) -> None:
    path = base if part == "base" else sidecar
    data = bytearray(path.read_bytes())
    with _native.GgufFile(str(path)) as file:
        place = file.tensor_info_end if part == "base" else file.tensors[-1].offset + file.tensors[-1].n_bytes
        assert len(data) == data_end(file)
    if damage == "padding":
        assert padding(place)
        data[place] = 7
    else:
        data += b"more"
    path.write_bytes(data)
    with refused(FileError, path, "otter-gguf quantize"):
        merge(base, sidecar, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    assert_nothing_left(tmp_path)


def test_a_plain_base_cannot_be_split(tmp_path: Path, base: Path) -> None:
    with refused(FileError, base, "otter.merged.base_size"):
        split(base, tmp_path / "b", None)


@pytest.mark.parametrize("part", ["base", "sidecar"])
def test_a_flipped_bit_is_found_by_split(tmp_path: Path, merged: Path, part: str) -> None:
    data = bytearray(merged.read_bytes())
    with _native.GgufFile(str(merged)) as file:
        name = "token_embd.weight" if part == "base" else "cls.output.safety.otter.bias"
        tensor = next(tensor for tensor in file.tensors if tensor.name == name)
    data[tensor.offset] ^= 1
    merged.write_bytes(data)
    with refused(FileError, merged, tmp_path / ("b" if part == "base" else "s"), "sha256"):
        split(merged, tmp_path / "b", tmp_path / "s")
    assert not (tmp_path / ("b" if part == "base" else "s")).exists()
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("key", "type", "value", "names"),
    [
        ("otter.merged.base_size", "u64", 2**63, ("otter.merged.base_size", 2**63)),
        ("otter.merged.base_size", "u64", 0, ("otter.merged.base_size",)),
        ("otter.merged.sidecar_size", "u64", 1, ("otter.merged.sidecar_size", 1)),
        ("otter.merged.sidecar_header", "arr[u8]", [], ("otter.merged.sidecar_size",)),
        ("otter.merged.base_sha256", "str", "", ("sha256",)),
    ],
)
def test_lies_about_the_parts_are_refused(
    tmp_path: Path, merged: Path, key: str, type: str, value: object, names: tuple[object, ...]
) -> None:
    lie = rewrite(merged, tmp_path / "lie.gguf", metadata={key: KeyValue(key, type, value)})
    with refused(FileError, lie, *names):
        split(lie, tmp_path / "b", tmp_path / "s")
    assert_nothing_left(tmp_path)


def test_parts_in_another_order_are_refused(tmp_path: Path, merged: Path) -> None:
    late = KeyValue("zz.last", "u32", 1)
    changed = rewrite(merged, tmp_path / "late.gguf", metadata={late.key: late})
    with refused(FileError, changed, "inserted"):
        split(changed, tmp_path / "b", None)


def test_a_merged_file_needs_its_merged_keys(tmp_path: Path, merged: Path) -> None:
    key = keys.MERGED_SIDECAR_HEADER.name
    changed = rewrite(merged, tmp_path / "cut.gguf", metadata={key: None})
    with refused(FileError, changed, key):
        split(changed, tmp_path / "b", None)


def test_inputs_and_existing_files_are_not_overwritten(tmp_path: Path, base: Path, sidecar: Path, merged: Path) -> None:
    before = {path: path.read_bytes() for path in (base, sidecar, merged)}
    for target in (base, sidecar):
        with refused(FileError, target, "input"):
            merge(base, sidecar, target, force=True)
    with refused(FileError, merged, "input"):
        split(merged, merged, None, force=True)
    with refused(FileError, merged, "--force"):
        merge(base, sidecar, merged)
    assert {path: path.read_bytes() for path in before} == before


# ---- kill -9 ---------------------------------------------------------------------------------------------------

_MERGE_FOREVER = """
import sys
from otter_gguf.gguf.merge import merge
print("ready", flush=True)
while True:
    merge(sys.argv[1], sys.argv[2], sys.argv[3], force=True)
"""


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_leaves_the_old_or_the_new_file(tmp_path: Path, base: Path, sidecar: Path, n_kills: int) -> None:
    target = tmp_path / "m.gguf"
    merge(base, sidecar, tmp_path / "whole.gguf")
    new = (tmp_path / "whole.gguf").read_bytes()
    for number in range(n_kills):
        target.write_bytes(b"old")
        command = [sys.executable, "-c", _MERGE_FOREVER, str(base), str(sidecar), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.003 * number)
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() in (b"old", new)
    merge(base, sidecar, target, force=True)
    assert_nothing_left(tmp_path)
