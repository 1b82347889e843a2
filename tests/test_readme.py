"""Every command of the README runs, and does what it is there for."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from tests.converters.toy_hf import write_hf_model
from tests.documents import fenced
from tests.training.toy import toy_rows, write_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def commands(program: str) -> list[list[str]]:
    """The words of every shell command of a program, in order."""
    lines = [shlex.split(line, comments=True) for block in fenced(README, "sh") for line in block.splitlines()]
    return [words for words in lines if words and words[0] == program]


DEMO = [words[1:] for words in commands("otter-gguf") if not {"BASE_FOLDER", "adapter", "base.gguf"} & set(words)]
OWN = [words[1:] for words in commands("otter-gguf") if words[1:] not in DEMO]


def test_nothing_is_left_out() -> None:
    programs = {words[0] for words in commands("make") + commands("pip") + commands("otter-gguf")}
    lines = [line for block in fenced(README, "sh") for line in block.splitlines() if line.strip()]
    assert len(lines) == len(commands("make")) + len(commands("pip")) + len(commands("otter-gguf"))
    assert programs == {"make", "pip", "otter-gguf"}
    assert len(DEMO) >= 5
    assert [words[0] for words in OWN] == ["train", "convert", "convert", "quantize", "check", "run"]


@pytest.mark.parametrize("words", DEMO, ids=" ".join)
def test_command_on_the_demo_model(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # eval leaves a folder
    quick = {
        "bench": ["-n", "8", "-p", "16", "-r", "1"],
        "eval": ["--n-prompts", "2", "--seeds", "1", "-n", "4"],
        "run": ["-n", "16"],
        "verify": ["--logits", "100000"],
    }
    threads = [] if words[0] == "info" else ["-t", "1"]
    assert cli.main([*words, *threads, *quick.get(words[0], [])]) == 0
    assert capsys.readouterr().out.strip()


def test_train_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_hf_model(tmp_path / "BASE_FOLDER")
    write_rows(tmp_path / "pairs.jsonl", toy_rows(8))
    monkeypatch.chdir(tmp_path)
    extra = {"train": ["--width", "32", "--inner", "32", "--batch-size", "2"], "run": ["-n", "4", "-t", "1", "--json"]}
    for words in OWN:
        capsys.readouterr()
        assert cli.main([*words, *extra.get(words[0], [])]) == 0, words
    assert len(json.loads(capsys.readouterr().out)["choices"][0]["rewards"]["token_rewards"]) == 4


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = fenced(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_make_targets() -> None:
    for words in commands("make"):
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_extras_and_links() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for words in commands("pip"):
        assert words[1] == "install"
        for extra in re.findall(r"\[(\w+)\]", words[2]):
            assert f"\n{extra} = [" in project
    for target in re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
