"""Checksums of an inserted part: there, right, carried along by a merge, and not to be fooled."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import FileError, Otter, _native
from otter_gguf.demo import demo_files
from otter_gguf.gguf import keys
from otter_gguf.gguf.check import check_file
from otter_gguf.gguf.checksums import check_checksums, has_checksums, with_checksums
from otter_gguf.gguf.encoding import KeyValue, encode_entry
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.sidecar import own_tensors, validate_insertion
from tests.gguf.toy_files import rewrite, write_base, write_sidecar
from tests.refusals import refused

TENSORS, METADATA = keys.CHECKSUM_TENSORS.name, keys.CHECKSUM_METADATA.name


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


def verify(path: Path) -> None:
    with _native.GgufFile(str(path)) as file:
        check_checksums(file)


def without_checksums(source: Path, target: Path) -> Path:
    """As another writer would leave it: the keys are renamed in place, to some that nobody reads."""
    data = source.read_bytes()
    for key in keys.CHECKSUM_KEYS:
        data = data.replace(key.name.encode(), key.name.replace("otter.", "other.").encode())
    target.write_bytes(data)
    return target


# ---- written ---------------------------------------------------------------------------------------------------


def test_the_layout_of_the_documentation(sidecar: Path) -> None:
    """docs/format.md, written down a second time."""
    with _native.GgufFile(str(sidecar)) as file:
        digests = [hashlib.sha256(file.tensor_data(tensor.name)).hexdigest() for tensor in file.tensors]
        assert file.value(TENSORS) == digests
        text = b"otter-checksum-1\n"
        wanted = [key for key in file.keys if key.startswith("otter.") and not key.startswith("otter.checksum.")]
        for key in sorted(["general.architecture", *wanted]):
            text += encode_entry(KeyValue(key, file.key_type(key), file.value(key)))
        for tensor, digest in zip(file.tensors, digests, strict=True):
            text += f"{tensor.name}\0{tensor.type}\0{digest}\0".encode()
            text += struct.pack("<I", len(tensor.shape)) + b"".join(struct.pack("<Q", size) for size in tensor.shape)
        assert file.value(METADATA) == hashlib.sha256(text).hexdigest()


def test_merged_files_carry_the_same_checksums(sidecar: Path, merged: Path, base: Path) -> None:
    with _native.GgufFile(str(sidecar)) as first, _native.GgufFile(str(merged)) as second:
        for key in keys.CHECKSUM_KEYS:
            assert first.value(key.name) == second.value(key.name)
        check_checksums(second)
    with _native.GgufFile(str(base)) as plain:
        assert not has_checksums(plain)


def test_the_shipped_sidecar_has_them() -> None:
    verify(demo_files().sidecar)


def test_only_sidecars_get_them_and_old_ones_are_replaced() -> None:
    plain = [KeyValue("general.architecture", "str", "llama")]
    assert with_checksums(plain, [], []) == plain
    entries = [*plain, KeyValue("adapter.type", "str", "otter")]
    sealed = with_checksums(entries, [], [])
    assert [entry.key for entry in sealed[2:]] == [METADATA, TENSORS]
    assert with_checksums(sealed, [], []) == sealed


def test_a_rewritten_sidecar_has_new_ones(tmp_path: Path, sidecar: Path) -> None:
    changed = rewrite(
        sidecar, tmp_path / "b.gguf", metadata={"otter.state.offset": KeyValue("otter.state.offset", "u32", 3)}
    )
    verify(changed)
    with _native.GgufFile(str(sidecar)) as before, _native.GgufFile(str(changed)) as after:
        assert before.value(METADATA) != after.value(METADATA)
        assert before.value(TENSORS) == after.value(TENSORS)


def test_what_people_edit_is_not_covered(tmp_path: Path, sidecar: Path) -> None:
    data = sidecar.read_bytes()
    assert data.count(b"toy.otter.adapter") == 1  # general.name
    (tmp_path / "renamed.gguf").write_bytes(data.replace(b"toy.otter.adapter", b"a name of my own."))
    verify(tmp_path / "renamed.gguf")


# ---- verified --------------------------------------------------------------------------------------------------


def test_every_damaged_tensor_is_named(sidecar: Path) -> None:
    data = bytearray(sidecar.read_bytes())
    with _native.GgufFile(str(sidecar)) as file:
        first, last = file.tensors[1], file.tensors[-1]
    for tensor in (first, last):
        data[tensor.offset] ^= 1
    sidecar.write_bytes(data)
    with refused(FileError, sidecar, first.name, last.name):
        verify(sidecar)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (keys.STATE_OFFSET.name, lambda raw: bytes([raw[0] ^ 1]) + raw[1:]),
        ("otter.head.safety.scale", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        (TENSORS, lambda raw: raw[:-1] + (b"0" if raw[-1:] != b"0" else b"1")),
        (METADATA, lambda raw: raw[:-1] + (b"0" if raw[-1:] != b"0" else b"1")),
    ],
)
def test_a_changed_key_is_found(sidecar: Path, key: str, change: object) -> None:
    assert callable(change)
    with _native.GgufFile(str(sidecar)) as file:
        old = bytes(file.raw_value(key))
    data = sidecar.read_bytes()
    begin = data.index(key.encode()) + len(key) + 4
    assert data[begin : begin + len(old)] == old
    sidecar.write_bytes(data[:begin] + change(old) + data[begin + len(old) :])
    with refused(FileError, sidecar, "key"):
        verify(sidecar)


def test_without_checksums_a_file_is_read_and_cannot_be_verified(tmp_path: Path, base: Path, sidecar: Path) -> None:
    bare = without_checksums(sidecar, tmp_path / "bare.gguf")
    with _native.GgufFile(str(bare)) as file:
        assert not has_checksums(file)
        validate_insertion(file)
    with refused(FileError, bare, METADATA, TENSORS):
        verify(bare)
    with Otter(base, otter=bare, n_ctx=32, n_threads=1) as llm:
        assert llm.n_rewards == 3


@pytest.mark.parametrize(("key", "type"), [(TENSORS, "arr[str]"), (METADATA, "str")])
def test_checksums_of_another_type_are_refused(sidecar: Path, key: str, type: str) -> None:
    with _native.GgufFile(str(sidecar)) as file:
        entry = encode_entry(KeyValue(key, type, file.value(key)))
    number = encode_entry(
        KeyValue(key, "arr[u8]", bytes(len(entry) - len(encode_entry(KeyValue(key, "arr[u8]", b"")))))
    )
    assert len(number) == len(entry)
    sidecar.write_bytes(sidecar.read_bytes().replace(entry, number))
    with _native.GgufFile(str(sidecar)) as file, refused(FileError, key, "arr[u8]", type):
        validate_insertion(file)
    with refused(FileError, sidecar, "type", key):
        verify(sidecar)


# ---- 500 bits --------------------------------------------------------------------------------------------------


def flips(path: Path, count: int, seed: int) -> list[str]:
    """Flip random bits of tensor data, one at a time; those that ``check`` does not see."""
    rng = random.Random(seed)
    with _native.GgufFile(str(path)) as file:
        tensors = [(tensor.offset, tensor.n_bytes) for tensor in file.tensors]
        assert len(own_tensors(file)) > 3
    missed = []
    with open(path, "r+b", buffering=0) as file_of_bytes:
        for _ in range(count):
            begin, size = rng.choices(tensors, [size for _, size in tensors])[0]
            place, bit = begin + rng.randrange(size), 1 << rng.randrange(8)
            old = path.read_bytes()[place]
            for value in (old ^ bit, old):
                file_of_bytes.seek(place)
                file_of_bytes.write(bytes([value]))
                problems = [problem.check for problem in check_file(path).problems] if value != old else []
                if value != old and "checksums" not in problems:
                    missed.append(f"bit {bit} of byte {place}")
    return missed


def test_500_flipped_bits_are_found(sidecar: Path, merged: Path) -> None:
    assert flips(sidecar, 250, 1) + flips(merged, 250, 2) == []
    assert check_file(sidecar).ok
    assert check_file(merged).ok


# ---- at load ---------------------------------------------------------------------------------------------------


def damage(path: Path, tensor_name: str) -> None:
    data = bytearray(path.read_bytes())
    with _native.GgufFile(str(path)) as file:
        data[next(tensor.offset for tensor in file.tensors if tensor.name == tensor_name)] ^= 1
    path.write_bytes(data)


def test_on_request_at_load(base: Path, sidecar: Path, merged: Path) -> None:
    options: dict[str, Any] = {"n_ctx": 32, "n_threads": 1, "verify_checksums": True}
    for model, otter in ((base, sidecar), (merged, None), (base, None)):
        Otter(model, otter=otter, **options).close()
    damage(sidecar, "cls.output.safety.otter.bias")
    damage(merged, "output.weight")
    with refused(FileError, "toy.otter.gguf", "cls.output.safety.otter.bias"):
        Otter(base, otter=sidecar, **options)
    with refused(FileError, "merged.gguf", "base", "sha256"):
        Otter(merged, **options)
    options["verify_checksums"] = False
    for model, otter in ((base, sidecar), (merged, None)):
        Otter(model, otter=otter, **options).close()


def test_a_stored_checksum_that_is_no_text_is_a_difference(sidecar: Path) -> None:
    with _native.GgufFile(str(sidecar)) as file:
        stored = file.value(TENSORS)[0].encode()
    sidecar.write_bytes(sidecar.read_bytes().replace(stored, b"\xff" + stored[1:]))
    with refused(FileError, sidecar, "blk.0.attn_norm.otter.weight"):
        verify(sidecar)
    assert not check_file(sidecar).ok
