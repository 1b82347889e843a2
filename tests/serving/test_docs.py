"""The commands and the code of docs/server.md run as they stand, but for the port."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from otter_gguf import Otter
from otter_gguf.cli.main import build_parser
from otter_gguf.demo import demo_files
from otter_gguf.serving.app import ROUTES
from otter_gguf.serving.requests import OTTER
from tests.documents import DOCS, fenced
from tests.serving.served import Client, serving

PAGE = DOCS / "server.md"
URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def demo() -> Iterator[Client]:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=1024, n_threads=1) as llm, serving(llm) as client:
        yield client


def commands(program: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in fenced(PAGE, "sh") for line in block.splitlines()]
    return [words for words in lines if words and words[0] == program]


def test_the_flags_there_are() -> None:
    assert len(commands("otter-gguf")) >= 3
    for _, *words in commands("otter-gguf"):
        build_parser(words).parse_args(words)


def test_requests_are_answered(demo: Client) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    assert len(commands("curl")) >= 3
    for words in commands("curl"):
        command = [word.replace(URL, demo.url) for word in words]
        done = subprocess.run([*command, "--fail", "--silent"], capture_output=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout)


def test_code_runs(demo: Client) -> None:
    pytest.importorskip("openai", reason="openai-python is not installed")
    for block in fenced(PAGE, "python"):
        exec(compile(block.replace(URL, demo.url), PAGE.name, "exec", dont_inherit=True), {"__name__": "docs"})


def test_every_route_and_field_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [path for paths, _, _ in ROUTES for path in paths if path not in text]
    assert not [name for name in OTTER if f"| `{name}` |" not in text]
