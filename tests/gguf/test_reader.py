"""The native reader on files that are right: values, offsets, views, quantizers, and life after close."""

from __future__ import annotations

import gc
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from otter_gguf import _native, errors
from tests.gguf.gguf_builder import TENSOR_TYPES, UNUSABLE_TENSOR_TYPES, Gguf, Tensor, Value, toy_gpt2, toy_llama
from tests.refusals import refused

NEEDS_IMPORTANCE = ("IQ1_S", "IQ2_XXS", "IQ2_XS")
QUANTIZABLE = [type for type in TENSOR_TYPES if type not in NEEDS_IMPORTANCE]
SLOW = ("IQ1_M", "IQ2_S")  # their quantizers build large tables first
FLOATS = ("F32", "F16", "BF16")

VALUES: dict[str, Any] = {
    "u8": 255,
    "i8": -128,
    "u16": 65535,
    "i16": -32768,
    "u32": 2**32 - 1,
    "i32": -(2**31),
    "f32": 0.5,
    "bool": True,
    "str": "Otter ü",
    "u64": 2**64 - 1,
    "i64": -(2**63),
    "f64": 1e300,
}


def open_file(file: Gguf, path: Path) -> _native.GgufFile:
    return _native.GgufFile(file.write(path / "file.gguf"))


def written_by_gguf_py(path: Path) -> str:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.name", "from gguf-py")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "ü", ""])
    writer.add_tensor("floats", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("halves", np.arange(33, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", VALUES)
def test_scalar_of_each_type(type: str, tmp_path: Path) -> None:
    with open_file(Gguf().set("key", type, VALUES[type]), tmp_path) as file:
        assert file.key_type("key") == type
        assert file.value("key") == VALUES[type]
        assert bytes(file.raw_value("key")) == Value.of(type, VALUES[type]).payload


@pytest.mark.parametrize("type", VALUES)
def test_array_of_each_type(type: str, tmp_path: Path) -> None:
    for values in ([VALUES[type]] * 3, []):
        with open_file(Gguf().set("key", f"arr[{type}]", values), tmp_path) as file:
            assert file.key_type("key") == f"arr[{type}]"
            assert file.array_length("key") == len(values)
            assert file.value("key") == values
            assert bytes(file.raw_value("key")) == Value.of(f"arr[{type}]", values).payload


def test_length_of_a_scalar_is_an_error(tmp_path: Path) -> None:
    with open_file(Gguf().set("key", "u32", 1), tmp_path) as file, refused(errors.FileError, "'key'", "u32"):
        file.array_length("key")


def test_text_that_is_no_utf8_survives(tmp_path: Path) -> None:
    with open_file(Gguf().set("key", "str", b"a\xff\x00b"), tmp_path) as file:
        assert file.value("key").encode("utf-8", "surrogateescape") == b"a\xff\x00b"


def test_absent_names_are_key_errors(tmp_path: Path) -> None:
    with open_file(Gguf().set("key", "u32", 1), tmp_path) as file:
        for call in (file.value, file.raw_value, file.key_type, file.array_length, file.tensor_data, file.non_finite):
            with refused(KeyError, "other"):
                call("other")


# ---- layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [8, 32, 4096, 65536])
@pytest.mark.parametrize("version", [2, 3])
def test_offsets(alignment: int, version: int, tmp_path: Path) -> None:
    file = Gguf(version=version, alignment=alignment).set("general.alignment", "u32", alignment)
    first, second = os.urandom(5 * 4), os.urandom(34)
    file.tensors = [("first", Tensor((5,), data=first)), ("second", Tensor((32, 1), "Q8_0", data=second))]
    raw = file.build()
    with open_file(file, tmp_path) as opened:
        assert (opened.version, opened.alignment, opened.size) == (version, alignment, len(raw))
        assert opened.kv_offset == 24
        assert raw[opened.tensor_info_offset :].startswith(struct.pack("<Q", 5) + b"first")
        assert opened.tensor_info_end == len(file.header())
        assert opened.data_offset % alignment == 0
        assert opened.data_offset - opened.tensor_info_end < alignment
        assert bytes(opened.tensor_data("first")) == first
        assert bytes(opened.tensor_data("second")) == second
        assert [(t.name, t.type, t.shape, t.n_bytes) for t in opened.tensors] == [
            ("first", "F32", (5,), 20),
            ("second", "Q8_0", (32, 1), 34),
        ]
        assert all(raw[t.offset : t.offset + t.n_bytes] == bytes(opened.tensor_data(t.name)) for t in opened.tensors)


def test_file_without_tensors(tmp_path: Path) -> None:
    with open_file(Gguf().set("key", "u32", 1), tmp_path) as file:
        assert file.tensors == []
        assert file.data_offset == file.tensor_info_end == file.size


def test_last_padding_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(Gguf(tensors=[("t", Tensor((5,)))]).build()[:-12])
    assert len(_native.GgufFile(str(path)).tensor_data("t")) == 20
    path.write_bytes(Gguf(tensors=[("t", Tensor((5,)))]).build()[:-13])
    with refused(errors.FileError, path, "'t'", 20, 83):
        _native.GgufFile(str(path))


def test_reads_what_gguf_py_writes(tmp_path: Path) -> None:
    with _native.GgufFile(written_by_gguf_py(tmp_path / "file.gguf")) as file:
        assert file.value("general.name") == "from gguf-py"
        assert file.value("numbers") == [1, 2, 3]
        assert file.value("words") == ["a", "ü", ""]
        floats = np.frombuffer(file.tensor_data("floats"), np.float32)
        assert np.array_equal(floats, np.arange(64, dtype=np.float32))
        assert [tensor.shape for tensor in file.tensors] == [(32, 2), (33,)]


def test_gguf_py_reads_what_the_builder_writes(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(toy_llama().write(tmp_path / "file.gguf"))
    ours = _native.GgufFile(str(tmp_path / "file.gguf"))
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in ours.tensors]
    assert [tensor.data_offset for tensor in reader.tensors] == [tensor.offset for tensor in ours.tensors]
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == ours.keys


def test_paths_of_every_spelling(tmp_path: Path) -> None:
    for name in ("plain", "mit Leerzeichen", "ü", os.fsdecode(b"\xff")):
        path = Gguf().set("key", "u32", 1).write(tmp_path / f"{name}.gguf")
        assert _native.GgufFile(path).path == path


# ---- life ------------------------------------------------------------------------------------------------------


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    file = open_file(Gguf(tensors=[("t", Tensor((4,), data=b"0123456789abcdef"))]), tmp_path)
    view = file.tensor_data("t")
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0
    file.close()
    del file
    gc.collect()
    assert bytes(view) == b"0123456789abcdef"


def test_use_after_close(tmp_path: Path) -> None:
    file = open_file(toy_llama(), tmp_path)
    info = file.tensors[0]
    with file:
        pass
    file.close()
    assert info.name == "token_embd.weight"  # what was read stays
    for use in (
        lambda: file.keys,
        lambda: file.tensors,
        lambda: file.version,
        lambda: file.value("general.name"),
        lambda: file.tensor_data("output.weight"),
        lambda: _native.check_base(file),
        lambda: _native.check_finite(file, []),
        lambda: file.__enter__(),
    ):
        with refused(errors.FileError, file.path, "closed"):
            use()


def test_close_while_another_thread_reads(tmp_path: Path) -> None:
    big = Gguf(tensors=[("t", Tensor((1 << 22,)))])
    path = big.write(tmp_path / "big.gguf")
    for _ in range(5):
        file = _native.GgufFile(path)
        results: list[int] = []
        thread = threading.Thread(target=lambda opened=file, out=results: out.append(opened.non_finite("t")))
        thread.start()
        file.close()
        thread.join(10)
        assert results in ([-1], [])  # [] = closed before it began: FileError in the thread


# ---- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", TENSOR_TYPES)
def test_sizes(type: str) -> None:
    number, block, size = TENSOR_TYPES[type]
    assert _native.tensor_nbytes(type, (block * 3, 5, 7)) == 3 * 5 * 7 * size
    if type in gguf.GGMLQuantizationType.__members__:
        assert gguf.GGMLQuantizationType[type] == number
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]] == (block, size)
    if block > 1:
        with refused(errors.FileError, type, block + 1, block):
            _native.tensor_nbytes(type, (block + 1, 5))


@pytest.mark.parametrize(
    "type", [pytest.param(type, marks=[pytest.mark.slow] * (type in SLOW)) for type in QUANTIZABLE]
)
def test_quantize_and_back(type: str) -> None:
    values = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    data = _native.quantize(values, type)
    assert len(data) == _native.tensor_nbytes(type, (512, 3))
    back = _native.dequantize(data, type, 512)
    assert back.shape == values.shape
    bits = 8 * len(data) / values.size
    error = np.sqrt(np.mean((back - values) ** 2))
    assert error <= (0.0 if type == "F32" else 0.01 if bits > 8 else 0.15 if bits > 4 else 0.9)
    assert np.array_equal(_native.dequantize(memoryview(b"\0" + data)[1:], type, 512), back)


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "BF16", "F16"])
def test_dequantize_agrees_with_gguf_py(type: str) -> None:
    data = _native.quantize(np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32), type)
    rows = np.frombuffer(data, np.uint8).reshape(4, -1)
    reference = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type])
    assert np.array_equal(_native.dequantize(data, type, 256), reference.reshape(4, 256))


@pytest.mark.parametrize("type", NEEDS_IMPORTANCE)
def test_types_that_need_an_importance_matrix(type: str) -> None:
    with refused(errors.ConfigError, type, "importance"):
        _native.quantize(np.ones((1, 256), np.float32), type)


@pytest.mark.parametrize("type", [*UNUSABLE_TENSOR_TYPES, "f32", "", "Q9"])
def test_unusable_types(type: str) -> None:
    for call in (
        lambda: _native.tensor_nbytes(type, (256,)),
        lambda: _native.quantize(np.ones((1, 256), np.float32), type),
        lambda: _native.dequantize(bytes(1024), type, 256),
    ):
        with refused(errors.FileError, f"'{type}'"):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0", "Q4_K", "IQ3_S"])
def test_quantize_refuses_what_is_not_finite(type: str, bad: float) -> None:
    values = np.ones((4, 256), np.float32)
    values[2, 7] = bad
    with refused(errors.FileError, "row 2", "column 7", type):
        _native.quantize(values, type)


def test_quantize_refuses_overflow() -> None:
    with refused(errors.FileError, "row 1", "column 3", "F16"):
        _native.quantize(np.array([[1, 2, 3, 4], [1, 2, 3, 1e6]], np.float32), "F16")


def test_shapes_that_quantize_and_dequantize_refuse() -> None:
    for values in (np.ones(32, np.float32), np.ones((0, 32), np.float32), np.ones((2, 2, 32), np.float32)):
        with refused(errors.ConfigError, "quantize", f"{values.ndim} dimensions", values.size):
            _native.quantize(values, "Q8_0")
    with refused(errors.FileError, "Q8_0", 33, 32):
        _native.quantize(np.ones((2, 33), np.float32), "Q8_0")
    with refused(errors.ConfigError, "dequantize", 34, 35):
        _native.dequantize(bytes(35), "Q8_0", 32)
    with refused(errors.ConfigError, "dequantize", "contiguous"):
        _native.dequantize(memoryview(bytes(68))[::2], "Q8_0", 32)
    assert _native.dequantize(b"", "Q8_0", 32).shape == (0, 32)


# ---- NaN and infinity ------------------------------------------------------------------------------------------


def non_finite(type: str, shape: tuple[int, ...], data: bytes, path: Path) -> int:
    file = toy_llama()
    file.tensors = [("t", Tensor(shape, type, data=data))]
    with open_file(file, path) as opened:
        index = opened.non_finite("t")
        if index < 0:
            _native.check_finite(opened, ["t"])
        else:
            unit = "value" if type in FLOATS else "block"
            with refused(errors.FileError, opened.path, "'t'", f"{unit} {index}"):
                _native.check_finite(opened, ["t"])
        return index


@pytest.mark.parametrize("index", [0, 1, 1023, 1024, 2999])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFF800000, 0x7F800001])
@pytest.mark.parametrize("type", ["F32", "BF16"])
def test_non_finite_floats(type: str, bits: int, index: int, tmp_path: Path) -> None:
    values = np.full(3000, 3.4e38, np.float32)  # the largest exponent that is a number
    raw = values.view(np.uint32)
    raw[index:] = bits if type == "F32" else bits | 0x10000
    data = raw.tobytes() if type == "F32" else (raw >> 16).astype(np.uint16).tobytes()
    assert non_finite(type, (3000,), data, tmp_path) == index


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_non_finite_halves(bits: int, tmp_path: Path) -> None:
    halves = np.full(3000, 65504, np.float16)
    assert non_finite("F16", (3000,), halves.tobytes(), tmp_path) == -1
    halves.view(np.uint16)[2047] = bits
    assert non_finite("F16", (3000,), halves.tobytes(), tmp_path) == 2047


@pytest.mark.parametrize("type", [type for type in TENSOR_TYPES if type not in (*FLOATS, "NVFP4")])
def test_non_finite_scales(type: str, tmp_path: Path) -> None:
    """Overwrite each byte pair of a block with ones: exactly those that make ggml's values NaN or infinite count."""
    _, block, size = TENSOR_TYPES[type]
    assert non_finite(type, (block * 3,), bytes(size * 3), tmp_path) == -1
    seen = set()
    for offset in range(size - 1):
        data = bytearray(size * 3)
        data[size + offset : size + offset + 2] = b"\xff\xff"
        broken = not np.isfinite(_native.dequantize(bytes(data), type, block * 3)).all()
        found = non_finite(type, (block * 3,), bytes(data), tmp_path)
        assert found == (1 if broken else -1), f"{type}: byte {offset}"
        seen.add(broken)
    assert seen == ({True, False} if type != "IQ1_M" else {False})  # IQ1_M needs four words, see the next test


def test_non_finite_scale_of_iq1_m(tmp_path: Path) -> None:
    data = bytearray(2 * 56)
    for word in range(4):
        data[56 + 49 + 2 * word] = 0xF0
    assert not np.isfinite(_native.dequantize(bytes(data), "IQ1_M", 512)).all()
    assert non_finite("IQ1_M", (512,), bytes(data), tmp_path) == 1


def test_check_finite_names_a_missing_tensor(tmp_path: Path) -> None:
    with open_file(toy_llama(), tmp_path) as file:
        _native.check_finite(file, [tensor.name for tensor in file.tensors])
        with refused(errors.FileError, file.path, "nothing"):
            _native.check_finite(file, ["output.weight", "nothing"])


# ---- bases -----------------------------------------------------------------------------------------------------


def with_bias() -> Gguf:
    return toy_llama().tensor("blk.1.attn_q.bias", Tensor((64,))).tensor("rope_freqs.weight", Tensor((8,)))


def fused() -> Gguf:
    file = toy_llama()
    for layer in range(2):
        for name in "qkv":
            file = file.tensor(f"blk.{layer}.attn_{name}.weight", None)
        file = file.tensor(f"blk.{layer}.attn_qkv.weight", Tensor((64, 128)))
    return file


def experts() -> Gguf:
    file = toy_llama().set("llama.expert_count", "u32", 4).set("llama.expert_used_count", "u32", 2)
    for layer in range(2):
        for name in ("gate", "up", "down"):
            shape = (96, 64, 4) if name == "down" else (64, 96, 4)
            file = file.tensor(f"blk.{layer}.ffn_{name}.weight", None)
            file = file.tensor(f"blk.{layer}.ffn_{name}_exps.weight", Tensor(shape))
        file = file.tensor(f"blk.{layer}.ffn_gate_inp.weight", Tensor((64, 4)))
    return file


GOOD_BASES: dict[str, Callable[[], Gguf]] = {
    "plain": toy_llama,
    "one layer": lambda: toy_llama(n_layer=1),
    "gpt2 tokenizer": toy_gpt2,
    "tied output": lambda: toy_llama().tensor("output.weight", None),
    "quantized": lambda: toy_llama().tensor("blk.0.attn_q.weight", Tensor((64, 64), "Q8_0")),
    "bias and rotary factors": with_bias,
    "fused attention": fused,
    "experts": experts,
    "scale beside a weight": lambda: toy_llama().tensor("blk.0.ffn_up.scale", Tensor((1,))),
    "merged": lambda: toy_llama().tensor("blk.0.attn_norm.otter.weight", Tensor((8,))),
    "sizes as arrays": lambda: toy_llama().set("llama.attention.head_count", "arr[i32]", [4, 4]),
    "yarn": lambda: toy_llama().set("llama.rope.scaling.type", "str", "yarn"),
    "dropped padding token": lambda: toy_llama().set("tokenizer.ggml.padding_token_id", "u32", 2**32 - 1),
    "integer scores": lambda: toy_llama().set("tokenizer.ggml.scores", "arr[i32]", [0] * 259),
    "no scores": lambda: toy_llama().drop("tokenizer.ggml.scores"),
    "unknown keys": lambda: toy_llama().set("llama.of.tomorrow", "arr[f64]", [1.0]),
    "type model": lambda: toy_llama().set("general.type", "str", "model"),
    "one part": lambda: toy_llama().set("split.count", "u16", 1),
}


@pytest.mark.parametrize("kind", GOOD_BASES)
def test_good_bases(kind: str, tmp_path: Path) -> None:
    with open_file(GOOD_BASES[kind](), tmp_path) as file:
        _native.check_base(file)


def test_split_base(tmp_path: Path) -> None:
    whole = toy_llama()
    head = Gguf(kvs=whole.kvs, tensors=whole.tensors[:5])
    rest = Gguf(tensors=whole.tensors[5:]).set("split.no", "u16", 1)
    for key, type, value in (("split.no", "u16", 0), ("split.count", "u16", 2), ("split.tensors.count", "i32", 21)):
        head = head.set(key, type, value)
    first = _native.GgufFile(head.write(tmp_path / "toy-00001-of-00002.gguf"))
    with refused(errors.FileError, "toy-00002-of-00002.gguf", "No such file"):
        _native.check_base(first)
    rest.write(tmp_path / "toy-00002-of-00002.gguf")
    _native.check_base(first)
    rest.set("split.no", "u16", 2).write(tmp_path / "toy-00002-of-00002.gguf")
    with refused(errors.FileError, "toy-00002-of-00002.gguf", "split.no", 1):
        _native.check_base(first)


def test_large_vocabulary(tmp_path: Path) -> None:
    n_vocab = 128_256
    tokens = [f"token{i}" for i in range(n_vocab)]
    merges = [f"a{i} b{i}" for i in range(100_000)]
    file = (
        toy_gpt2()
        .set("tokenizer.ggml.tokens", "arr[str]", tokens)
        .set("tokenizer.ggml.merges", "arr[str]", merges)
        .set("tokenizer.ggml.token_type", "arr[i32]", [1] * n_vocab)
        .tensor("token_embd.weight", Tensor((64, n_vocab), "Q8_0"))
        .tensor("output.weight", None)
    )
    with open_file(file, tmp_path) as opened:
        _native.check_base(opened)
        assert opened.value("tokenizer.ggml.tokens") == tokens
    tokens[100_000] = tokens[7]
    twice = open_file(file.set("tokenizer.ggml.tokens", "arr[str]", tokens), tmp_path)
    with refused(errors.FileError, twice.path, "tokenizer.ggml.tokens", "token7", 7, 100000):
        _native.check_base(twice)
