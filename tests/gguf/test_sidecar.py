"""The sidecar: what is written is read back, and everything wrong with a file is said in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native, heads
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import FileError, MismatchError, OtterError, UnsupportedError
from otter_gguf.gguf import keys
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import TENSOR_TYPES, KeyValue, encode_value
from otter_gguf.gguf.metadata import Lineage, sidecar_metadata
from otter_gguf.gguf.recipes import expected_tensors
from otter_gguf.gguf.sidecar import (
    check_binding,
    is_merged,
    is_sidecar,
    read_fingerprint,
    read_insertion,
    to_native_spec,
    validate_insertion,
)
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from tests.refusals import assert_names, refused

from .toy_files import GEOMETRY, base_tensors, float_tensor, insertion, rewrite, write_base, write_sidecar

VOCABULARY = (
    HeadConfig("safety", ("harm", "help"), "both", "tanh", (2.0, 0.5), (0.0, -1.0)),
    HeadConfig("next", ("safety.help",), "both", "tanh", (0.5,), (-1.0,), kind="vocabulary", rank=16),
)
CONFIGS = {
    "mixed": insertion(),
    "table": insertion(state_source="table", state_offset=0),
    "offset": insertion(state_offset=32),
    "head only": InsertionConfig.uniform(GEOMETRY, 0, n_head_kv=0, heads=(HeadConfig(input="base"),)),
    "attention in one layer": insertion(n_head_kv=(0, 1), n_ff=(0, 0)),
    "heads on the base": insertion(heads=(HeadConfig(input="base"),)),
    "classes": insertion(heads=(HeadConfig("tone", ("kind", "flat", "rude"), activation="softmax"),)),
    "vocabulary": insertion(heads=VOCABULARY),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf")


@pytest.fixture
def sidecar(tmp_path: Path, base: Path) -> Path:
    return write_sidecar(tmp_path / "toy.otter.gguf", base)


def refusal(path: Path, kind: type[OtterError], *names: object) -> str:
    """The one line with which a file is refused; it names the file, and the names behind it."""
    with refused(kind, path) as caught, _native.GgufFile(str(path)) as file:
        validate_insertion(file)
    message = str(caught.value).replace(str(path), "")
    assert_names(message, *names)
    return message


# ---- the specification -----------------------------------------------------------------------------------------


def test_tensors_of_a_configuration_written_out() -> None:
    """Sizes by hand: d 64, e 32, H 4, H_kv 2, n 16, f 96; layer 0 has k' 1, f' 32, layer 1 has k' 2 and no FFN."""
    assert expected_tensors(insertion()) == {
        "blk.0.attn_norm.otter.weight": (32,),
        "blk.0.attn_qkv.otter.weight": (96, 16 * (2 + 2)),
        "blk.0.attn_output.otter.weight": (16 * (4 + 2), 32),
        "blk.0.ffn_norm.otter.weight": (32,),
        "blk.0.ffn_up.otter.weight": (96, 64),
        "blk.0.ffn_down.otter.weight": (128, 32),
        "blk.1.attn_norm.otter.weight": (32,),
        "blk.1.attn_qkv.otter.weight": (96, 16 * (4 + 4)),
        "blk.1.attn_output.otter.weight": (16 * (4 + 4), 32),
        "output_norm.otter.weight": (32,),
        "cls.output.reward.otter.weight": (32, 1),
        "cls.output.reward.otter.bias": (1,),
        "cls.output.safety.otter.weight": (96, 2),
        "cls.output.safety.otter.bias": (2,),
    }


def test_tensors_of_a_vocabulary_head_written_out() -> None:
    """Rank 16, V 288: W and w over [h, h'] of 64 + 32 channels."""
    found = expected_tensors(CONFIGS["vocabulary"])
    assert {name: shape for name, shape in found.items() if ".next." in name} == {
        "cls.output.next.otter.weight": (96, 17),
        "cls.output.next.otter.bias": (17,),
        "cls.table.next.otter.weight": (16, 288),
    }


def test_nothing_inserted_leaves_only_heads() -> None:
    assert list(expected_tensors(CONFIGS["head only"])) == [
        "cls.output.reward.otter.weight",
        "cls.output.reward.otter.bias",
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sidecar_gives_its_configuration_back(tmp_path: Path, base: Path, name: str) -> None:
    path = write_sidecar(tmp_path / "s.gguf", base, CONFIGS[name])
    with BaseFiles.open(base) as files, _native.GgufFile(str(path)) as file:
        assert is_sidecar(file)
        assert not is_merged(file)
        assert validate_insertion(file) == CONFIGS[name]
        assert {t.name for t in file.tensors} == set(expected_tensors(CONFIGS[name]))
        check_binding(files, file)


def test_metadata_says_what_it_is_and_where_it_comes_from() -> None:
    lineage = Lineage("kind", "org/base-1b", "abc", "MIT")
    entries = {e.key: e.value for e in sidecar_metadata(insertion(), "f" * 64, lineage=lineage, quantized=True)}
    assert entries["general.type"] == "adapter"
    assert entries["adapter.type"] == "otter"
    assert entries["general.architecture"] == "llama"
    assert entries["general.base_model.0.repo_url"] == "https://huggingface.co/org/base-1b"
    assert entries["general.base_model.0.version"] == "abc"
    assert entries["general.base_model.count"] == 1
    assert entries["general.quantization_version"] == 2


@pytest.mark.parametrize("path", ["/home/ann/models/base-1b", "../base-1b", "C:\\models\\base-1b", "./models/base-1b/"])
def test_metadata_tells_no_local_paths(path: str) -> None:
    entries = sidecar_metadata(insertion(), "f" * 64, lineage=Lineage(base_name=path))
    assert ("general.base_model.0.name", "base-1b") in [(entry.key, entry.value) for entry in entries]
    assert all("models" not in str(entry.value) for entry in entries)


def test_metadata_keys_and_types_are_the_declared_ones() -> None:
    declared = {key.name: key.type for key in keys.SIDECAR_KEYS}
    declared |= {key.name.format(name="safety"): key.type for key in keys.HEAD_KEYS}
    declared |= {key.name.format(name="next"): key.type for key in keys.head_keys("vocabulary")}
    entries = sidecar_metadata(CONFIGS["vocabulary"], "f" * 64)
    assert {e.key: e.type for e in entries if e.key.startswith(keys.PREFIX)} == declared
    assert all(encode_value(entry.type, entry.value) for entry in entries)


def test_experts_are_counted_where_there_are_any() -> None:
    dense = insertion()
    sparse = replace(dense, base=replace(dense.base, n_expert=4))
    written = [{entry.key for entry in sidecar_metadata(config, "f" * 64)} for config in (dense, sparse)]
    assert written[1] - written[0] == {keys.BASE_EXPERT_COUNT.name}
    name = keys.FFN_DOWN.format(layer=0)
    assert expected_tensors(dense)[name] == (96 + 32, 32)
    assert expected_tensors(sparse)[name] == (32, 32)
    assert "n_expert" not in dense.to_dict()["base"]
    assert InsertionConfig.from_dict(sparse.to_dict()) == sparse


@pytest.mark.parametrize("gguf", ["llama", "gptneox"])
def test_tensors_of_absurd_sizes_are_told_without_making_them(gguf: str) -> None:
    """A damaged file may say any size; heads that stand one by one in a fused map are counted, not listed."""
    config = insertion(base=replace(GEOMETRY, architecture=gguf), n_head_kv=(2**30, 1), n_ff=(2**30, 1))
    base = config.base
    rows = base.head_dim * (base.group + 2) * 2**30
    assert expected_tensors(config)["blk.0.attn_qkv.otter.weight"] == (base.n_embd + config.width, rows)


def test_the_documentation_lists_every_key_and_tensor() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text("utf-8")
    rows = {line for line in text.splitlines() if line.startswith("| `")}
    declared = [*keys.SIDECAR_KEYS, *keys.OPTIONAL_SIDECAR_KEYS, *keys.CHECKSUM_KEYS]
    declared += dict.fromkeys(key for kind in heads.kinds() for key in keys.head_keys(kind))
    declared += keys.MERGED_KEYS
    key_rows = {f"| `{key.name}` | `{key.type}` | {key.doc} |" for key in declared}
    endings = (".otter.weight", ".otter.bias")
    tensor_names = {value for value in vars(keys).values() if isinstance(value, str) and value.endswith(endings)}
    tensor_names |= {
        keys.head_table(table)
        for head in CONFIGS["vocabulary"].heads
        for table in head.of_kind.tables(head, CONFIGS["vocabulary"].base.n_vocab)
    }
    assert {row for row in rows if row.startswith(f"| `{keys.PREFIX}")} == key_rows
    assert {row.split("`")[1] for row in rows if row.split("`")[1].endswith(endings)} == tensor_names
    assert all(type in text or type in ("Q3_K", "Q4_K", "Q5_K") for type in TENSOR_TYPES)


# ---- refused: keys ---------------------------------------------------------------------------------------------


def test_an_unknown_version_is_unsupported(tmp_path: Path, sidecar: Path) -> None:
    changed = {keys.VERSION.name: KeyValue(keys.VERSION.name, "u32", 2)}
    refusal(rewrite(sidecar, tmp_path / "new.gguf", metadata=changed), UnsupportedError, "otter.version", 2, "update")


@pytest.mark.parametrize(
    "key", [*keys.SIDECAR_KEYS, *(replace(k, name=k.name.format(name="safety")) for k in keys.HEAD_KEYS)]
)
def test_every_key_is_needed_and_has_one_type(tmp_path: Path, sidecar: Path, key: keys.Key) -> None:
    missing = rewrite(sidecar, tmp_path / "missing.gguf", metadata={key.name: None})
    refusal(missing, FileError, key.name)
    other: Any = KeyValue(key.name, "f64", 1.0)
    mistyped = rewrite(sidecar, tmp_path / "mistyped.gguf", metadata={key.name: other})
    refusal(mistyped, FileError, key.name, "f64", key.type)


def test_all_missing_keys_are_named_together(tmp_path: Path, sidecar: Path) -> None:
    missing = rewrite(sidecar, tmp_path / "m.gguf", metadata={keys.WIDTH.name: None, keys.STATE_SOURCE.name: None})
    refusal(missing, FileError, "otter.width", "otter.state.source")


@pytest.mark.parametrize(
    ("key", "type", "value", "names"),
    [
        ("otter.width", "u32", 65, ("slice", 65, 64)),
        ("otter.attention.head_count_kv", "arr[u32]", [1], ("n_head_kv", 1, 2)),
        ("otter.state.source", "str", "magic", ("source", "magic")),
        ("otter.base.block_count", "u32", 100_000, ("n_layer", 100_000, 512)),
        ("otter.base.attention.head_count", "u32", 3, ("n_head", 3, "n_head_kv", 2)),
        ("otter.base.attention.head_count_kv", "u32", 0, ("n_head_kv", 0)),
        ("otter.heads", "arr[str]", [], ("head", "predicted")),
        ("otter.heads", "arr[str]", ["reward", "reward"], ("heads", "reward")),
        ("otter.head.reward.activation", "str", "relu", ("reward", "activation", "relu")),
        ("otter.head.reward.activation", "str", "softmax", ("reward", "softmax", 2)),
        ("otter.head.reward.scale", "arr[f32]", [float("nan")], ("reward", "scale", 1)),
        ("otter.head.safety.labels", "arr[str]", ["harm", "harm"], ("safety", "labels", "unique")),
    ],
)
def test_contradictory_values_are_refused(
    tmp_path: Path, sidecar: Path, key: str, type: str, value: object, names: tuple[object, ...]
) -> None:
    changed = rewrite(sidecar, tmp_path / "changed.gguf", metadata={key: KeyValue(key, type, value)})
    with refused(FileError, changed, *names), _native.GgufFile(str(changed)) as file:
        read_insertion(file)


@pytest.mark.parametrize(
    ("key", "type", "value", "names"),
    [
        ("otter.future", "u32", 1, ("otter.future",)),
        ("otter.head.reward.kind", "str", "draft", ("reward", "draft")),
    ],
)
def test_what_a_newer_version_may_add_is_unsupported(
    tmp_path: Path, sidecar: Path, key: str, type: str, value: object, names: tuple[str, ...]
) -> None:
    changed = rewrite(sidecar, tmp_path / "changed.gguf", metadata={key: KeyValue(key, type, value)})
    refusal(changed, UnsupportedError, *names)


@pytest.fixture
def vocabulary_sidecar(tmp_path: Path, base: Path) -> Path:
    return write_sidecar(tmp_path / "next.otter.gguf", base, CONFIGS["vocabulary"])


def test_a_vocabulary_head_needs_its_rank_and_a_value_head_has_none(
    tmp_path: Path, sidecar: Path, vocabulary_sidecar: Path
) -> None:
    rank = "otter.head.next.rank"
    missing = rewrite(vocabulary_sidecar, tmp_path / "missing.gguf", metadata={rank: None})
    refusal(missing, FileError, rank)
    mistyped = rewrite(vocabulary_sidecar, tmp_path / "typed.gguf", metadata={rank: KeyValue(rank, "u64", 16)})
    refusal(mistyped, FileError, rank, "u64", "u32")
    extra = "otter.head.reward.rank"
    added = rewrite(sidecar, tmp_path / "added.gguf", metadata={extra: KeyValue(extra, "u32", 16)})
    refusal(added, UnsupportedError, extra)


@pytest.mark.parametrize(
    ("key", "type", "value", "names"),
    [
        ("otter.head.next.rank", "u32", 0, ("next", "rank", 0)),
        ("otter.head.next.rank", "u32", 65, ("next", "rank", 65, 64)),
        ("otter.head.next.rank", "u32", 15, ("cls.table.next.otter.weight", "[16, 288]", "[15, 288]")),
        ("otter.head.next.labels", "arr[str]", ["help"], ("next", "'help'", "safety.harm", "safety.help")),
        ("otter.head.next.kind", "str", "value", ("otter.head.next.rank",)),
    ],
)
def test_a_wrong_vocabulary_head_is_refused(
    tmp_path: Path, vocabulary_sidecar: Path, key: str, type: str, value: object, names: tuple[object, ...]
) -> None:
    changed = rewrite(vocabulary_sidecar, tmp_path / "changed.gguf", metadata={key: KeyValue(key, type, value)})
    refusal(changed, OtterError, *names)


def test_a_token_table_must_be_there_whole_and_finite(tmp_path: Path, vocabulary_sidecar: Path) -> None:
    name = "cls.table.next.otter.weight"
    missing = rewrite(vocabulary_sidecar, tmp_path / "missing.gguf", tensors={name: None})
    refusal(missing, FileError, name)
    values = np.ones((288, 16), np.float32)
    values[287, 15] = np.nan
    changed = rewrite(vocabulary_sidecar, tmp_path / "nan.gguf", tensors={name: float_tensor(name, values)})
    refusal(changed, FileError, name, "value 4607")


@pytest.mark.parametrize("key", ["general.type", "adapter.type"])
def test_a_file_of_another_kind_is_no_sidecar(tmp_path: Path, sidecar: Path, base: Path, key: str) -> None:
    other = rewrite(sidecar, tmp_path / "lora.gguf", metadata={key: KeyValue(key, "str", "lora")})
    refusal(other, FileError, "adapter.type", "'otter'")
    mistyped = rewrite(sidecar, tmp_path / "typed.gguf", metadata={key: KeyValue(key, "u32", 1)})
    refusal(mistyped, FileError, "adapter.type", "'otter'")
    refusal(base, FileError, "adapter.type", "'otter'")


# ---- refused: tensors ------------------------------------------------------------------------------------------


def test_all_tensor_problems_are_named_together(tmp_path: Path, sidecar: Path) -> None:
    changes: dict[str, TensorPlan | None] = {
        "blk.0.attn_norm.otter.weight": None,
        "blk.9.attn_norm.otter.weight": float_tensor("blk.9.attn_norm.otter.weight", np.ones(32, np.float32)),
        "blk.1.attn_norm.otter.weight": float_tensor("blk.1.attn_norm.otter.weight", np.ones(31, np.float32)),
    }
    changed = rewrite(sidecar, tmp_path / "changed.gguf", tensors=changes)
    refusal(changed, FileError, *changes, "[31]", "[32]")


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_gguf(tmp_path / "empty.gguf", sidecar_metadata(insertion(), "f" * 64), [])
    refusal(tmp_path / "empty.gguf", FileError, "tensors", "none")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.0.ffn_norm.otter.weight", "cls.output.safety.otter.bias"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, sidecar: Path, name: str, value: float) -> None:
    values = np.ones(32 if "norm" in name else 2, np.float32)
    values[1] = value
    changed = rewrite(sidecar, tmp_path / "nan.gguf", tensors={name: float_tensor(name, values)})
    refusal(changed, FileError, name, "value 1")


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, sidecar: Path) -> None:
    name = "blk.0.ffn_up.otter.weight"
    with _native.GgufFile(str(sidecar)) as file:
        tensor = next(tensor for tensor in file.tensors if tensor.name == name)
        data = bytearray(file.tensor_data(name))
    data[:2] = np.float16(np.nan).tobytes()
    plan = TensorPlan(name, tensor.type, tensor.shape, lambda: [bytes(data)])
    refusal(rewrite(sidecar, tmp_path / "nan.gguf", tensors={name: plan}), FileError, name, "block 0")


@pytest.mark.parametrize("name", ["blk.0.attn_norm.otter.weight", "cls.output.safety.otter.weight"])
def test_norms_and_heads_are_float32(tmp_path: Path, sidecar: Path, name: str) -> None:
    shape = expected_tensors(insertion())[name]
    size = _native.tensor_nbytes("F16", shape)
    plan = TensorPlan(name, "F16", shape, lambda: [bytes(size)])
    changed = rewrite(sidecar, tmp_path / "f16.gguf", tensors={name: plan})
    refusal(changed, FileError, name, "F16", "F32")


def test_trailing_ones_in_a_shape_do_not_matter(tmp_path: Path, sidecar: Path) -> None:
    name = "cls.output.reward.otter.weight"
    plan = TensorPlan(name, "F32", (32,), lambda: [bytes(128)])
    with _native.GgufFile(str(rewrite(sidecar, tmp_path / "s.gguf", tensors={name: plan}))) as file:
        assert validate_insertion(file) == insertion()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, sidecar: Path, share: float) -> None:
    data = sidecar.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    refusal(cut, FileError)


def test_another_alignment_is_refused(tmp_path: Path, base: Path) -> None:
    """Of the two tensors the first has 256 bytes, so the offsets are right for an alignment of 16 as well."""
    whole = write_sidecar(tmp_path / "heads.gguf", base, CONFIGS["head only"])
    entry = KeyValue("general.alignment", "u32", 16)
    changed = rewrite(whole, tmp_path / "aligned.gguf", metadata={entry.key: entry})
    refusal(changed, FileError, "alignment", 16, 32)


# ---- binding ---------------------------------------------------------------------------------------------------


def mismatch(base: Path, sidecar: Path, *names: object) -> str:
    """What a message says of two files that it names."""
    with (
        BaseFiles.open(base) as files,
        _native.GgufFile(str(sidecar)) as file,
        refused(MismatchError, base, sidecar, *names) as caught,
    ):
        check_binding(files, file)
    return str(caught.value)


def test_a_sidecar_fits_every_quantization_of_its_base(tmp_path: Path, sidecar: Path) -> None:
    for type in ("F16", "Q8_0", "Q4_0"):
        path = write_base(tmp_path / f"{type}.gguf", type=type)
        with BaseFiles.open(path) as files, _native.GgufFile(str(sidecar)) as file:
            check_binding(files, file)


def test_a_base_of_the_same_sizes_is_refused(tmp_path: Path, sidecar: Path) -> None:
    other = write_base(tmp_path / "other.gguf", tensors=base_tensors(seed=3))
    message = mismatch(other, sidecar, "fingerprint")
    assert all(size not in message for size in ("n_layer", "n_embd", "n_head", "n_ff", "n_vocab"))


def test_every_difference_in_size_is_named(tmp_path: Path, sidecar: Path) -> None:
    geometry = BaseGeometry("llama", n_layer=3, n_embd=32, n_head=2, n_head_kv=1, head_dim=16, n_ff=64, n_vocab=280)
    message = mismatch(write_base(tmp_path / "other.gguf", geometry=geometry), sidecar)
    differences = [
        ("n_layer", 3, 2),
        ("n_embd", 32, 64),
        ("n_head", 2, 4),
        ("n_head_kv", 1, 2),
        ("n_ff", 64, 96),
        ("n_vocab", 280, 288),
        ("fingerprint",),
    ]
    for part, names in zip(message.split("; "), differences, strict=False):
        assert_names(part, *names)


def test_a_changed_fingerprint_is_refused(tmp_path: Path, base: Path, sidecar: Path) -> None:
    entry = KeyValue(keys.BASE_FINGERPRINT.name, "str", "0" * 64)
    changed = rewrite(sidecar, tmp_path / "c.gguf", metadata={entry.key: entry})
    with _native.GgufFile(str(changed)) as file:
        assert read_fingerprint(file) == "0" * 64
    mismatch(base, changed, "fingerprint", "000000000000")


def test_native_specification_is_made_of_the_configuration() -> None:
    assert isinstance(to_native_spec(insertion()), _native.InsertionSpec)
