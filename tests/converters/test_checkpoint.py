"""Reading safetensors by rows, and refusing what is damaged, hostile or pickled."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from otter_gguf.converters.checkpoint import Checkpoint, SafetensorsFile
from safetensors.numpy import save_file

from otter_gguf.errors import FileError, OtterError, UnsupportedError
from otter_gguf.files import read_json
from tests.refusals import refused

from ..gguf.toy_files import Float32, save_safetensors
from .toy_hf import Payload

TENSORS = {
    "matrix": np.arange(30, dtype=np.float32).reshape(10, 3) - 7.5,
    "vector": np.asarray([1.0, -2.0], np.float32),
}


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


# ---- reading ---------------------------------------------------------------------------------------------------


def test_files_of_the_reference_implementation_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.shapes() == {"matrix": (10, 3), "vector": (2,)}
    np.testing.assert_array_equal(file.rows("matrix", 0, 10), TENSORS["matrix"])
    np.testing.assert_array_equal(file.rows("matrix", 3, 5), TENSORS["matrix"][3:5])
    np.testing.assert_array_equal(file.rows("vector", 0, 1), TENSORS["vector"][None])
    file.close()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_float_type_becomes_float32(tmp_path: Path, dtype: str) -> None:
    save_safetensors(tmp_path / "model.safetensors", TENSORS, dtype)
    with Checkpoint(tmp_path) as checkpoint:
        rows = checkpoint.rows("matrix", 0, 10)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, TENSORS["matrix"])  # small multiples of 0.5 are exact in all three


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    for number, name in enumerate(TENSORS):
        save_safetensors(tmp_path / f"model-{number}.safetensors", {name: TENSORS[name]})
    index = {"weight_map": {name: f"model-{number}.safetensors" for number, name in enumerate(TENSORS)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.shapes() == {"matrix": (10, 3), "vector": (2,)}
        np.testing.assert_array_equal(checkpoint.rows("vector", 0, 1), TENSORS["vector"][None])


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"", b"", 0),
        (b"{}", b"", 2**63),
        (b"{}", b"", 100_000_001),
        (b"{", b"", None),
        (b"[]", b"", None),
        (b"\xff\xfe", b"", None),
        (b"[" * 100_000, b"", None),
        ({"t": 1}, b"", None),
        ({"t": {}}, b"", None),
        (entry(shape=[2], offsets=[0]), bytes(8), None),
        (entry(shape=[-2]), bytes(8), None),
        (entry(shape=[True, 2]), bytes(8), None),
        (entry(shape=[2.0]), bytes(8), None),
        (entry(shape=[]), bytes(8), None),
        (entry(shape=[0], offsets=[0, 0]), b"", None),
        (entry(shape=[1, 1, 2]), bytes(8), None),
        (entry(offsets=[8, 0]), bytes(8), None),
        (entry(offsets=[0, 16]), bytes(16), None),
        (entry(offsets=[0, 8]), bytes(7), None),
        (entry(shape=[2**62, 4], offsets=[0, 8]), bytes(8), None),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, header: Any, data: bytes, length: int | None) -> None:
    path = write_raw(tmp_path / "bad.safetensors", header, data, length)
    with refused(FileError, path):
        SafetensorsFile(path)


@pytest.mark.parametrize("dtype", ["I64", "F64", "F8_E4M3", None, []])
def test_other_types_are_unsupported(tmp_path: Path, dtype: Any) -> None:
    path = write_raw(tmp_path / "bad.safetensors", entry(dtype=dtype), bytes(8))
    with refused(UnsupportedError, path, "tensor t", dtype, "F32", "F16", "BF16"):
        SafetensorsFile(path)


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", TENSORS)
    data = (tmp_path / "a.safetensors").read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut.safetensors").write_bytes(data[:size])
        with pytest.raises(FileError):
            SafetensorsFile(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "otter_model.pt", "model.pth"])
def test_pickled_weights_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with refused(FileError, tmp_path, name, "pickled"):
        Checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "weight_map",
    [
        {},
        [],
        None,
        {"t": "../model.safetensors"},
        {"t": "/etc/passwd"},
        {"t": 1},
        {"t": "missing.safetensors"},
        {"t": "a\0.safetensors"},
        {"t": ".."},
        {"t": ""},
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, weight_map: Any) -> None:
    save_safetensors(tmp_path.parent / "model.safetensors", TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FileError):
        Checkpoint(tmp_path)


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    wrong: dict[str, Float32] = {"other": TENSORS["vector"]}
    save_safetensors(tmp_path / "a.safetensors", wrong)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"vector": "a.safetensors"}}))
    with refused(FileError, tmp_path / "a.safetensors", "vector"):
        Checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with refused(FileError, tmp_path, "model.safetensors"):
        Checkpoint(tmp_path)
    with refused(FileError, tmp_path / "nowhere", "folder"):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{", "\udc80", "[" * 100_000, r'{"a": "\ud800"}'])
def test_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text, errors="surrogateescape")
    with refused(OtterError, tmp_path / "c.json"):
        read_json(tmp_path / "c.json")


# ---- large and odd files ---------------------------------------------------------------------------------------


def test_tens_of_thousands_of_tensors_take_linear_time(tmp_path: Path) -> None:
    """As large mixtures of experts have; in one file and in shards."""
    count = 40_000
    names = [f"t{number}" for number in range(count)]
    places = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * number, 4 * number + 4]}
        for number, name in enumerate(names)
    }
    write_raw(tmp_path / "model.safetensors", places, bytes(4 * count))
    begin = time.monotonic()
    with Checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.shapes()) == count
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.shapes()) == count
    assert time.monotonic() - begin < 10  # 100 seconds and more where each tensor looks at all of them


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refused(FileError, tmp_path / "pipe"):
        SafetensorsFile(tmp_path / "pipe")
    with refused(FileError, tmp_path / "pipe"):
        read_json(tmp_path / "pipe")
