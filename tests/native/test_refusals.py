"""Every architecture: files that do not fit are refused, with all differences in one message."""

from __future__ import annotations

import dataclasses
import functools
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.architectures import supported
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import FileError, MismatchError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.keys import BASE_FINGERPRINT, BASE_HEAD_COUNT
from otter_gguf.gguf.metadata import Lineage, sidecar_metadata
from otter_gguf.gguf.recipes import expected_tensors
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from otter_gguf.loading import check_files
from tests.architecture_toys import toy, widen, write_toy, write_widened
from tests.gguf.toy_files import rewrite
from tests.refusals import assert_names, names, refused

every_architecture = pytest.mark.parametrize("model_type", supported())
OTHER = "0" * 64
SHOWN = 24
"""What a message lists of one kind."""
_Q8_0, _Q4_K = 8, 12


class Toy(NamedTuple):
    """A base and a sidecar that fits."""

    base: Path
    sidecar: Path
    config: InsertionConfig


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[Toy]:
    """By model type; what is inserted is 5 wide, so that no row of it is a multiple of 32."""

    @functools.lru_cache
    def make(model_type: str) -> Toy:
        folder = tmp_path_factory.mktemp(model_type)
        model = toy(model_type)
        base, otter = write_toy(folder / "base.gguf", model), widen(model, width=5)
        return Toy(base, write_widened(folder, otter, base), otter.insertion)

    return make


def refusal(base: Path, sidecar: Path, kind: type[Exception]) -> str:
    """What is said of two files, which are called BASE and SIDECAR."""
    with refused(kind) as caught:
        check_files(base, sidecar)
    assert type(caught.value) is kind
    return str(caught.value).replace(str(base), "BASE").replace(str(sidecar), "SIDECAR")


def matrices(config: InsertionConfig) -> list[str]:
    return [name for name, shape in expected_tensors(config).items() if len(shape) == 2 and "cls." not in name]


@every_architecture
def test_another_fingerprint(model_type: str, toys: functools._lru_cache_wrapper[Toy], tmp_path: Path) -> None:
    made = toys(model_type)
    assert check_files(made.base, made.sidecar).insertion == made.config
    entry = KeyValue(BASE_FINGERPRINT.name, "str", OTHER)
    other = rewrite(made.sidecar, tmp_path / "other.gguf", metadata={entry.key: entry})
    message = refusal(made.base, other, MismatchError)
    with BaseFiles.open(made.base) as files:
        assert_names(message, "SIDECAR", "BASE", "fingerprint", fingerprint(files)[:12], OTHER[:12], "weights")


def _wrong_group(config: InsertionConfig) -> InsertionConfig:
    """The same insertion for a base with twice as many query heads a KV head."""
    return dataclasses.replace(config, base=dataclasses.replace(config.base, n_head=2 * config.base.n_head))


@every_architecture
def test_a_wrong_head_group_size(model_type: str, toys: functools._lru_cache_wrapper[Toy], tmp_path: Path) -> None:
    """A sidecar that is right in itself, of a base with other groups: sizes and fingerprint are named together."""
    made = toys(model_type)
    config = _wrong_group(made.config)
    plans = [
        TensorPlan(name, "F32", shape, lambda shape=shape: [bytes(4 * int(np.prod(shape)))])  # type: ignore[misc]
        for name, shape in expected_tensors(config).items()
    ]
    other = tmp_path / "other.gguf"
    write_gguf(other, sidecar_metadata(config, OTHER, lineage=Lineage("toy"), quantized=False), plans)
    message = refusal(made.base, other, MismatchError)
    n_head = made.config.base.n_head
    assert_names(message, "SIDECAR", "BASE", "n_head", n_head, 2 * n_head, "fingerprint")


@every_architecture
def test_a_head_group_size_that_the_tensors_contradict(
    model_type: str, toys: functools._lru_cache_wrapper[Toy], tmp_path: Path
) -> None:
    """Every tensor of wrong shape is named, and that the base is another, all in one message."""
    made = toys(model_type)
    n_head = made.config.base.n_head
    entries = (KeyValue(BASE_HEAD_COUNT.name, "u32", 2 * n_head), KeyValue(BASE_FINGERPRINT.name, "str", OTHER))
    other = rewrite(made.sidecar, tmp_path / "other.gguf", metadata={entry.key: entry for entry in entries})
    message = refusal(made.base, other, FileError)
    right, wrong = expected_tensors(made.config), expected_tensors(_wrong_group(made.config))
    differing = [name for name in right if right[name] != wrong[name]]
    assert len(differing) >= 2 * made.config.base.n_layer  # attention's maps in and back
    for name in differing:
        assert_names(message, name, list(right[name]), list(wrong[name]))
    assert_names(message, "SIDECAR", "BASE", "n_head", n_head, 2 * n_head, "fingerprint")


@every_architecture
def test_rows_that_no_block_divides(model_type: str, toys: functools._lru_cache_wrapper[Toy], tmp_path: Path) -> None:
    """Matrices that call themselves Q8_0: every one of them is named."""
    made = toys(model_type)
    changed = matrices(made.config)
    other = tmp_path / "other.gguf"
    other.write_bytes(_retyped(made.sidecar, changed))
    message = refusal(made.base, other, FileError)
    odd = {name: shape[0] for name, shape in expected_tensors(made.config).items() if name in changed and shape[0] % 32}
    assert len(odd) >= made.config.base.n_layer
    for name, columns in list(odd.items())[:SHOWN]:
        assert_names(message, name, columns, 32, "Q8_0")
    assert_all_are_named(message, list(odd))


@every_architecture
def test_odd_rows_of_a_base(model_type: str, toys: functools._lru_cache_wrapper[Toy], tmp_path: Path) -> None:
    """The same for a base, and blocks of a K type."""
    made = toys(model_type)
    with _native.GgufFile(str(made.base)) as file:
        odd = {tensor.name: tensor.shape[0] for tensor in file.tensors if tensor.shape[0] % 256}
    other = tmp_path / "other.gguf"
    other.write_bytes(_retyped(made.base, list(odd), type=_Q4_K))
    message = refusal(other, made.sidecar, FileError)
    assert_names(message, "BASE", 256, "Q4_K")
    assert_all_are_named(message, list(odd))


def assert_all_are_named(message: str, tensors: list[str]) -> None:
    """A long list ends with a number."""
    assert sum(names(message, tensor) for tensor in tensors) == min(len(tensors), SHOWN)
    assert names(message, f"{len(tensors) - SHOWN} more") == (len(tensors) > SHOWN)


def _retyped(path: Path, tensors: list[str], type: int = _Q8_0) -> bytes:
    """The file with another type written into the entries of some tensors; all else stays."""
    data = bytearray(path.read_bytes())
    for name in tensors:
        entry = struct.pack("<Q", len(name)) + name.encode()
        begin = data.index(entry) + len(entry)
        (n_dims,) = struct.unpack_from("<I", data, begin)
        struct.pack_into("<I", data, begin + 4 + 8 * n_dims, type)
    return bytes(data)
