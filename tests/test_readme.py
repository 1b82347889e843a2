"""Every command of the README runs, and does what it is there for."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from tests.converters.toy_hf import write_hf_model
from tests.documents import DOCS, fenced
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


def story(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, float]:
    """How ``run`` goes on, and the reward at the end."""
    assert cli.main([*words, "-t", "1", "--json"]) == 0
    choice = json.loads(capsys.readouterr().out)["choices"][0]
    return choice["text"], choice["rewards"]["reward"]


def assert_shown(shown: str, text: str, reward: float) -> None:
    """A document has the beginning of a text, and the reward at its end: ``Lily had a pie. … +1.00``."""
    beginning, _, number = shown.rpartition(" … ")
    assert text.strip().startswith(beginning)
    assert len(beginning) > 50
    assert reward == pytest.approx(float(number), abs=0.01)


def table(document: Path, heading: str) -> list[list[str]]:
    """The cells of the first table with some text in its heading."""
    lines = document.read_text(encoding="utf-8").splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("|") and heading in line]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_stories_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [words for words in DEMO if words[0] == "run"]
    rows = table(README, "every token in the colour")
    for words, (_, text, reward) in zip(runs, rows, strict=True):
        assert_shown(f"{text} {reward}", *story(words, capsys))
    rewards = [float(row[2]) for row in rows]
    assert rewards[0] < -0.9 < 0.9 < min(rewards[1:])


@pytest.mark.parametrize("row", table(DOCS / "demo.md", "otter-gguf run"), ids=lambda row: row[0])
def test_the_stories_of_the_demos_page(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    prompt, plain, guided = row
    command = ["run", "--temp", "0", "-p", prompt]
    assert_shown(plain, *story(command, capsys))
    assert_shown(guided, *story([*command, "-w", "2"], capsys))


def test_the_rewards_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r'otter-gguf (score -p "[^"]+") +#.*?([-+]\d\.\d\d)$', README.read_text(encoding="utf-8"), re.M)
    noise = re.findall(r'("[^"]+") (?:gets )?([-+]\d\.\d\d)', (DOCS / "demo.md").read_text(encoding="utf-8"))
    assert (len(shown), len(noise)) == (2, 2)
    for command, reward in [*shown, *((f"score -p {text}", reward) for text, reward in noise)]:
        assert cli.main([*shlex.split(command), "-t", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["reward"] == pytest.approx(float(reward), abs=0.01)


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
