"""Files that are wrong: each kind is refused with the right class and one line that names the file and the place."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_gguf import _native, errors
from tests.gguf.gguf_builder import (
    TENSOR_TYPES,
    UNUSABLE_TENSOR_TYPES,
    VALUE_TYPES,
    Gguf,
    Tensor,
    Value,
    text,
    toy_gpt2,
    toy_llama,
)

Build = Callable[[], "Gguf | bytes"]


def small() -> Gguf:
    """Two keys and two tensors."""
    file = Gguf().set("first", "u32", 1).set("second", "arr[str]", ["a", "b"])
    file.tensors = [("one", Tensor((32, 2))), ("two", Tensor((64,), "F16"))]
    return file


def one_kv(key: str | bytes, tag: int, payload: bytes) -> Gguf:
    return Gguf(kvs=[(key, Value(tag, payload))])


def one_tensor(tensor: Tensor, name: str | bytes = "t") -> Gguf:
    return Gguf(tensors=[(name, tensor)])


def array_of(element: int, count: int, data: bytes = b"") -> Gguf:
    return one_kv("key", VALUE_TYPES["arr"], struct.pack("<IQ", element, count) + data)


def refused(path: str, error: type[errors.OtterError], place: str, check: Callable[[str], object]) -> str:
    """The message of the error: its exact class, one line, the file, the place."""
    with pytest.raises(errors.OtterError) as caught:
        check(path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(path + ": "), message
    assert place in message, message
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < len(path) + 600
    return message


def write(file: Gguf | bytes, path: Path) -> str:
    (path / "bad.gguf").write_bytes(file if isinstance(file, bytes) else file.build())
    return str(path / "bad.gguf")


def overwrite(path: Path, raw: bytes) -> None:
    """A new file each time: rewriting one in place makes ext4 wait for the disk, 5 ms for each of 20,000."""
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


def open_only(path: str) -> None:
    _native.GgufFile(path).close()


def open_and_check(path: str) -> None:
    with _native.GgufFile(path) as file:
        _native.check_base(file)


# ---- headers ---------------------------------------------------------------------------------------------------

HEADERS: dict[str, tuple[Build, str]] = {
    "one byte": (lambda: b"G", "magic"),
    "text file": (lambda: b"once upon a time there was an otter", "not a GGUF file"),
    "zip file": (lambda: b"PK\x03\x04" + bytes(100), "'PK\\x03\\x04'"),
    "magic alone": (lambda: b"GGUF", "version"),
    "more tensors than bytes": (lambda: Gguf(n_tensors=3), "3 tensors"),
    "2^63 tensors": (lambda: Gguf(n_tensors=2**63), f"{2**63} tensors"),
    "2^64-1 tensors": (lambda: Gguf(n_tensors=2**64 - 1), "tensors"),
    "more keys than bytes": (lambda: Gguf(n_kv=1), "1 keys"),
    "2^60 keys": (lambda: Gguf(n_kv=2**60), f"{2**60} keys"),
    "one key too many": (lambda: Gguf(kvs=small().kvs, n_kv=3).build() + bytes(64), "key 2"),
    "empty key": (lambda: one_kv("", 0, b"\0\0"), "key 0 has a name of 0 bytes"),
    "long key": (lambda: one_kv("k" * 65536, 0, b"\0"), "name of 65536 bytes"),
    "endless key": (lambda: Gguf(n_kv=1).build() + struct.pack("<Q", 2**64 - 8) + bytes(64), "key 0"),
    "key with NUL": (lambda: one_kv("general.type\0x", 0, b"\0"), "'general.type\\x00x'"),
    "key with line break": (lambda: one_kv("a\nb", 0, b"\0"), "'a\\x0ab'"),
    "key no text": (lambda: one_kv(b"a\xff", 0, b"\0\0"), "'a\\xff'"),
    "key not ASCII": (lambda: one_kv("größe", 0, b"\0"), "'gr\\xc3\\xb6\\xc3\\x9fe', expected printable"),
    "key with DEL": (lambda: one_kv("a\x7f", 0, b"\0"), "'a\\x7f'"),
    "key twice": (lambda: Gguf(kvs=[(name, Value(0, b"\0")) for name in "aba"]), "key 'a' appears twice"),
    "value type 13": (lambda: one_kv("key", 13, bytes(8)), "key 'key' has the unknown value type 13"),
    "value type 2^32-1": (lambda: one_kv("key", 2**32 - 1, bytes(8)), "key 'key'"),
    "array of arrays": (lambda: array_of(9, 1, bytes(32)), "key 'key' is an array of arrays"),
    "array of type 99": (lambda: array_of(99, 1, bytes(32)), "key 'key'"),
    "array longer than file": (lambda: array_of(4, 100, bytes(32)), "key 'key'"),
    "array of 2^62 u32": (lambda: array_of(4, 2**62, bytes(32)), "key 'key'"),
    "array of 2^61 u64": (lambda: array_of(10, 2**61, bytes(32)), "key 'key'"),
    "array of 2^64-1 strings": (lambda: array_of(8, 2**64 - 1, bytes(32)), "key 'key'"),
    "array of 2^29 empty strings": (lambda: array_of(8, 2**29, bytes(64)), "key 'key'"),
    "string longer than file": (lambda: one_kv("key", 8, struct.pack("<Q", 99) + b"abc"), "key 'key'"),
    "string of 2^64-1": (lambda: one_kv("key", 8, struct.pack("<Q", 2**64 - 1) + b"abc"), "key 'key'"),
    "string of 2^31": (lambda: one_kv("key", 8, struct.pack("<Q", 2**31) + b"abc"), "key 'key'"),
    "bool 2": (lambda: one_kv("key", 7, b"\2"), "key 'key' holds the bool 2"),
    "bool 255 in an array": (lambda: array_of(7, 3, b"\0\1\xff"), "key 'key'"),
    "alignment 0": (lambda: small().set("general.alignment", "u32", 0), "'general.alignment' is 0"),
    "alignment 1": (lambda: small().set("general.alignment", "u32", 1), "'general.alignment' is 1"),
    "alignment 24": (lambda: small().set("general.alignment", "u32", 24), "'general.alignment' is 24"),
    "alignment 2^31": (lambda: small().set("general.alignment", "u32", 2**31), "'general.alignment'"),
    "alignment as u64": (lambda: small().set("general.alignment", "u64", 32), "'general.alignment' has type u64"),
    "alignment as array": (lambda: small().set("general.alignment", "arr[u32]", [32]), "'general.alignment'"),
    "empty tensor name": (lambda: one_tensor(Tensor((4,)), ""), "tensor 0 has a name of 0 bytes"),
    "tensor name of 64": (lambda: one_tensor(Tensor((4,)), "n" * 64), "tensor 0 has a name of 64 bytes"),
    "tensor name with NUL": (lambda: one_tensor(Tensor((4,)), "a\0"), "'a\\x00'"),
    "tensor twice": (lambda: Gguf(tensors=[(name, Tensor((8,))) for name in "tut"]), "tensor 't' appears twice"),
    "no dimensions": (lambda: one_tensor(Tensor((), data=bytes(4))), "tensor 't' has 0 dimensions"),
    "five dimensions": (lambda: one_tensor(Tensor((1, 1, 1, 1, 1))), "tensor 't' has 5 dimensions"),
    "2^32-1 dimensions": (lambda: one_tensor(Tensor((4,), n_dims=2**32 - 1)), "tensor 't'"),
    "dimension 0": (lambda: one_tensor(Tensor((4, 0, 2))), "[4, 0, 2] has a dimension of 0"),
    "dimension -1": (lambda: one_tensor(Tensor((2**64 - 1,), data=b"")), "tensor 't'"),
    "product wraps to 0": (lambda: one_tensor(Tensor((2**32, 2**32), data=b"")), "tensor 't'"),
    "product wraps to 4": (lambda: one_tensor(Tensor((2**62 + 1, 4), data=bytes(16))), "tensor 't'"),
    "bytes wrap": (lambda: one_tensor(Tensor((2**62,), data=b"")), "tensor 't'"),
    "padding wraps": (lambda: one_tensor(Tensor((2**61 - 1, 2), data=b"")), "tensor 't'"),
    "row no multiple of block": (lambda: one_tensor(Tensor((33,), "Q8_0", bytes(68))), "tensor 't' rows of 33"),
    "type 4": (lambda: one_tensor(Tensor((32,), 4)), "tensor 't' has type 4"),
    "type 43": (lambda: one_tensor(Tensor((32,), 43)), "tensor 't' has type 43"),
    "type 2^31": (lambda: one_tensor(Tensor((32,), 2**31)), "tensor 't' has type"),
    "offset not padded": (lambda: small().tensor("two", Tensor((64,), "F16", offset=255)), "tensor 'two'"),
    "offset of the first": (lambda: small().tensor("one", Tensor((32, 2), offset=32)), "tensor 'one'"),
    "overlap": (lambda: small().tensor("two", Tensor((64,), "F16", offset=0)), "data offset 0, expected 256"),
    "hole": (lambda: small().tensor("two", Tensor((64,), "F16", offset=512)), "data offset 512, expected 256"),
    "offset 2^64-32": (lambda: small().tensor("two", Tensor((64,), "F16", offset=2**64 - 32)), "tensor 'two'"),
    "data missing": (lambda: small().tensor("two", Tensor((64,), "F16", data=b"")), "tensor 'two' needs 128 bytes"),
    "no data at all": (lambda: small().header(), "tensor data"),
} | {
    f"type {type}": (lambda type=type: one_tensor(Tensor((256,), type)), f"tensor 't' has {type}")  # type: ignore[misc]
    for type in UNUSABLE_TENSOR_TYPES
}  # fmt: skip

VERSIONS: dict[str, tuple[Build, str]] = {
    "version 0": (lambda: Gguf(version=0), "GGUF version 0"),
    "version 1": (lambda: Gguf(version=1), "GGUF version 1"),
    "version 4": (lambda: Gguf(version=4), "GGUF version 4"),
    "big endian": (lambda: Gguf(version=3 << 24), "big-endian"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_malformed_header(kind: str, tmp_path: Path) -> None:
    build, place = HEADERS[kind]
    refused(write(build(), tmp_path), errors.FileError, place, open_only)


@pytest.mark.parametrize("kind", VERSIONS)
def test_other_versions(kind: str, tmp_path: Path) -> None:
    build, place = VERSIONS[kind]
    refused(write(build(), tmp_path), errors.UnsupportedError, place, open_only)


def test_the_small_file_is_good(tmp_path: Path) -> None:
    open_only(write(small(), tmp_path))


def test_limits_are_inclusive(tmp_path: Path) -> None:
    open_only(write(one_kv("k" * 65535, 0, b"\0"), tmp_path))
    open_only(write(one_tensor(Tensor((4, 1, 1, 1)), "n" * 63), tmp_path))
    open_only(write(one_kv(" key ~", 0, b"\0"), tmp_path))


def test_not_a_file(tmp_path: Path) -> None:
    refused(str(tmp_path), errors.FileError, "directory", open_only)
    refused(str(tmp_path / "none.gguf"), errors.FileError, "No such file", open_only)
    (tmp_path / "empty.gguf").touch()
    refused(str(tmp_path / "empty.gguf"), errors.FileError, "empty", open_only)
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(str(tmp_path / "pipe.gguf"), errors.FileError, "not a regular file", open_only)
    refused("/dev/zero", errors.FileError, "not a regular file", open_only)
    with pytest.raises(ValueError, match="null byte"):
        open_only("a\0b")


def test_count_limits(tmp_path: Path) -> None:
    """Counts that the bytes would allow, but no model needs."""
    refused(write(Gguf(n_kv=65537).build() + bytes(1 << 20), tmp_path), errors.FileError, "65537 keys", open_only)
    many = Gguf(n_tensors=(1 << 18) + 1).build() + bytes(9 << 20)
    refused(write(many, tmp_path), errors.FileError, "262145 tensors", open_only)


# ---- cuts and lies ---------------------------------------------------------------------------------------------


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    raw = small().build()
    path = tmp_path / "cut.gguf"
    for size in range(1, len(raw)):
        overwrite(path, raw[:size])
        refused(str(path), errors.FileError, "", open_only)
    overwrite(path, raw)
    open_only(str(path))


def test_truncation_of_a_base(tmp_path: Path) -> None:
    """Every 13th byte of a header with all keys, then the data."""
    raw = toy_llama().build()
    path = tmp_path / "cut.gguf"
    for size in [*range(1, len(toy_llama().header()), 13), *range(len(toy_llama().header()), len(raw), 4096)]:
        overwrite(path, raw[:size])
        refused(str(path), errors.FileError, "", open_only)


NUMBERS = [0, 1, 2, 4, 31, 32, 33, 64, 255, 256, 1024]
NUMBERS += [2**bits + step for bits in (31, 32, 33, 60, 61, 62, 63) for step in (-32, -1, 0, 1, 32)]
NUMBERS += [2**64 - step for step in (1, 2, 4, 31, 32, 33, 64)]


def expected_bytes(shape: list[int], type: str) -> int | None:
    """Bytes of a tensor in Python's integers; None if it must be refused."""
    _, block, size = TENSOR_TYPES[type]
    n_elements = 1
    for dimension in shape:
        n_elements *= dimension
    n_bytes = n_elements // block * size
    fits = 0 < n_elements < 2**63 and n_bytes < 2**63 and shape[0] % block == 0
    return n_bytes if fits else None


def random_shape(rng: random.Random) -> list[int]:
    shape = [rng.choice(NUMBERS) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:  # factors of a power of two, so that the product wraps to something small
        first = rng.randint(0, 64)
        shape = [2**first, 2 ** (64 - first)] if 0 < first < 64 else [2**32, 2**32]
    return [number % 2**64 for number in shape]


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


def random_header(rng: random.Random) -> tuple[bytes, bool]:
    """A file of up to two tensors with a kilobyte of data, and whether it is good, by Python's integers."""
    alignment = rng.choice([8, 32, 64, 65536, *NUMBERS[:10], 2**31])
    step = alignment if alignment in (1 << bit for bit in range(3, 17)) else 32
    count = rng.choice([1, 2, 2, rng.choice(NUMBERS)])
    shapes = [random_shape(rng) if rng.random() < 0.5 else [rng.choice([32, 64])] for _ in range(2)]
    types = [rng.choice(["F32", "F16", "Q8_0", "Q4_0"]) for _ in range(2)]
    sizes = [expected_bytes(shape, type) for shape, type in zip(shapes, types, strict=True)]
    second = -(-(sizes[0] or 0) // step) * step
    offsets = [0, second % 2**64]
    if rng.random() < 0.3:
        offsets[rng.randrange(2)] = rng.choice(NUMBERS)

    header = b"GGUF" + struct.pack("<IQQ", 3, count, 1)
    header += text("general.alignment") + struct.pack("<II", VALUE_TYPES["u32"], alignment)
    for name, shape, type, offset in list(zip("ab", shapes, types, offsets, strict=True))[:count]:
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", TENSOR_TYPES[type][0], offset)
    raw = header.ljust(-(-len(header) // step) * step + 1024, b"\0")

    good = count in (0, 1, 2) and alignment == step
    if good and count > 0:
        good = offsets[0] == 0 and sizes[0] is not None and sizes[0] <= 1024
    if good and count == 2:
        good = sizes[1] is not None and offsets[1] == second and second + sizes[1] <= 1024
    return raw, good


def test_headers_agree_with_big_integers(tmp_path: Path) -> None:
    rng = random.Random(5)
    path = tmp_path / "random.gguf"
    accepted = 0
    for _ in range(20_000):
        raw, good = random_header(rng)
        overwrite(path, raw)
        try:
            _native.GgufFile(str(path)).close()
            found = True
        except errors.FileError:
            found = False
        assert found == good, raw[:200].hex()
        accepted += found
    assert 500 < accepted < 19_500


def test_random_bytes_behind_the_magic(tmp_path: Path) -> None:
    """Bytes of a good header overwritten: an object or an OtterError, never anything else."""
    rng = random.Random(6)
    good = toy_llama().build()
    end = len(toy_llama().header())
    path = tmp_path / "random.gguf"
    for _ in range(2_000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(4, end)] = rng.choice([0, 1, 4, 8, 9, 127, 128, 255, rng.randrange(256)])
        overwrite(path, bytes(raw))
        message = ""
        try:
            open_and_check(str(path))
        except (errors.FileError, errors.UnsupportedError) as error:
            message = str(error)
        assert message == "" or (message.startswith(f"{path}: ") and message.isprintable())


# ---- bases -----------------------------------------------------------------------------------------------------

LLAMA_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def key(name: str, type: str, value: object, base: Callable[[], Gguf] = toy_llama) -> Build:
    return lambda: base().set(name, type, value)


def without(name: str, base: Callable[[], Gguf] = toy_llama) -> Build:
    return lambda: base().drop(name)


def shaped(name: str, shape: tuple[int, ...], type: str = "F32") -> Build:
    return lambda: toy_llama().tensor(name, Tensor(shape, type))


def tokens(change: dict[int, str | bytes]) -> Build:
    changed = [change.get(i, token) for i, token in enumerate(LLAMA_TOKENS)]
    return key("tokenizer.ggml.tokens", "arr[str]", changed)


NAN, INF = float("nan"), float("inf")

BASES: dict[str, tuple[Build, str]] = {
    "no architecture": (without("general.architecture"), "'general.architecture' is missing"),
    "architecture as u32": (key("general.architecture", "u32", 1), "'general.architecture' has type u32"),
    "architecture as array": (key("general.architecture", "arr[str]", ["llama"]), "'general.architecture'"),
    "architecture with NUL": (key("general.architecture", "str", "llama\0"), "'general.architecture'"),
    "architecture with blank": (key("general.architecture", "str", "a b"), "'general.architecture'"),
    "an adapter": (key("general.type", "str", "adapter"), "'general.type' is 'adapter'"),
    "a projector": (key("general.type", "str", "mmproj"), "'general.type' is 'mmproj'"),
    "type as u8": (key("general.type", "u8", 1), "'general.type'"),
    "name as u64": (key("general.name", "u64", 1), "'general.name'"),
    "file type as str": (key("general.file_type", "str", "F16"), "'general.file_type'"),
    "no tensors": (lambda: Gguf(kvs=toy_llama().kvs), "'token_embd.weight' is missing"),
    "no block count": (without("llama.block_count"), "'llama.block_count' is missing"),
    "0 blocks": (key("llama.block_count", "u32", 0), "'llama.block_count' is 0"),
    "513 blocks": (key("llama.block_count", "u32", 513), "'llama.block_count' is 513"),
    "2^32-1 blocks": (key("llama.block_count", "u32", 2**32 - 1), "'llama.block_count'"),
    "block count as i32": (key("llama.block_count", "i32", 2), "'llama.block_count' has type i32"),
    "block count as str": (key("llama.block_count", "str", "2"), "'llama.block_count'"),
    "block count as array": (key("llama.block_count", "arr[u32]", [2]), "'llama.block_count' has type arr[u32]"),
    "3 blocks of 2": (key("llama.block_count", "u32", 3), "missing: blk.2.attn_k.weight"),
    "1 block of 2": (key("llama.block_count", "u32", 1), "unexpected: 'blk.1.attn_norm.weight'"),
    "no context length": (without("llama.context_length"), "'llama.context_length'"),
    "context length 0": (key("llama.context_length", "u32", 0), "'llama.context_length' is 0"),
    "no width": (without("llama.embedding_length"), "'llama.embedding_length'"),
    "width 0": (key("llama.embedding_length", "u32", 0), "'llama.embedding_length' is 0"),
    "other width": (lambda: other_width(), "blk.0.attn_k.weight [64, 32] expected [128, 64]"),
    "no heads": (without("llama.attention.head_count"), "'llama.attention.head_count'"),
    "0 heads": (key("llama.attention.head_count", "u32", 0), "'llama.attention.head_count'"),
    "0 KV heads": (key("llama.attention.head_count_kv", "u32", 0), "'llama.attention.head_count_kv'"),
    "3 KV heads of 4": (key("llama.attention.head_count_kv", "u32", 3), "'llama.attention.head_count' is 4 in layer 0"),
    "heads as f32": (key("llama.attention.head_count", "f32", 4.0), "'llama.attention.head_count' has type f32"),
    "heads of 3 layers": (key("llama.attention.head_count", "arr[u32]", [4, 4, 4]), "has 3 values, expected 2"),
    "heads that differ": (key("llama.attention.head_count", "arr[u32]", [4, 2]), "'llama.attention.head_count'"),
    "negative heads": (key("llama.attention.head_count", "arr[i32]", [-4, -4]), "'llama.attention.head_count'"),
    "heads as u8 array": (key("llama.attention.head_count", "arr[u8]", [4, 4]), "'llama.attention.head_count'"),
    "no inner size": (without("llama.feed_forward_length"), "'llama.feed_forward_length'"),
    "other inner size": (key("llama.feed_forward_length", "u32", 64), "blk.0.ffn_down.weight [96, 64]"),
    "no epsilon": (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon' is missing"),
    "epsilon 0": (key("llama.attention.layer_norm_rms_epsilon", "f32", 0.0), "layer_norm_rms_epsilon' is 0"),
    "epsilon negative": (key("llama.attention.layer_norm_rms_epsilon", "f32", -1e-5), "layer_norm_rms_epsilon'"),
    "epsilon NaN": (key("llama.attention.layer_norm_rms_epsilon", "f32", NAN), "layer_norm_rms_epsilon' is nan"),
    "epsilon infinite": (key("llama.attention.layer_norm_rms_epsilon", "f32", INF), "layer_norm_rms_epsilon' is inf"),
    "epsilon as f64": (key("llama.attention.layer_norm_rms_epsilon", "f64", 1e-5), "layer_norm_rms_epsilon'"),
    "rope base NaN": (key("llama.rope.freq_base", "f32", NAN), "'llama.rope.freq_base'"),
    "rope base 0": (key("llama.rope.freq_base", "f32", 0.0), "'llama.rope.freq_base'"),
    "rope factor negative": (key("llama.rope.scaling.factor", "f32", -1.0), "'llama.rope.scaling.factor'"),
    "rope factor infinite": (key("llama.rope.scaling.factor", "f32", INF), "'llama.rope.scaling.factor'"),
    "rope type unknown": (key("llama.rope.scaling.type", "str", "cubic"), "'llama.rope.scaling.type' is 'cubic'"),
    "rope type as u32": (key("llama.rope.scaling.type", "u32", 1), "'llama.rope.scaling.type'"),
    "rope dimensions": (key("llama.rope.dimension_count", "u32", 8), "'llama.rope.dimension_count' is 8"),
    "key length 0": (key("llama.attention.key_length", "u32", 0), "'llama.attention.key_length' is 0"),
    "values unlike keys": (key("llama.attention.value_length", "u32", 8), "'llama.attention.key_length'"),
    "odd head size": (key("llama.attention.head_count", "u32", 64 // 3), "'llama.attention"),
    "2000 experts": (key("llama.expert_count", "u32", 2000), "'llama.expert_count' is 2000"),
    "experts of none": (key("llama.expert_used_count", "u32", 2), "'llama.expert_used_count' is 2 of 0"),
    "unused experts": (key("llama.expert_count", "u32", 4), "'llama.expert_used_count' is 0 of 4"),
    "expert groups": (key("llama.expert_group_count", "u32", 4), "'llama.expert_group_count'"),
    "layers ahead": (key("llama.nextn_predict_layers", "u32", 3), "'llama.nextn_predict_layers' is 3"),
    "split as u32": (key("split.count", "u32", 2), "'split.count' has type u32"),
    "split of 2": (lambda: toy_llama().set("split.count", "u16", 2).set("split.no", "u16", 0), "'split.count' is 2"),
    "second of 2": (lambda: toy_llama().set("split.count", "u16", 2).set("split.no", "u16", 1), "'split.no' is not 0"),
    "no tokenizer": (without("tokenizer.ggml.model"), "'tokenizer.ggml.model' is missing"),
    "tokenizer as u32": (key("tokenizer.ggml.model", "u32", 1), "'tokenizer.ggml.model'"),
    "no tokens": (without("tokenizer.ggml.tokens"), "'tokenizer.ggml.tokens' is missing"),
    "0 tokens": (key("tokenizer.ggml.tokens", "arr[str]", []), "'tokenizer.ggml.tokens' has 0 tokens"),
    "tokens as one string": (key("tokenizer.ggml.tokens", "str", "a"), "'tokenizer.ggml.tokens' has type str"),
    "tokens as numbers": (key("tokenizer.ggml.tokens", "arr[u32]", [1]), "'tokenizer.ggml.tokens'"),
    "token twice": (tokens({2: "<s>"}), "'<s>' twice, as tokens 1 and 2"),
    "token twice behind NUL": (tokens({2: "<s>\0other"}), "'<s>' twice, as tokens 1 and 2"),
    "name of an empty token": (tokens({0: "", 1: "[EMPTY_0]"}), "'[EMPTY_0]' twice"),
    "byte token missing": (tokens({3 + 0x41: "letter"}), "byte token"),
    "byte token without hex": (tokens({5: "<0xG0>"}), "'tokenizer.ggml.token_type' makes token 5"),
    "short byte token": (tokens({5: "x"}), "'tokenizer.ggml.token_type' makes token 5, 'x'"),
    "fewer scores": (key("tokenizer.ggml.scores", "arr[f32]", [0.0] * 258), "'tokenizer.ggml.scores' has 258"),
    "NaN score": (key("tokenizer.ggml.scores", "arr[f32]", [NAN] * 259), "'tokenizer.ggml.scores' holds nan"),
    "scores as f64": (key("tokenizer.ggml.scores", "arr[f64]", [0.0] * 259), "'tokenizer.ggml.scores'"),
    "fewer token types": (key("tokenizer.ggml.token_type", "arr[i32]", [1] * 9), "'tokenizer.ggml.token_type' has 9"),
    "token types as u32": (key("tokenizer.ggml.token_type", "arr[u32]", [1] * 259), "'tokenizer.ggml.token_type'"),
    "BOS outside": (key("tokenizer.ggml.bos_token_id", "u32", 259), "'tokenizer.ggml.bos_token_id' is 259"),
    "EOS outside": (key("tokenizer.ggml.eos_token_id", "u32", 2**32 - 1), "'tokenizer.ggml.eos_token_id'"),
    "EOT outside": (key("tokenizer.ggml.eot_token_id", "u32", 1000), "'tokenizer.ggml.eot_token_id'"),
    "BOS as i32": (key("tokenizer.ggml.bos_token_id", "i32", 1), "'tokenizer.ggml.bos_token_id' has type i32"),
    "padding as str": (key("tokenizer.ggml.padding_token_id", "str", "0"), "'tokenizer.ggml.padding_token_id'"),
    "add BOS as u8": (key("tokenizer.ggml.add_bos_token", "u8", 1), "'tokenizer.ggml.add_bos_token'"),
    "template as array": (key("tokenizer.chat_template", "arr[str]", ["x"]), "'tokenizer.chat_template'"),
    "no merges": (without("tokenizer.ggml.merges", toy_gpt2), "'tokenizer.ggml.merges' is missing"),
    "merge of one": (key("tokenizer.ggml.merges", "arr[str]", ["ab"], toy_gpt2), "'tokenizer.ggml.merges' holds 'ab'"),
    "empty merge": (key("tokenizer.ggml.merges", "arr[str]", ["a b", ""], toy_gpt2), "merges' holds ''"),
    "merges as u32": (key("tokenizer.ggml.merges", "arr[u32]", [1], toy_gpt2), "'tokenizer.ggml.merges'"),
    "Phi-3 in name only": (key("general.name", "str", "My Phi-3"), "has no token '<|endoftext|>'"),
    "extra precision": (key("general.tensor_extra.name", "arr[str]", ["x"]), "'general.tensor_extra.prec_a4' is"),
    "no BOS to add": (lambda: few_tokens(), "'tokenizer.ggml.bos_token_id' is missing"),
    "embedding of other rows": (shaped("token_embd.weight", (64, 260)), "'token_embd.weight' has 260 rows"),
    "embedding turned": (shaped("token_embd.weight", (259, 64)), "'token_embd.weight' has 64 rows"),
    "embedding in 3 dimensions": (shaped("token_embd.weight", (64, 259, 2)), "token_embd.weight [64, 259, 2]"),
    "norm in F16": (shaped("output_norm.weight", (64,), "F16"), "'output_norm.weight' has one dimension and type F16"),
    "norm in F16, 2 dimensions": (shaped("output_norm.weight", (64, 1), "F16"), "output_norm.weight F16 expected F32"),
    "query matrix missing": (lambda: toy_llama().tensor("blk.1.attn_q.weight", None), "missing: blk.1.attn_q.weight"),
    "norm missing": (lambda: toy_llama().tensor("output_norm.weight", None), "missing: output_norm.weight"),
    "key matrix as wide as queries": (shaped("blk.0.attn_k.weight", (64, 64)), "blk.0.attn_k.weight [64, 64]"),
    "tensor too many": (shaped("blk.0.attn_q_norm.weight", (16,)), "unexpected: 'blk.0.attn_q_norm.weight'"),
    "rotary factors too many": (shaped("rope_freqs.weight", (9,)), "rope_freqs.weight [9] expected [8]"),
    "bias too long": (shaped("blk.0.attn_q.bias", (65,)), "blk.0.attn_q.bias [65] expected [64]"),
}  # fmt: skip

UNSUPPORTED: dict[str, tuple[Build, str]] = {
    "tokenizer none": (key("tokenizer.ggml.model", "str", "none"), "'tokenizer.ggml.model' is 'none'"),
    "tokenizer no_vocab": (key("tokenizer.ggml.model", "str", "no_vocab"), "'tokenizer.ggml.model'"),
    "tokenizer unknown": (key("tokenizer.ggml.model", "str", "otter"), "'tokenizer.ggml.model' is 'otter'"),
    "tokenizer bert": (key("tokenizer.ggml.model", "str", "bert"), "'tokenizer.ggml.model' is 'bert'"),
    "pre-tokenizer unknown": (key("tokenizer.ggml.pre", "str", "otter", toy_gpt2), "'tokenizer.ggml.pre' is 'otter'"),
    "not causal": (key("llama.attention.causal", "bool", 0), "'llama.attention.causal' is false"),
    "pooling": (key("llama.pooling_type", "u32", 1), "'llama.pooling_type'"),
    "other output width": (key("llama.embedding_length_out", "u32", 8), "'llama.embedding_length_out' is 8"),
    "prediction layers": (key("llama.nextn_predict_layers", "u32", 1), "'llama.nextn_predict_layers'"),
    "alignment 8": (lambda: realigned(8), "'general.alignment' is 8"),
    "alignment 16": (lambda: realigned(16), "'general.alignment' is 16"),
}  # fmt: skip


def few_tokens() -> Gguf:
    """A gpt2 vocabulary that ends before the default BOS, token 11."""
    file = toy_gpt2().drop("tokenizer.ggml.bos_token_id").drop("tokenizer.ggml.token_type")
    return file.set("tokenizer.ggml.tokens", "arr[str]", [f"t{i}" for i in range(11)])


def other_width() -> Gguf:
    return toy_llama().set("llama.embedding_length", "u32", 128).drop("llama.rope.dimension_count")


def realigned(alignment: int) -> Gguf:
    file = toy_llama().set("general.alignment", "u32", alignment)
    file.alignment = alignment
    return file


@pytest.mark.parametrize("kind", BASES)
def test_malformed_base(kind: str, tmp_path: Path) -> None:
    build, place = BASES[kind]
    refused(write(build(), tmp_path), errors.FileError, place, open_and_check)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_base(kind: str, tmp_path: Path) -> None:
    build, place = UNSUPPORTED[kind]
    refused(write(build(), tmp_path), errors.UnsupportedError, place, open_and_check)


def test_all_differences_in_one_message(tmp_path: Path) -> None:
    file = toy_llama().tensor("blk.0.attn_q.weight", None).tensor("blk.1.ffn_up.weight", Tensor((64, 95)))
    for i in range(9):
        file = file.tensor(f"extra.{i}.weight", Tensor((4,)))
    message = refused(write(file, tmp_path), errors.FileError, "missing: blk.0.attn_q.weight;", open_and_check)
    assert "wrong: blk.1.ffn_up.weight [64, 95] expected [64, 96];" in message
    assert message.endswith("unexpected: 'extra.0.weight', 'extra.1.weight', 'extra.2.weight', 'extra.3.weight', "
                            "'extra.4.weight', 'extra.5.weight' and 3 more")  # fmt: skip


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
            refused(write(file, tmp_path), errors.FileError, name, open_and_check)


def test_hostile_text_in_messages(tmp_path: Path) -> None:
    """Terminal escapes and bidirectional marks of a file never reach the terminal."""
    evil = "\x1b[2J\u202e\n" * 50
    for file in (toy_llama().set("tokenizer.ggml.model", "str", evil), one_kv(evil, 0, b"\0")):
        with pytest.raises(errors.OtterError) as caught:
            open_and_check(write(file, tmp_path))
        assert str(caught.value).isprintable()
        assert "\u202e" not in str(caught.value)
        assert len(str(caught.value)) < 1000
