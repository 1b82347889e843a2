"""``otter-gguf serve``: what is refused before anything listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from otter_gguf.cli import main as cli
from tests.refusals import assert_names
from tests.synthetic_models import pair


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--port", "99999"), ["port", "99999"]),
        (("--queue", "-1"), ["queue"]),
        (("--timeout", "-1"), ["timeout"]),
        (("--ssl-key-file", "key.pem"), ["ssl_key_file", "ssl_cert_file"]),
        (("--temp", "-1"), ["temperature"]),
        (("--rule-model", "a.gguf"), ["--rule-model"]),
        (("--rule-model", "a=missing.gguf"), ["missing.gguf"]),
        (("--api-key-file", "empty"), ["empty"]),
    ],
)
def test_wrong_flags_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    names: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    files = pair()
    assert cli.main(["serve", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "256", *flags]) == 2
    assert_names(capsys.readouterr().err, *names)


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    files = pair()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code = cli.main(
            ["serve", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "256", "--port", str(port)]
        )
    assert code == 2
    assert_names(capsys.readouterr().err, port)
