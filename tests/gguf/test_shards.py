"""Shards that llama.cpp would refuse are refused before it sees them, by `check` too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from otter_gguf import _native
from otter_gguf.errors import FileError
from otter_gguf.gguf.base import BaseFiles, is_shard_name, shards_beside
from otter_gguf.gguf.check import check_file
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.writer import write_gguf
from otter_gguf.loading import check_files
from tests.refusals import assert_names, refused

from .toy_files import copied_tensor, split_base, write_base


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return list(shards_beside(split_base(write_base(tmp_path / "x.gguf"), 2)))


def rewrite(path: Path, more: Path | None = None, leave_out: Sequence[str] = (), count: int | None = None) -> None:
    """A shard again, with the first tensor of another one, without some keys, or with another number of tensors."""
    new = path.with_name("new")
    with _native.GgufFile(str(path)) as file, _native.GgufFile(str(more or path)) as other:
        entries = [KeyValue(key, file.key_type(key), file.value(key)) for key in file.keys if key not in leave_out]
        if count is not None:
            entries = [KeyValue(e.key, e.type, count) if e.key == "split.tensors.count" else e for e in entries]
        plans = [copied_tensor(other, other.tensors[0])] if more else []
        plans += [copied_tensor(file, tensor) for tensor in file.tensors]
        write_gguf(new, entries, plans)
    new.replace(path)


def test_good_shards_are_opened(shards: list[Path]) -> None:
    rewrite(shards[0])
    assert check_file(shards[0]).ok
    with BaseFiles.open(shards[0]) as files:
        assert len(files.files) == 2
        assert len({tensor.name for tensor in files.tensors}) == len(files.tensors)


def test_a_tensor_that_stands_in_two_shards_is_refused(shards: list[Path]) -> None:
    with BaseFiles.open(shards[0]) as files:
        name, count = files.metadata_file.tensors[0].name, len(files.tensors)
    rewrite(shards[1], more=shards[0], count=count + 1)
    rewrite(shards[0], count=count + 1)
    with refused(FileError, shards[1], name, shards[0]):
        check_files(shards[0])
    report = check_file(shards[0])
    assert not report.ok
    assert_names(report.problems[0].message, shards[1], name)


def test_shards_say_how_many_tensors_there_are(shards: list[Path]) -> None:
    for shard in shards:
        rewrite(shard, leave_out=["split.tensors.count"])
    with refused(FileError, shards[0], "split.tensors.count"):
        check_files(shards[0])
    assert not check_file(shards[0]).ok


def test_the_second_shard_need_not_say_it(shards: list[Path]) -> None:
    """llama.cpp asks the first one."""
    rewrite(shards[1], leave_out=["split.tensors.count"])
    assert check_file(shards[0]).ok


@pytest.mark.parametrize(
    ("name", "shard"), [("a-00001-of-00002.gguf", True), ("a-0001-of-0002.gguf", False), ("a.gguf", False)]
)
def test_names_of_shards(name: str, shard: bool, tmp_path: Path) -> None:
    assert is_shard_name(tmp_path / name) is shard
    expected = [tmp_path / f"a-0000{number}-of-00002.gguf" for number in (1, 2)] if shard else [tmp_path / name]
    assert list(shards_beside(tmp_path / name)) == expected
