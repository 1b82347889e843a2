"""The fingerprint: the same for every form of a base, another for every other base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import FileError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.merge import merge
from tests.refusals import refused

from .toy_files import (
    GEOMETRY,
    base_metadata,
    base_tensors,
    float_tensor,
    rewrite,
    split_base,
    write_base,
    write_sidecar,
)


def fingerprint_of(path: Path) -> str:
    with BaseFiles.open(path) as base:
        return fingerprint(base)


# ---- the same --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_every_type_of_a_base_has_the_same(tmp_path: Path, type: str) -> None:
    assert fingerprint_of(write_base(tmp_path / "a", type=type)) == fingerprint_of(write_base(tmp_path / "b"))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_llama_cpp_quantization_keeps_it(tmp_path: Path, type: str) -> None:
    base = write_base(tmp_path / "base.gguf", type="F16")
    _native.model_quantize(str(base), str(tmp_path / "quantized.gguf"), type)
    with _native.GgufFile(str(tmp_path / "quantized.gguf")) as file:
        assert {tensor.type for tensor in file.tensors} > {"F32"}
    assert fingerprint_of(tmp_path / "quantized.gguf") == fingerprint_of(base)


def test_shards_have_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    assert fingerprint_of(split_base(base, 3)) == fingerprint_of(base)


def test_a_merged_file_has_its_bases(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    merge(base, write_sidecar(tmp_path / "s.gguf", base), tmp_path / "merged.gguf")
    assert fingerprint_of(tmp_path / "merged.gguf") == fingerprint_of(base)


def test_rope_tables_order_and_metadata_do_not_matter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    table = float_tensor("rope_freqs.weight", np.ones(8, np.float32))
    name = KeyValue("general.name", "str", "renamed")
    rewrite(base, tmp_path / "b.gguf", metadata={"general.name": name}, tensors={table.name: table})
    reordered = dict(reversed(base_tensors().items()))
    write_base(tmp_path / "c.gguf", tensors=reordered)
    assert fingerprint_of(tmp_path / "b.gguf") == fingerprint_of(tmp_path / "c.gguf") == fingerprint_of(base)


# ---- another ---------------------------------------------------------------------------------------------------


def test_a_base_of_the_same_sizes_differs_by_its_norms(tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", tensors=base_tensors(seed=1))
    assert fingerprint_of(other) != fingerprint_of(write_base(tmp_path / "base"))


@pytest.mark.parametrize("place", [0, 5, -1])
def test_one_norm_weight_is_enough(tmp_path: Path, place: int) -> None:
    tensors = base_tensors()
    tensors["model.norm.weight"][place] = np.nextafter(tensors["model.norm.weight"][place], np.float32(2))
    assert fingerprint_of(write_base(tmp_path / "other", tensors=tensors)) != fingerprint_of(write_base(tmp_path / "a"))


def test_another_tokenizer_differs(tmp_path: Path) -> None:
    tokens = next(entry for entry in base_metadata(GEOMETRY) if entry.key == "tokenizer.ggml.tokens")
    swapped = replace(tokens, value=[*tokens.value[:-2], tokens.value[-1], tokens.value[-2]])
    other = write_base(tmp_path / "other", metadata=(swapped,))
    assert fingerprint_of(other) != fingerprint_of(write_base(tmp_path / "base"))


def test_another_shape_or_a_missing_tensor_differs(tmp_path: Path) -> None:
    whole = fingerprint_of(write_base(tmp_path / "base"))
    tied = write_base(tmp_path / "tied", leave_out=("lm_head.weight",))
    wider = write_base(tmp_path / "wider", tensors=base_tensors(replace(GEOMETRY, n_ff=128)))
    assert len({whole, fingerprint_of(tied), fingerprint_of(wider)}) == 3


# ---- opening bases ---------------------------------------------------------------------------------------------


def test_geometry_is_read_from_keys_and_embedding(tmp_path: Path) -> None:
    with BaseFiles.open(split_base(write_base(tmp_path / "base.gguf"), 2)) as base:
        assert base_geometry(base) == GEOMETRY
        assert len(base.files) == 2


def test_experts_are_counted_and_have_their_own_inner_size(tmp_path: Path) -> None:
    sizes = {"expert_count": 4, "expert_feed_forward_length": 48}
    metadata = tuple(KeyValue(f"llama.{name}", "u32", size) for name, size in sizes.items())
    with BaseFiles.open(write_base(tmp_path / "base.gguf", metadata=metadata)) as base:
        assert base_geometry(base) == replace(GEOMETRY, n_expert=4, n_ff=48)
    with BaseFiles.open(write_base(tmp_path / "dense.gguf", metadata=metadata[1:])) as base:
        assert base_geometry(base) == GEOMETRY


@pytest.mark.parametrize(
    ("key", "type", "value", "names"),
    [
        ("llama.attention.head_count_kv", "arr[u32]", [2, 1], ("llama.attention.head_count_kv", "layer")),
        ("llama.attention.value_length", "u32", 8, ("keys", "values")),
    ],
)
def test_what_cannot_be_widened_is_unsupported(
    tmp_path: Path, key: str, type: str, value: object, names: tuple[str, ...]
) -> None:
    path = write_base(tmp_path / "base.gguf", metadata=(KeyValue(key, type, value),))
    with BaseFiles.open(path) as base, refused(UnsupportedError, path, *names):
        base_geometry(base)


def test_sizes_equal_in_every_layer_are_one_size(tmp_path: Path) -> None:
    metadata = (KeyValue("llama.attention.head_count_kv", "arr[u32]", [2, 2]),)
    with BaseFiles.open(write_base(tmp_path / "base.gguf", metadata=metadata)) as base:
        assert base_geometry(base) == GEOMETRY


@pytest.mark.parametrize("key", ["llama.block_count", "general.architecture"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    rewrite(write_base(tmp_path / "base.gguf"), tmp_path / "cut.gguf", metadata={key: None})
    with BaseFiles.open(tmp_path / "cut.gguf") as base, refused(FileError, "cut.gguf", key):
        base_geometry(base)


def test_the_first_shard_must_be_given(tmp_path: Path) -> None:
    split_base(write_base(tmp_path / "base.gguf"), 2)
    with refused(FileError, "part-00002-of-00002.gguf", "part-00001-of-00002.gguf"):
        BaseFiles.open(tmp_path / "part-00002-of-00002.gguf")


def test_a_missing_shard_and_a_wrong_count_are_named(tmp_path: Path) -> None:
    first = split_base(write_base(tmp_path / "base.gguf"), 2)
    first.with_name("part-00002-of-00002.gguf").unlink()
    with refused(FileError, "part-00002-of-00002.gguf"):
        BaseFiles.open(first)
    wrong = split_base(write_base(tmp_path / "again.gguf"), 3, split_count=4)
    with refused(FileError, "part-00001-of-00003.gguf", "00001-of-00004.gguf"):
        BaseFiles.open(wrong)
