"""What was checked is what is loaded: links and files that move between the two."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from otter_gguf import Otter, _native
from otter_gguf.errors import FileError
from otter_gguf.gguf.base import shards_beside
from otter_gguf.loading import check_files, load_model
from otter_gguf.options import LoadOptions
from tests.gguf.toy_files import split_base, write_base, write_sidecar
from tests.refusals import refused

OPTIONS = LoadOptions(n_ctx=32, n_threads=1, n_seq_max=1)
posix = pytest.mark.skipif(sys.platform == "win32", reason="links, and names of open files that can be taken")


def load(files: object) -> None:
    load_model(files, OPTIONS).close()  # type: ignore[arg-type]


def same_content(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


def other_time(path: Path) -> None:
    os.utime(path, ns=(0, 1))


@posix
@pytest.mark.parametrize("change", [same_content, other_time])
@pytest.mark.parametrize("which", ["base", "sidecar"])
def test_a_file_that_changes_behind_its_check_is_refused(
    change: Callable[[Path], None], which: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "side.otter.gguf", base)
    files = check_files(base, sidecar)
    load(files)
    path = base if which == "base" else sidecar
    before = _native.live_objects()
    change(path)
    with refused(FileError, path):
        load(files)
    assert _native.live_objects() == before
    load(check_files(base, sidecar))


@posix
def test_every_shard_is_compared(tmp_path: Path) -> None:
    shards = list(shards_beside(split_base(write_base(tmp_path / "x.gguf"), 2)))
    files = check_files(shards[0])
    load(files)
    same_content(shards[1])
    with refused(FileError, shards[1]):
        load(files)


@posix
@pytest.mark.parametrize("which", ["base", "sidecar"])
def test_a_link_is_followed_once(which: str, tmp_path: Path) -> None:
    """Moved to another file behind the check, it is not asked again; errors name it as it was given."""
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "side.otter.gguf", base)
    link, bad = tmp_path / "link.gguf", tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    target = base if which == "base" else sidecar
    link.symlink_to(target)
    given = (link, sidecar) if which == "base" else (base, link)
    files = check_files(*given)
    assert (files.path, files.sidecar) == tuple(map(str, given))
    link.unlink()
    link.symlink_to(bad)
    load(files)
    with refused(FileError, link) as raised:
        check_files(*given)
    assert str(bad) not in str(raised.value)


@posix
def test_shards_that_are_links_find_each_other(tmp_path: Path) -> None:
    """As in the cache of a hub, where files have other names."""
    shards = list(shards_beside(split_base(write_base(tmp_path / "x.gguf"), 2)))
    for number, shard in enumerate(shards):
        shard.rename(tmp_path / f"blob{number}")
        shard.symlink_to(tmp_path / f"blob{number}")
    with Otter(shards[0], n_ctx=32, n_threads=1, n_seq_max=1) as llm:
        assert llm.model_path == str(shards[0])


def test_files_that_were_not_checked_are_loaded_as_they_are(tmp_path: Path) -> None:
    """Which the fuzzer does, to see what llama.cpp would do."""
    files = check_files(write_base(tmp_path / "base.gguf"))
    load(replace(files, places=("", ""), states=()))
