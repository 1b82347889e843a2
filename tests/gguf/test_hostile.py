"""Files that are wrong: each kind is refused with the right class and one line that names the file and the place."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_gguf import _native, errors
from otter_gguf.gguf.merge import check_parts
from otter_gguf.loading import check_files
from tests.gguf.gguf_builder import TENSOR_TYPES, VALUE_TYPES, Gguf, Tensor, Value, toy_gpt2, toy_llama
from tests.gguf.malformed import LLAMA_CPP_FALLS, MALFORMED, good, good_files, one_kv, one_tensor, small
from tests.gguf.sizes import MemoryFile, compare_headers, expected_bytes, random_shape
from tests.refusals import assert_names


def refusal(path: str, error: type[errors.OtterError], check: Callable[[str], object], *names: object) -> str:
    """The message of an error of exactly this class, one line that starts with the file and holds the names."""
    with pytest.raises(errors.OtterError) as caught:
        check(path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(path + ": "), message
    assert_names(message.removeprefix(path), *names)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 10_000
    return message


def write(file: Gguf | bytes, path: Path) -> str:
    (path / "bad.gguf").write_bytes(file if isinstance(file, bytes) else file.build())
    return str(path / "bad.gguf")


def open_only(path: str) -> None:
    _native.GgufFile(path).close()


def split_only(path: str) -> None:
    check_files(path)
    with _native.GgufFile(path) as file:
        check_parts(file)


def open_and_check(path: str) -> None:
    with _native.GgufFile(path) as file:
        _native.check_base(file)


# ---- the table -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base of the sidecars."""
    path = tmp_path_factory.mktemp("hostile") / "base.gguf"
    path.write_bytes(good_files()["base"])
    return str(path)


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed(kind: str, base: str, tmp_path: Path) -> None:
    """As loading sees it; a header that is wrong is so in a sidecar too."""
    build, error, names, what = MALFORMED[kind]
    path = write(build(), tmp_path)
    if what in ("sidecar", "header"):
        refusal(path, error, lambda path: check_files(base, path), *names)
    if what in ("base", "header"):
        refusal(path, error, open_and_check, *names)
        refusal(path, error, check_files)
    if what == "merged":
        refusal(path, error, split_only, *names)


def test_the_table_is_long_and_knows_where_llama_cpp_falls() -> None:
    assert len(MALFORMED) >= 60
    assert all(kind in MALFORMED for kinds in LLAMA_CPP_FALLS.values() for kind in kinds)


def test_what_the_table_changes_is_good(base: str, tmp_path: Path) -> None:
    for file in (toy_llama(), toy_gpt2()):
        check_files(write(file, tmp_path))
    check_files(base, write(good("sidecar"), tmp_path))
    check_files(write(good("merged"), tmp_path))
    split_only(write(good("merged"), tmp_path))


def test_the_small_file_is_good(tmp_path: Path) -> None:
    open_only(write(small(), tmp_path))


def test_limits_are_inclusive(tmp_path: Path) -> None:
    open_only(write(one_kv("k" * 65535, 0, b"\0"), tmp_path))
    open_only(write(one_tensor(Tensor((4, 1, 1, 1)), "n" * 63), tmp_path))
    open_only(write(one_kv(" key ~", 0, b"\0"), tmp_path))


def test_not_a_file(tmp_path: Path) -> None:
    refusal(str(tmp_path), errors.FileError, open_only, "directory")
    refusal(str(tmp_path / "none.gguf"), errors.FileError, open_only, "No such file")
    (tmp_path / "empty.gguf").touch()
    refusal(str(tmp_path / "empty.gguf"), errors.FileError, open_only, "empty")
    os.mkfifo(tmp_path / "pipe.gguf")
    refusal(str(tmp_path / "pipe.gguf"), errors.FileError, open_only, "regular")
    refusal("/dev/zero", errors.FileError, open_only, "regular")
    with pytest.raises(ValueError, match="null"):
        open_only("a\0b")


def test_count_limits(tmp_path: Path) -> None:
    """Counts that the bytes would allow, but no model needs."""
    refusal(write(Gguf(n_kv=65537).build() + bytes(1 << 20), tmp_path), errors.FileError, open_only, 65537, "keys")
    many = Gguf(n_tensors=(1 << 18) + 1).build() + bytes(9 << 20)
    refusal(write(many, tmp_path), errors.FileError, open_only, 262145, "tensors")


# ---- cuts and lies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "sidecar", "merged"])
def test_truncation_at_every_byte(kind: str) -> None:
    """Of the header; then every 4 kB of the data, and the last byte."""
    raw = good_files()[kind]
    with MemoryFile() as file:
        file.fill(raw)
        with _native.GgufFile(file.path) as whole:
            begin, last = whole.data_offset, whole.tensors[-1]
        end = last.offset + last.n_bytes  # the padding behind it may be missing
        for size in sorted({*range(1, begin), *range(begin, end, 4096), end - 1}, reverse=True):
            file.cut(size)
            refusal(file.path, errors.FileError, open_only)
        file.fill(raw[:end])
        open_only(file.path)


def test_sizes_agree_with_big_integers() -> None:
    rng = random.Random(4)
    accepted = 0
    for _ in range(20_000):
        shape, type = random_shape(rng), rng.choice(list(TENSOR_TYPES))
        try:
            found: int | None = _native.tensor_nbytes(type, shape)
        except errors.FileError:
            found = None
        assert found == expected_bytes(shape, type), f"{type} {shape}"
        accepted += found is not None
    assert 1_000 < accepted < 19_000


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_headers_agree_with_big_integers(count: int) -> None:
    accepted = compare_headers(count, seed=5)
    assert 0.03 < accepted / count < 0.5


def test_random_bytes_behind_the_magic(tmp_path: Path) -> None:
    """Bytes of a good header overwritten: an object or an OtterError, never anything else."""
    rng = random.Random(6)
    good = toy_llama().build()
    end = len(toy_llama().header())
    for _ in range(2_000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(4, end)] = rng.choice([0, 1, 4, 8, 9, 127, 128, 255, rng.randrange(256)])
        path = write(bytes(raw), tmp_path)
        message = ""
        try:
            open_and_check(path)
        except (errors.FileError, errors.UnsupportedError) as error:
            message = str(error)
        assert message == "" or (message.startswith(f"{path}: ") and message.isprintable())


def test_what_the_fuzzer_kept() -> None:
    """Inputs of libFuzzer that go different ways through the validator (``make fuzz-validator``)."""
    folder = Path(__file__).with_name("corpus")
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    n_opened = 0
    with MemoryFile() as file:
        for content in contents:
            file.fill(content)
            message = ""
            try:
                open_only(file.path)
                n_opened += 1
                open_and_check(file.path)
            except (errors.FileError, errors.UnsupportedError) as error:
                message = str(error)
            assert message == "" or (message.startswith(file.path) and message.isprintable())
    assert 5 <= n_opened <= len(contents) - 5
    assert sum(map(len, contents)) < 300_000


# ---- bases -----------------------------------------------------------------------------------------------------


def test_all_differences_in_one_message(tmp_path: Path) -> None:
    file = toy_llama().tensor("blk.0.attn_q.weight", None).tensor("blk.1.ffn_up.weight", Tensor((64, 95)))
    for i in range(9):
        file = file.tensor(f"extra.{i}.weight", Tensor((4,)))
    message = refusal(write(file, tmp_path), errors.FileError, open_and_check)
    missing, wrong, unexpected = message.split("; ")[-3:]
    assert_names(missing, "missing", "blk.0.attn_q.weight")
    assert_names(wrong, "blk.1.ffn_up.weight", "[64, 95]", "[64, 96]")
    assert_names(unexpected, "unexpected", *(f"extra.{i}.weight" for i in range(6)), "3 more")
    assert unexpected.count("extra.") == 6


SCALARS = {"u8": 1, "i8": 1, "u16": 1, "i16": 1, "u32": 1, "i32": 1, "f32": 1.0, "bool": 1, "str": "1", "u64": 1,
           "i64": 1, "f64": 1.0}  # fmt: skip


def full_tag(value: Value) -> tuple[int, bytes]:
    """The type of a value, with the type of the elements of an array."""
    return value.tag, value.payload[:4] if value.tag == VALUE_TYPES["arr"] else b""


@pytest.mark.parametrize("type", [*SCALARS, *(f"arr[{type}]" for type in SCALARS)])
def test_every_key_as_every_type(type: str, tmp_path: Path) -> None:
    """Only the type of one entry changes, the class that killed llama.cpp in 70% of adapter files."""
    element = type[4:-1] if type.startswith("arr[") else type
    value = [SCALARS[element]] if type.startswith("arr[") else SCALARS[element]
    for name, old in toy_llama().kvs:
        assert isinstance(name, str)
        file = toy_llama().set(name, type, value)
        if full_tag(Value.of(type, value)) != full_tag(old):
            refusal(write(file, tmp_path), errors.FileError, open_and_check, name)


def test_hostile_text_in_messages(tmp_path: Path) -> None:
    """Terminal escapes and bidirectional marks of a file never reach the terminal."""
    evil = "\x1b[2J\u202e\n" * 50
    for file in (toy_llama().set("tokenizer.ggml.model", "str", evil), one_kv(evil, 0, b"\0")):
        with pytest.raises(errors.OtterError) as caught:
            open_and_check(write(file, tmp_path))
        assert str(caught.value).isprintable()
        assert "\u202e" not in str(caught.value)
        assert len(str(caught.value)) < 1000
