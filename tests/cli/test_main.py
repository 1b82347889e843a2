"""The command line as a whole: verbs, errors, exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otter_gguf import __version__
from otter_gguf.cli import main as cli
from tests.refusals import assert_names
from tests.synthetic_models import pair

COMMAND = [sys.executable, "-m", "otter_gguf.cli.main"]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([verb, "--help"])
    assert exit_info.value.code == 0
    assert f"otter-gguf {verb}" in capsys.readouterr().out


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {verb}" in out for verb in cli.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"otter-gguf {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run", "-m"], ["run", "-m", "x", "--no-such-flag"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "otter-gguf" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "score", "verify", "bench"])
def test_a_missing_file_is_one_line_and_exit_code_2(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["-p", "1"] if verb != "verify" else []
    assert cli.main([verb, "-m", "/no/such/file.gguf", *prompt]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert_names(captured.err, "/no/such/file.gguf")


def test_hostile_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", "\x1b[31mred\nline.gguf", "-p", "x"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_importing_the_package_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, otter_gguf, otter_gguf.cli.main as m\n"
        "m.build_parser(['run'])\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'jinja2', 'gguf') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [*COMMAND, "run", "-m", str(pair().base), "-p", "a", "-n", "2000", "--temp", "0", "-t", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def listen_to_ctrl_c() -> None:
    """Shells start background jobs, such as a test run, with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_mapped(pid: int, file: Path) -> None:
    """Until a process has the file in memory: it is past its imports and at work."""
    maps = Path(f"/proc/{pid}/maps")
    deadline = time.monotonic() + 60
    while str(file) not in maps.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_ctrl_c_is_exit_code_130() -> None:
    files = pair()
    endless = ["--logits", str(10**12), "-t", "1"]
    command = [*COMMAND, "verify", "-m", str(files.base), "--otter", str(files.otter), *endless]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        wait_until_mapped(process.pid, files.base)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "otter-gguf: interrupted\n")


def test_console_script_names_this_main() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'otter-gguf = "otter_gguf.cli.main:main"' in text
