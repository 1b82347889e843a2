"""Reading whole files of strangers: bounded, and without waiting for a writer that never comes."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from otter_gguf.cli import _common
from otter_gguf.cli import main as cli
from otter_gguf.errors import FileError
from otter_gguf.files import open_regular, read_regular, read_stream
from otter_gguf.quantization.importance import read_importance
from tests.refusals import refused
from tests.synthetic_models import pair

endless = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
pipes = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes with names")


def test_as_many_bytes_as_allowed_are_read_and_not_one_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_regular(path, 10) == read_stream(str(path), 10) == b"x" * 10
    with refused(FileError, path, 9):
        read_regular(path, 9)
    with refused(FileError, path, 9):
        read_stream(str(path), 9)


@pytest.mark.parametrize("read", [read_regular, read_stream, open_regular])
@pytest.mark.parametrize("name", ["missing", "folder", "a\0b"])
def test_what_is_no_file_is_named(read: object, name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with refused(FileError, "a\\x00b" if "\0" in name else tmp_path / name):
        read(str(tmp_path / name))  # type: ignore[operator]


@endless
def test_what_has_no_end_is_refused() -> None:
    with refused(FileError, "/dev/zero"):
        read_regular("/dev/zero")
    with refused(FileError, "/dev/zero", 100):
        read_stream("/dev/zero", 100)


@pipes
def test_a_pipe_is_read_as_a_stream_and_refused_as_a_file(tmp_path: Path) -> None:
    """Streams are for texts of the command line, as in ``-f <(command)``."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with refused(FileError, path):
        read_regular(path)
    with refused(FileError, path):
        read_importance(path)
    writer = threading.Thread(target=path.write_text, args=("text",))
    writer.start()
    assert read_stream(str(path)) == b"text"
    writer.join()


@endless
@pytest.mark.parametrize(
    "flags", [["-f", "/dev/zero"], ["-p", "a", "-jf", "/dev/zero"], ["-p", "a", "--grammar-file", "/dev/zero"]]
)
def test_no_flag_reads_without_end(flags: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", str(pair().base), *flags]) == 2
    error = capfd.readouterr().err
    assert "/dev/zero" in error
    assert error.count("\n") == 1


@endless
def test_rows_may_be_more_than_a_text_and_end_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("score", "eval"):
        monkeypatch.setattr(f"otter_gguf.cli.{module}.MAX_ROWS", 1000)
    files = ["-m", str(pair().base), "--otter", str(pair().otter)]
    assert cli.main(["score", *files, "/dev/zero"]) == 2
    assert cli.main(["eval", *files, "--prompts", "/dev/zero", "-o", str(tmp_path / "out"), "--no-plot"]) == 2
    assert capfd.readouterr().err.count("/dev/zero") == 2
    assert _common.read_text.__defaults__ is not None
    assert max(_common.read_text.__defaults__) < 1 << 30


@pipes
def test_an_importance_matrix_that_is_a_pipe_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    command = ["quantize", str(pair().base), str(tmp_path / "out.gguf"), "Q4_0", "--imatrix", str(tmp_path / "pipe")]
    assert cli.main(command) == 2
    assert str(tmp_path / "pipe") in capfd.readouterr().err
