"""Names to write to that strangers, links or killed writers have taken: no input and nobody's file is destroyed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from otter_gguf.errors import FileError
from otter_gguf.gguf import atomic
from otter_gguf.gguf.atomic import atomic_folder, atomic_path, check_target, scratch_folder, temporary_name
from tests.refusals import refused

from .toy_files import write_base

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and owners as POSIX has them")


def write(target: Path, **options: object) -> None:
    with atomic_path(target, force=True, **options) as temporary:  # type: ignore[arg-type]
        temporary.write_text("new")


# ---- temporary names -------------------------------------------------------------------------------------------


def test_what_is_rescued_of_a_killed_writer_is_no_temporary_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One names the temporary file of a killed writer as the input, and its target as the output."""
    base = write_base(tmp_path / "w.gguf")
    left = temporary_name(base)
    base.rename(left)
    before = left.read_bytes()
    assert cli.main(["quantize", str(left), str(base), "Q8_0", "-t", "1"]) == 2
    assert str(left) in capfd.readouterr().err
    assert left.read_bytes() == before
    assert not base.exists()
    assert cli.main(["quantize", str(left), str(tmp_path / "other.gguf"), "Q8_0", "-t", "1"]) == 0


@posix
def test_a_hard_link_under_the_temporary_name_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, target = write_base(tmp_path / "b.gguf"), tmp_path / "h.gguf"
    before = base.read_bytes()
    os.link(base, temporary_name(target))
    assert cli.main(["quantize", str(base), str(target), "Q8_0", "-t", "1"]) == 2
    assert str(temporary_name(target)) in capfd.readouterr().err
    assert base.read_bytes() == before


@posix
def test_a_hard_link_to_a_file_that_is_no_input_is_left_alone(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a.gguf"
    victim.write_text("precious")
    os.link(victim, temporary_name(target))
    with refused(FileError, temporary_name(target), target):
        write(target)
    assert victim.read_text() == "precious"
    assert temporary_name(target).exists()


@posix
def test_another_users_temporary_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made it could still write into what gets the final name."""
    target = tmp_path / "a.gguf"
    temporary_name(target).write_text("planted")
    monkeypatch.setattr(atomic, "_is_ours", lambda status, folder: False)
    with refused(FileError, temporary_name(target), target):
        write(target)
    assert temporary_name(target).read_text() == "planted"
    temporary_name(target).unlink()
    write(target)
    assert target.read_text() == "new"


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("owner", "folder_owner", "ours"), [(0, 0, True), (1, 0, False), (1, 1, True), (0, 1, True)])
def test_who_owns_the_folder_may_leave_files_there(tmp_path: Path, owner: int, folder_owner: int, ours: bool) -> None:
    target = tmp_path / "a.gguf"
    temporary_name(target).write_text("left")
    os.chown(temporary_name(target), owner, -1)
    os.chown(tmp_path, folder_owner, -1)
    if ours:
        write(target)
        assert target.read_text() == "new"
    else:
        with refused(FileError, temporary_name(target)):
            write(target)


@posix
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_under_the_temporary_name_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a.gguf"
    os.mkfifo(temporary_name(target)) if kind == "fifo" else temporary_name(target).mkdir()
    with refused(FileError, temporary_name(target)):
        write(target)
    assert temporary_name(target).exists()


def test_a_folder_that_holds_an_input_is_not_emptied(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    source = temporary_name(target) / "in.gguf"
    source.parent.mkdir()
    source.write_text("input")
    with refused(FileError, source, target), atomic_folder(target, names=(), last="x", inputs=[source]):
        pytest.fail("the block must not run")
    assert source.read_text() == "input"
    with atomic_folder(target, names=(), last="x", inputs=[tmp_path / "elsewhere"]) as folder:
        (folder / "x").write_text("new")
    assert (target / "x").read_text() == "new"


def test_the_parts_of_what_is_written_are_for_their_owner_alone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "a.gguf") as folder:
        assert sys.platform == "win32" or stat.S_IMODE(folder.stat().st_mode) == 0o700


# ---- places ----------------------------------------------------------------------------------------------------


@posix
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.symlink_to(tmp_path / "nowhere")
    with refused(FileError, target, tmp_path / "nowhere"):
        write(target)
    assert target.is_symlink()
    assert not (tmp_path / "nowhere").exists()


@posix
def test_another_users_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, target = tmp_path / "other", tmp_path / "a.gguf"
    other.write_text("other")
    target.symlink_to(other)
    monkeypatch.setattr(atomic, "_is_ours", lambda status, folder: False)
    with refused(FileError, target):
        write(target)
    assert other.read_text() == "other"


@posix
def test_an_input_behind_a_link_is_still_the_input(tmp_path: Path) -> None:
    source, target = tmp_path / "in.gguf", tmp_path / "a.gguf"
    source.write_text("input")
    target.symlink_to(source)
    with refused(FileError, target, source):
        write(target, inputs=[source])
    assert source.read_text() == "input"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev and /proc as Linux has them")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null", "/proc/x.gguf", "/sys/x"])
def test_devices_and_the_kernels_own_names_are_refused(name: str, tmp_path: Path) -> None:
    """With stdout in a file: the name of a stream leads to a file, and is not its name."""
    before = os.lstat(name).st_ino if os.path.lexists(name) else None
    program = (
        f"from pathlib import Path; from otter_gguf.gguf.atomic import *\nwith atomic_path({name!r}, force=True): pass"
    )
    with open(tmp_path / "stdout", "w") as stdout:
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=20)
    assert f"FileError: {name}: " in result.stderr
    assert (os.lstat(name).st_ino if os.path.lexists(name) else None) == before


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm")
def test_shared_memory_is_a_folder_as_any_other() -> None:
    target = Path(f"/dev/shm/otter-test-{os.getpid()}")
    try:
        write(target)
        assert target.read_text() == "new"
    finally:
        target.unlink(missing_ok=True)


@posix
def test_a_working_folder_that_is_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with refused(FileError, "a.gguf"):
        write(Path("a.gguf"))
    monkeypatch.chdir(tmp_path)
    write(Path("a.gguf"))


def test_a_name_that_is_always_taken_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another writer took it each time between two steps of ours."""
    monkeypatch.setattr(atomic, "_remove_left", lambda temporary, target: None)
    temporary_name(tmp_path / "a.gguf").write_text("taken")
    with refused(FileError, tmp_path / "a.gguf", "process"):
        write(tmp_path / "a.gguf")


# ---- permissions -----------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_what_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "a.gguf"
    target.write_text("old")
    target.chmod(mode)
    with atomic_path(target, force=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600  # nobody else may read it while it is written
        temporary.write_text("new")
    assert stat.S_IMODE(target.stat().st_mode) == mode


@posix
def test_a_new_file_has_the_permissions_that_all_have(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE((tmp_path / "a.gguf").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_place_of_a_target_is_where_it_will_stand(tmp_path: Path) -> None:
    assert check_target(tmp_path / "a.gguf") == tmp_path / "a.gguf"
