"""docs/tutorial.md from its first command to its last, on a toy base, in a folder of its own."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from otter_gguf.cli import main as cli
from tests.converters.toy_hf import write_hf_model
from tests.training.toy import toy_rows, write_rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "tutorial.md"

# What is written for a model of real size, and what fits the toy and a busy machine. Every entry occurs there.
SUBSTITUTED = {
    "--width 64": "--width 32",
    "--inner 256": "--inner 32",
    "-n 64": "-n 6",
    "otter-gguf train": "otter-gguf train --cpu --threads 1",
    "otter-gguf run": "otter-gguf run --threads 1",
    "otter-gguf score": "otter-gguf score --threads 1",
    "otter-gguf verify": "otter-gguf verify --threads 1 --logits 40000",
    "n_ctx=512": "n_ctx=512, n_threads=1",
    "max_tokens=32": "max_tokens=4",
}


def document() -> str:
    """The text with what is substituted."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for written, run in SUBSTITUTED.items():
        text = text.replace(written, run)
    return text


@dataclass
class Reader:
    """Somebody who types in what the document says, in the current folder."""

    output: dict[str, str] = field(default_factory=dict)
    """What each command wrote, stdout and then stderr, in their order."""
    printed: str = ""
    """What code wrote."""

    def follow(self, text: str) -> None:
        """Every block of commands and of code in its order."""
        for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
            if language == "sh":
                for line in block.splitlines():
                    self.command(line)
            elif language == "python":
                self.code(block)

    def command(self, line: str) -> None:
        """Run a command, with its output into a file where it says so; the test fails where it fails."""
        words = shlex.split(line, comments=True)
        if not words:
            return
        assert words[0] == "otter-gguf", line
        target = words[words.index(">") + 1] if ">" in words else None
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words[1 : words.index(">")] if target else words[1:])
        assert code == 0, f"{line}\n{err.getvalue()}"
        if target:
            Path(target).write_text(out.getvalue(), encoding="utf-8")
        self.output[line] = out.getvalue() + err.getvalue()

    def code(self, block: str) -> None:
        """Run code as a script of its own."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, DOCUMENT.name, "exec", dont_inherit=True), {"__name__": "tutorial"})
        self.printed += out.getvalue()

    def wrote(self, words: str) -> str:
        """Output of the one command with these words in it."""
        (output,) = (output for line, output in self.output.items() if words in line)
        return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and the preferences of the reader."""
    path = tmp_path_factory.mktemp("tutorial")
    write_hf_model(path / "base-folder")
    write_rows(path / "preferences.jsonl", toy_rows(160))
    return path


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    """One who has followed the whole document."""
    reader = Reader()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reader.follow(document())
    return reader


def figure(text: str, name: str) -> float:
    """The last number behind a name."""
    return float(re.findall(rf"\b{name}[= ]([-+]?[\d.]+)", text)[-1])


def test_every_command_was_run(reader: Reader) -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", document(), re.DOTALL) for line in block.splitlines()]
    assert list(reader.output) == lines
    verbs = {line.split()[1] for line in lines}
    assert verbs == {"insert", "train", "convert", "info", "verify", "score", "run"}


def test_substitutions_are_used_and_change_no_file_name() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [written for written in SUBSTITUTED if written not in text] == []
    files = r"[\w.-]+\.(?:gguf|jsonl)"
    assert re.findall(files, document()) == re.findall(files, text)


def test_held_out_rows_are_not_trained_on(reader: Reader, folder: Path) -> None:
    held_out, pairs = ((folder / name).read_text().splitlines() for name in ("held_out.jsonl", "pairs.jsonl"))
    assert len(held_out) == 16
    assert sorted(held_out + pairs) == sorted((folder / "preferences.jsonl").read_text().splitlines())


def test_trained_figures_are_those_that_the_document_explains(reader: Reader) -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", document(), re.MULTILINE))
    assert explained == {"eval_loss", "eval_accuracy", "eval_prefix_accuracy", "eval_margin"}
    for name in explained:
        figure(reader.wrote("-o kind "), name)


def test_the_insertion_learns_and_keeps_its_accuracy_when_quantized(reader: Reader, folder: Path) -> None:
    """Of 16 held-out pairs, at most two change sides."""
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    accuracy = sum(score["margin"] > 0 for score in scores) / len(scores)
    assert accuracy > 0.7
    assert abs(figure(reader.wrote("-o kind "), "eval_accuracy") - accuracy) <= 2 / len(scores)
    assert figure(reader.wrote(" score "), "accuracy") == pytest.approx(accuracy, abs=1e-3)


def test_logits_are_those_of_the_base(reader: Reader) -> None:
    assert "identical, bit for bit" in reader.wrote(" verify ")


def test_guided_and_plain_texts_are_printed_for_every_weight(reader: Reader) -> None:
    starts = [line.split(" ")[0] for line in reader.printed.splitlines()]
    assert [start for start in starts if start in {"0.0", "1.0", "2.0", "4.0"}] == [
        weight for weight in ("0.0", "1.0", "2.0", "4.0") for _ in range(2)
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "```sh\notter-gguf convert nowhere -o base.gguf\n```",
        "```sh\nllama-quantize a b Q4_0\n```",
        "```python\nassert False\n```",
    ],
)
def test_a_broken_block_is_noticed(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        Reader().follow(broken)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", document()):
        assert target.startswith("https://") or (DOCUMENT.parent / target).exists(), target
