"""The code and the commands of docs/checkpoints.md run as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from otter_gguf.cli.main import main
from otter_gguf.training import OtterModel
from tests.documents import DOCS, fenced
from tests.training.native_toy import WORDS, native_base, native_folder, write_gguf_base
from tests.training.toy import toy_rows, write_rows

DOCUMENT = DOCS / "checkpoints.md"
CONVERT_BASE = "otter-gguf convert reward-model/base -o reward-base.gguf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for granted: a base as folder and as GGUF, and pairs."""
    native_folder(tmp_path / "base-folder")
    write_gguf_base(tmp_path / "base.gguf", native_base(), *WORDS)
    write_rows(tmp_path / "pairs.jsonl", toy_rows(16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def run_code() -> None:
    names: dict[str, object] = {"__name__": "docs"}
    for code in fenced(DOCUMENT, "python"):
        exec(compile(code, DOCUMENT.name, "exec", dont_inherit=True), names)


def run_commands(folder: Path, *, convert: bool) -> list[str]:
    """``convert``: run llama.cpp's converter too, which takes long to start; else its output is written directly."""
    commands = [line for block in fenced(DOCUMENT, "sh") for line in block.splitlines()]
    for command in commands:
        if command == CONVERT_BASE and not convert:
            base = AutoModelForCausalLM.from_pretrained(folder / "reward-model" / "base")
            write_gguf_base(folder / "reward-base.gguf", base, *WORDS)
            continue
        _, *arguments = shlex.split(command)
        threads = ["--threads", "1"] if arguments[0] == "score" else []
        assert main([*arguments, *threads]) == 0, command
    return commands


def test_code_and_commands_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_code()
    commands = run_commands(folder, convert=False)
    assert CONVERT_BASE in commands
    assert len(commands) == 11
    assert '"rewards"' in capfd.readouterr().out.splitlines()[-1]
    tensors = OtterModel.from_pretrained("base-folder", "harmless").inserted_parameters()
    for name, tensor in OtterModel.from_pretrained("base-folder", "harmless-again").inserted_parameters().items():
        assert tensor.equal(tensors[name]), name


@pytest.mark.slow
def test_commands_run_with_llama_cpps_converter(folder: Path) -> None:
    run_code()
    run_commands(folder, convert=True)


def test_a_broken_command_is_noticed(folder: Path) -> None:
    assert main(["merge", "base.gguf", "absent.otter.gguf", "-o", "merged.gguf"]) == 2
