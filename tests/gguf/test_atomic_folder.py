"""Folders that appear whole, or entry by entry where they hold other things too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from otter_gguf.errors import FileError
from otter_gguf.gguf import atomic
from otter_gguf.gguf.atomic import atomic_folder, temporary_name
from tests.refusals import refused

NAMES = ("config", "data", "sub")


def write(target: Path, text: str, *, fail: bool = False) -> None:
    """Three entries with a text, of which one is a folder."""
    with atomic_folder(target, names=NAMES, last="config") as folder:
        (folder / "sub").mkdir()
        for name in ("config", "data", "sub/file"):
            (folder / name).write_text(text)
        if fail:
            raise KeyboardInterrupt


def texts(target: Path) -> dict[str, str]:
    """What stands in the files below a folder, temporary names included."""
    return {str(file.relative_to(target)): file.read_text() for file in sorted(target.rglob("*")) if file.is_file()}


def whole(text: str) -> dict[str, str]:
    return {"config": text, "data": text, "sub/file": text}


@pytest.fixture(params=["exchanged", "entry by entry"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write, with the exchange of two folders and without."""
    if request.param == "entry by entry":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    return tmp_path / "folder"


def test_it_appears_and_is_replaced(target: Path) -> None:
    write(target, "old")
    assert texts(target) == whole("old")
    write(target, "new")
    assert texts(target) == whole("new")
    assert os.listdir(target.parent) == [target.name]


def test_an_entry_that_is_not_written_again_goes(target: Path) -> None:
    write(target, "old")
    with atomic_folder(target, names=NAMES, last="config") as folder:
        (folder / "config").write_text("new")
    assert texts(target) == {"config": "new"}


@pytest.mark.parametrize("before", ["missing", "empty", "old", "shared"])
def test_an_error_leaves_what_was_there(target: Path, before: str) -> None:
    if before == "empty":
        target.mkdir()
    elif before != "missing":
        write(target, "old")
    if before == "shared":
        (target / "log").write_text("log")
    found = texts(target)
    with pytest.raises(KeyboardInterrupt):
        write(target, "new", fail=True)
    assert texts(target) == found
    assert target.exists() == (before != "missing")
    assert [path.name for path in target.parent.iterdir()] == [target.name] * target.exists()


def test_what_others_put_there_stays(target: Path) -> None:
    write(target, "old")
    (target / "log").write_text("log")
    write(target, "new")
    assert texts(target) == {**whole("new"), "log": "log"}


def test_the_last_entry_is_missing_while_the_others_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    write(target, "old")
    (target / "log").write_text("log")
    seen, rename = [], os.rename

    def spy(source: Path, destination: Path) -> None:
        rename(source, destination)
        seen.append({name: text for name, text in texts(target).items() if not name.startswith(".")})

    monkeypatch.setattr(os, "rename", spy)
    write(target, "new")
    assert len(seen) == 6  # the last away, two away and in place, the last in place
    assert all("config" not in state for state in seen[:-1])
    assert seen[-1] == {**whole("new"), "log": "log"}


@pytest.mark.parametrize("failing", range(6))
def test_a_rename_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    target, count, rename = tmp_path / "folder", iter(range(100)), os.rename
    write(target, "old")
    (target / "log").write_text("log")

    def fail(source: Path, destination: Path) -> None:
        if next(count) == failing:
            raise OSError(5, "Input/output error", str(source))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with refused(FileError, target, "Input/output error"):
        write(target, "new")
    assert texts(target) == {**whole("old"), "log": "log"}


@pytest.mark.parametrize("other", ["", "log"])
def test_a_second_writer_is_refused(tmp_path: Path, other: str) -> None:
    target = tmp_path / "folder"
    write(target, "old")
    if other:
        (target / other).write_text("")
    with atomic_folder(target, names=NAMES, last="config") as folder:
        with refused(FileError, target, "process"):
            write(target, "second")
        (folder / "config").write_text("first")
    assert (target / "config").read_text() == "first"


@pytest.mark.parametrize("before", ["missing", "old"])
def test_the_next_writer_may_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Once renamed, the temporary name is free, and what stands there is not the first writer's to remove."""
    target, sync = tmp_path / "folder", atomic._sync_folder
    if before == "old":
        write(target, "old")

    def second_starts(folder: Path) -> None:
        sync(folder)
        if folder == tmp_path and before == "missing":
            temporary_name(target).mkdir()

    monkeypatch.setattr(atomic, "_sync_folder", second_starts)
    write(target, "new")
    assert texts(target) == whole("new")
    assert temporary_name(target).exists() == (before == "missing")


def test_what_a_killed_writer_left_goes(target: Path) -> None:
    left = temporary_name(target)
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "more").write_text("left")
    write(target, "new")
    assert texts(target) == whole("new")
    assert os.listdir(target.parent) == [target.name]


def test_a_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert texts(tmp_path / "disk") == whole("new")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("file")
    with refused(FileError, tmp_path / "file"):
        write(tmp_path / "file", "new")
    with refused(FileError, tmp_path / "file", "File exists"):
        write(tmp_path / "file" / "folder", "new")
    assert (tmp_path / "file").read_text() == "file"


def test_folders_above_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "new")
    assert texts(tmp_path / "a" / "b") == whole("new")
