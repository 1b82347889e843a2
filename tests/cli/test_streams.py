"""What stands around a command: closed and full streams, locales, bytes that are no UTF-8, numbers beyond all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from otter_gguf.cli import _common
from otter_gguf.cli import main as cli
from otter_gguf.errors import ConfigError
from otter_gguf.gguf.merge import merge, split
from tests.refusals import assert_names, refused
from tests.synthetic_models import pair

COMMAND = [sys.executable, "-m", "otter_gguf.cli.main"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="shells, bytes in names and locales as POSIX has them")


def shell(
    script: str, *arguments: str | bytes, text: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of a command line of sh; the command is ``"$@"``."""
    command = ["sh", "-c", script, "sh", *COMMAND, *arguments]
    environment = {**os.environ, **(env or {})}
    result = subprocess.run(command, input=text, capture_output=True, check=False, timeout=60, env=environment)
    return result.returncode, result.stdout, result.stderr


def assert_one_line(error: bytes, *names: object) -> None:
    assert error.count(b"\n") == 1, error.decode(errors="replace")
    assert_names(error.decode(errors="backslashreplace"), *names)


# ---- streams ---------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- 2>&- <&-"])
def test_a_verb_works_where_streams_are_closed(closed: str, tmp_path: Path) -> None:
    """The file that is written must not get the descriptor of one, which llama.cpp prints to."""
    out = tmp_path / "out.gguf"
    code, _, error = shell(f'"$@" {closed}', "quantize", str(pair().base), str(out), "Q8_0", "-t", "1")
    assert (code, error) == (0, b"")
    assert cli.main(["check", str(out)]) == 0


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "arguments", "lines"),
    [(">/dev/full", ["info", "BASE"], 1), ("2>/dev/full", ["info", "missing"], 0), ("2>&-", ["info", "missing"], 0)],
)
def test_streams_that_cannot_be_written_to(redirection: str, arguments: list[str], lines: int) -> None:
    given = [str(pair().base) if argument == "BASE" else argument for argument in arguments]
    code, _, error = shell(f'"$@" {redirection}', *given)
    assert (code, error.count(b"\n")) == (2, lines)


# ---- bytes -----------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", b"a\xff"],
        ["-p", "a", "-r", b"\xff"],
        ["-p", "a", "--grammar", b'root ::= "\xff"'],
        ["-p", "a", "-j", b'{"const": "\xff"}'],
        ["-p", "a", "-g", b"args:label=\xff"],
    ],
)
def test_an_argument_that_is_no_utf_8_is_one_line(arguments: list[str | bytes]) -> None:
    files = ["-m", str(pair().base), "--otter", str(pair().otter)]
    code, _, error = shell('"$@"', "run", *files, "-n", "2", "-t", "1", *arguments)
    assert code == 2
    assert_one_line(error)


@posix
def test_lines_that_are_no_utf_8_are_one_line_of_error() -> None:
    """``run < latin1.txt``"""
    run = ("run", "-m", str(pair().base), "-n", "2", "-t", "1")
    code, _, error = shell('"$@"', *run, text=b"gr\xfcn\n")
    assert code == 2
    assert_one_line(error, "U+DCFC")
    code, _, error = shell('"$@"', *run, text="grün\n".encode())
    assert (code, error) == (0, b"")


@posix
@pytest.mark.parametrize("way", ["argument", "stdin"])
def test_utf_8_is_read_in_every_locale(way: str) -> None:
    files = ["-m", str(pair().base), "--otter", str(pair().otter), "-t", "1"]
    if way == "argument":
        code, out, error = shell('"$@"', "score", *files, "-p", "grün", env=C_LOCALE)
    else:
        code, out, error = shell('"$@"', "score", *files, "-f", "-", text="grün".encode(), env=C_LOCALE)
    assert (code, error) == (0, b"")
    assert json.loads(out)["text"] == "grün"


@posix
def test_text_of_another_locale_stays_as_python_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1"))
    assert _common.utf8("grün") == "grün"
    assert _common.utf8("grÃ¼n") == "grün"


@posix
def test_file_names_may_be_any_bytes(tmp_path: Path) -> None:
    base, otter, merged, quantized = (
        Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/b\xff", b"/o\xff", b"/m\xff", b"/q\xff")
    )
    base.write_bytes(pair().base.read_bytes())
    otter.write_bytes(pair().otter.read_bytes())
    merge(base, otter, merged)
    for source in (base, otter, merged):
        assert cli.main(["quantize", str(source), str(quantized), "Q8_0", "-t", "1", "--force"]) == 0
        assert cli.main(["check", str(quantized)]) == 0
    run = ["run", "-p", "a", "-n", "2", "-t", "1", "-c", "64"]
    assert cli.main([*run, "-m", str(base), "--otter", str(otter)]) == 0
    assert cli.main([*run, "-m", str(merged)]) == 0


# ---- the last resort -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), OverflowError("too large"), UnicodeDecodeError("x", b"", 0, 1, "y")]
)
def test_a_value_that_nobody_expected_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("otter_gguf.cli.info.run", fail)
    assert cli.main(["info", "x"]) == 2
    assert_one_line(capsys.readouterr().err.encode(), type(error).__name__)


# ---- outputs that are one --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, pytest.param(True, marks=posix)])
def test_both_parts_of_a_merged_file_cannot_be_one_file(link: bool, tmp_path: Path) -> None:
    merged, target = tmp_path / "m.gguf", tmp_path / "x.gguf"
    merge(pair().base, pair().otter, merged)
    other = tmp_path / "link" / "x.gguf" if link else target
    if link:
        (tmp_path / "link").symlink_to(tmp_path)
    with refused(ConfigError, target):
        split(merged, target, other)
    assert not target.exists()
    split(merged, target, tmp_path / "y.gguf")
    assert (tmp_path / "y.gguf").read_bytes() == pair().otter.read_bytes()
