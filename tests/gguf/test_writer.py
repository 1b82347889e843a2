"""The writer: right bytes, and never a half-written file under a final name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import FileError
from otter_gguf.gguf.atomic import atomic_path, hand_over, temporary_name
from otter_gguf.gguf.encoding import KeyValue, padding
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from tests.refusals import assert_names, refused

from .toy_files import float_tensor

VALUES = [
    KeyValue("v.u8", "u8", 255),
    KeyValue("v.i8", "i8", -128),
    KeyValue("v.u16", "u16", 65535),
    KeyValue("v.i16", "i16", -32768),
    KeyValue("v.u32", "u32", 2**32 - 1),
    KeyValue("v.i32", "i32", -(2**31)),
    KeyValue("v.u64", "u64", 2**64 - 1),
    KeyValue("v.i64", "i64", -(2**63)),
    KeyValue("v.f32", "f32", 0.5),
    KeyValue("v.f64", "f64", 0.1),
    KeyValue("v.bool", "bool", True),
    KeyValue("v.str", "str", "a\u00e9\u2603"),
    KeyValue("v.strings", "arr[str]", ["", "b", "\u2603"]),
    KeyValue("v.bytes", "arr[u8]", [0, 1, 255]),
    KeyValue("v.floats", "arr[f32]", [0.25, -1.0]),
    KeyValue("v.flags", "arr[bool]", [True, False]),
    KeyValue("v.empty", "arr[u32]", []),
]


def some_tensors() -> list[TensorPlan]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 64)).astype(np.float32)
    return [
        float_tensor("norm.weight", rng.normal(size=7).astype(np.float32)),
        TensorPlan("matrix.weight", "Q8_0", (64, 5), lambda: [_native.quantize(row[None], "Q8_0") for row in values]),
    ]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---- bytes -----------------------------------------------------------------------------------------------------


def test_our_reader_gives_back_every_type(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", VALUES, some_tensors())
    with _native.GgufFile(str(tmp_path / "a.gguf")) as file:
        assert file.keys == [entry.key for entry in VALUES]
        for entry in VALUES:
            assert file.key_type(entry.key) == entry.type
            assert file.value(entry.key) == entry.value
        assert [(t.name, t.type, t.shape) for t in file.tensors] == [
            ("norm.weight", "F32", (7,)),
            ("matrix.weight", "Q8_0", (64, 5)),
        ]


def test_gguf_py_reads_the_same(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", VALUES, some_tensors())
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    with _native.GgufFile(str(tmp_path / "a.gguf")) as file:
        for entry in VALUES:
            if entry.value != []:
                assert reader.fields[entry.key].contents() == entry.value
        for tensor in reader.tensors:
            assert tensor.data.tobytes() == bytes(file.tensor_data(tensor.name))


def test_a_tensor_of_the_wrong_size_leaves_nothing(tmp_path: Path) -> None:
    plan = TensorPlan("t.weight", "F32", (4,), lambda: [b"\0" * 12])
    with refused(ValueError, "t.weight", 12, 16):
        write_gguf(tmp_path / "a.gguf", [], [plan])
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_does_not_fit_the_shape_is_refused(tmp_path: Path) -> None:
    with refused(FileError, "Q8_0", 33, 32):
        write_gguf(tmp_path / "a.gguf", [], [TensorPlan("t.weight", "Q8_0", (33, 2), list)])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_keeps_the_file_from_appearing(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.stat().st_size > 0
        raise FileError("checked and refused")

    with refused(FileError, "checked"):
        write_gguf(tmp_path / "a.gguf", VALUES, some_tensors(), check=check)
    assert list(tmp_path.iterdir()) == []


# ---- names -----------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_text("old")
    with refused(FileError, target, "--force"):
        write_gguf(target, VALUES, [])
    assert target.read_text() == "old"
    write_gguf(target, VALUES, [], force=True)
    assert target.read_bytes().startswith(b"GGUF")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("alias", ["same", "hard link", "symbolic link"])
def test_the_input_is_never_the_output(tmp_path: Path, alias: str) -> None:
    source, target = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_text("input")
    if alias == "same":
        target = source
    elif alias == "hard link":
        os.link(source, target)
    else:
        target.symlink_to(source)
    with refused(FileError, target, source, "input"), atomic_path(target, inputs=[source], force=True):
        pytest.fail("the block must not run")
    assert source.read_text() == "input"


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    other, target = tmp_path / "deep" / "other", tmp_path / "out.gguf"
    other.parent.mkdir()
    other.write_text("other")
    target.symlink_to(other)
    with refused(FileError, target, "--force"), atomic_path(target):
        pytest.fail("the block must not run")
    with atomic_path(target, force=True) as temporary:
        assert temporary.parent == other.parent
        temporary.write_text("new")
    assert target.is_symlink()
    assert other.read_text() == "new"


@pytest.mark.parametrize(("target", "named"), [("missing/a", "missing"), ("folder", "folder")])
def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path, target: str, named: str) -> None:
    (tmp_path / "folder").mkdir()
    with refused(FileError, f"{tmp_path / target}:", tmp_path / named), atomic_path(tmp_path / target, force=True):
        pytest.fail("the block must not run")


def test_a_very_long_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250 + ".gguf")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


# ---- errors and interruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"\0" * 8
        raise error

    target = tmp_path / "a.gguf"
    target.write_text("old")
    with pytest.raises(error):
        write_gguf(target, [], [TensorPlan("t", "F32", (4,), interrupted)], force=True)
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    with atomic_path(target) as temporary:
        with refused(FileError, target, "process"), atomic_path(target):
            pytest.fail("the block must not run")
        temporary.write_text("first")
    assert target.read_text() == "first"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize(("put", "locked"), [(hand_over, True), (os.replace, False)])
def test_a_finished_file_takes_the_lock_along(put: Callable[[Path, Path], None], locked: bool, tmp_path: Path) -> None:
    """A plain rename does not: a second writer would empty the file before it gets its final name."""
    target, finished = tmp_path / "a.gguf", tmp_path / "finished"
    finished.write_text("first")
    with atomic_path(target) as temporary:
        put(finished, temporary)
        if locked:
            with refused(FileError, target, "process"), atomic_path(target):
                pytest.fail("the block must not run")
            assert temporary.read_text() == "first"
        else:
            with atomic_path(target):
                assert temporary.read_text() == ""
            temporary.write_text("")
    with atomic_path(target, force=True) as temporary:
        temporary.write_text("next")
    assert target.read_text() == "next"
    assert leftovers(tmp_path) == []


_WITH_CHILD = """
import subprocess, sys
from otter_gguf.gguf.atomic import atomic_path
with atomic_path(sys.argv[1]):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that children inherit")
def test_a_child_that_survives_its_parent_keeps_others_out(tmp_path: Path) -> None:
    """A converter in a process of its own goes on writing to the temporary file when we are killed."""
    target = tmp_path / "a.gguf"
    with subprocess.Popen([sys.executable, "-c", _WITH_CHILD, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    with refused(FileError, target, "process"):
        write_gguf(target, VALUES, [])
    os.kill(child, signal.SIGKILL)
    for _ in range(200):
        try:
            write_gguf(target, VALUES, [])
            break
        except FileError:
            time.sleep(0.05)
    assert target.read_bytes().startswith(b"GGUF")


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    temporary_name(target).write_text("much longer than the new contents")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert leftovers(tmp_path) == []


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a.gguf"
    victim.write_text("precious")
    temporary_name(target).symlink_to(victim)
    with pytest.raises(FileError), atomic_path(target):
        pytest.fail("the block must not run")
    assert victim.read_text() == "precious"


_TOO_LARGE = """
import resource, signal, sys
from otter_gguf.gguf.writer import TensorPlan, write_gguf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_gguf(sys.argv[1], [], [TensorPlan("t", "F32", (100_000,), lambda: [bytes(4000)] * 100)], force=True)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_text("old")
    result = subprocess.run(
        [sys.executable, "-c", _TOO_LARGE, str(target)], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.count("\n") == 1
    assert_names(result.stdout, "FileError", target, "too large")
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


_SLOW_WRITER = """
import sys, time
from otter_gguf.gguf.writer import TensorPlan, write_gguf
def chunks():
    for _ in range(200):
        time.sleep(0.001)
        yield bytes(4096)
print("ready", flush=True)
for _ in range(1000):
    write_gguf(sys.argv[1], [], [TensorPlan("t", "F32", (1024 * 200,), chunks)], force=True)
"""


@pytest.mark.parametrize("kill", [0, 1, pytest.param(18, marks=pytest.mark.slow)])
def test_kill_leaves_the_old_or_the_new_file(tmp_path: Path, kill: int) -> None:
    """The last parameter stands for 18 more kills; 20 with the fast ones."""
    for delay in [0.05 + 0.13 * kill] if kill < 2 else np.linspace(0.0, 0.8, kill):
        target = tmp_path / f"{delay:.3f}.gguf"
        target.write_text("old")
        with subprocess.Popen([sys.executable, "-c", _SLOW_WRITER, str(target)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if target.read_bytes() != b"old":
            with _native.GgufFile(str(target)) as file:
                assert file.size == file.data_offset + 4096 * 200
        assert len(leftovers(tmp_path)) <= 1
        write_gguf(target, [], some_tensors(), force=True)
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "alignment", "expected"), [(0, 32, 0), (1, 32, 31), (31, 32, 1), (64, 32, 0), (65, 64, 63)]
)
def test_padding_reaches_the_next_multiple_and_no_further(size: int, alignment: int, expected: int) -> None:
    assert padding(size, alignment) == expected
