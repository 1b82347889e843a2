"""``otter-gguf eval``: from a prompt file to a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import FileError
from otter_gguf.cli import main as cli
from otter_gguf.cli.eval import read_prompts
from tests.refusals import assert_names, refused
from tests.synthetic_models import pair

JUDGE = "def length(text): return len(text)\ndef bad(text): return None\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prompts and a judge."""
    (tmp_path / "prompts.txt").write_text("The otter\n\nUrchins are\n")
    (tmp_path / "eval_judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "eval_judge", raising=False)
    return tmp_path


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    files = pair()
    model = ["-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "128", "-o", "out"]
    code = cli.main(["eval", *model, "--prompts", "prompts.txt", "-n", "6", "--seeds", "2", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_writes_report_results_plots_and_texts(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    policies = ["--policy", "args:weight=1,n_candidates=4", "--policy", "args:weight=3,n_candidates=4"]
    code, out, _ = evaluate(capsys, "--judge", "eval_judge:length", *policies)
    assert code == 0
    assert {path.name for path in (folder / "out").iterdir()} == {
        "report.md",
        "results.json",
        "plots.png",
        "texts.jsonl",
    }
    results = json.loads((folder / "out" / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == ["plain", *policies[1::2]]
    assert [arm["weight"] for arm in results["arms"]] == [None, 1.0, 3.0]
    assert results["judge"] == "eval_judge:length"
    assert results["run"]["prompts"] == ["The otter", "Urchins are"]
    report = (folder / "out" / "report.md").read_text()
    assert report.startswith(out.rstrip("\n"))
    assert "](plots.png)" in report


def test_a_policy_of_ones_own(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "eval_policy.py").write_text(
        "from otter_gguf import ARGS\n\nclass Strong(ARGS):\n    def __post_init__(self): pass\n"
    )
    try:
        code, out, err = evaluate(capsys, "--json", "--no-plot", "--policy", "eval_policy:Strong:weight=2")
    finally:
        sys.modules.pop("eval_policy", None)
    assert code == 0, err
    arm = json.loads(out)["arms"][1]
    assert (arm["name"], arm["weight"]) == ("eval_policy:Strong:weight=2", 2.0)


def test_json_on_demand(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = evaluate(capsys, "--json", "--no-plot", "--policy", "args:n_candidates=4", "--ignore-eos")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "out" / "results.json").read_text())
    assert_names(err, "--judge")  # none is named
    assert "judge" not in json.loads(out)["arms"][0]["metrics"]
    assert not (folder / "out" / "plots.png").exists()


def test_another_run_in_the_folder_needs_force(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    arguments = ["--no-plot", "--judge", "demo", "--policy", "args:n_candidates=4"]
    assert evaluate(capsys, *arguments)[0] == 0
    assert evaluate(capsys, *arguments)[0] == 0  # the same again
    before = (folder / "out" / "results.json").read_bytes()
    code, out, err = evaluate(capsys, *arguments, "--temp", "0.5")
    assert (code, out) == (2, "")
    assert_names(err, "texts.jsonl", "temperature", 0.8, 0.5, "--force")
    assert (folder / "out" / "results.json").read_bytes() == before
    assert evaluate(capsys, *arguments, "--temp", "0.5", "--force")[0] == 0


def test_a_second_model(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    files = pair()
    second = ["--second-model", str(files.base), "--second-otter", str(files.otter)]
    policy = ["--policy", "args:n_candidates=4", "--second-policy", "args:n_candidates=4"]
    code, out, _ = evaluate(capsys, "--json", "--no-plot", "--judge", "demo", *second, *policy)
    assert code == 0
    arms = {arm["name"]: arm["cost"] for arm in json.loads(out)["arms"]}
    assert arms["args:n_candidates=4 (second model)"]["extra_memory_saved"] == 0
    assert 0 < arms["args:n_candidates=4"]["extra_memory_saved"] < 1


def test_a_model_as_judge(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    files = pair()
    judge = ["--judge-model", str(files.base), "--judge-otter", str(files.otter)]
    code, out, _ = evaluate(capsys, "--json", "--no-plot", *judge, "--policy", "args:n_candidates=4")
    assert code == 0
    metrics = json.loads(out)["arms"][0]["metrics"]
    assert metrics["judge"]["mean"] == pytest.approx(metrics["reward"]["mean"])  # the guide judges itself here


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--judge", "nothing"], ("--judge", "nothing", "MODULE:FUNCTION")),
        (["--judge", "eval_judge:length", "--judge-model", "x.gguf"], ("--judge", "--judge-model")),
        (["--judge-otter", "x.gguf"], ("--judge-otter", "--judge-model")),
        (["--judge-model", "no-such.gguf"], ("no-such.gguf",)),
        (["--second-policy", "args"], ("--second-policy", "--second-model")),
        (["--policy", "args", "--policy", "args"], ("--policy", "args")),
        (["--policy", "arg"], ("'arg'", "args")),
        (["--policy", "eval_judge:length"], ("eval_judge:length", "Policy", "Search")),
        (["--policy", "args:weight=nan"], ("ARGS", "weight", "nan")),
        (["--n-prompts", "3"], ("--n-prompts", 3, 2)),
        (["--seeds", "0"], ("--seeds", 0, 1)),
        (["--seed", "-1"], ("--seed", -1)),
        (["--label", "kind", "--policy", "args:n_candidates=4"], ("--label", "kind", "reward")),
        (["--embedder", "eval_judge:none"], ("--embedder", "eval_judge:none")),
        (["--judge", "eval_judge:bad", "--policy", "args:n_candidates=4"], ("--judge", "eval_judge:bad", "None")),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], names: tuple[object, ...]
) -> None:
    code, out, err = evaluate(capsys, "--no-plot", *arguments)
    assert (code, out) == (2, "")
    assert_names(err.splitlines()[-1], *names)
    assert not (folder / "out" / "results.json").exists()


def test_prompts_are_needed_with_a_model(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert cli.main(["eval", "-m", str(pair().base), "--no-plot", "-o", "out"]) == 2
    assert_names(capsys.readouterr().err, "--prompts", "-m")


def test_the_demo_needs_no_argument_but_size(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    size = ["--n-prompts", "2", "--seeds", "1", "-n", "4", "-t", "1", "-c", "256"]
    assert cli.main(["eval", "--no-plot", "--json", *size]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["judge"] == "demo"
    assert [arm["name"] for arm in results["arms"]] == ["plain", "args:weight=3"]


# ---- prompt files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.txt", 'one\r\n\n  two \n{"prompt": 3}\n', ["one", "  two ", '{"prompt": 3}']),
        ("p.json", '["one", {"prompt": "two", "id": 1}]', ["one", "two"]),
        ("p.jsonl", '{"prompt": "one\\ntwo"}\n\n"three"\n', ["one\ntwo", "three"]),
    ],
)
def test_prompt_files(tmp_path: Path, name: str, text: str, prompts: list[str]) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(str(tmp_path / name)) == prompts


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("p.json", "{}", ("list", "dict")),
        ("p.json", "[", ("JSON", "column 2")),
        ("p.json", '["a", 1]', ("entry 2", "prompt")),
        ("p.json", '[""]', ("entry 1", "prompt")),
        ("p.jsonl", '"a"\n{"text": "b"}', ("line 2", "prompt")),
        ("p.jsonl", '"a"\n{', ("line 2", "JSON", "column 2")),
    ],
)
def test_bad_prompt_files_name_the_place(tmp_path: Path, name: str, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text)
    with refused(FileError, tmp_path / name, *names):
        read_prompts(str(tmp_path / name))


def test_interrupted_means_nothing_half_written(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of generating: no report, whole lines of texts, and a second start goes on."""
    from otter_gguf.evaluation.store import Store

    add = Store.add

    def interrupted(self: Store, generation: Any) -> None:
        add(self, generation)
        if len(self.rows) == 3:
            raise KeyboardInterrupt

    arguments = ["--no-plot", "--judge", "demo", "--policy", "args:n_candidates=4"]
    monkeypatch.setattr(Store, "add", interrupted)
    assert evaluate(capsys, *arguments)[0] == 130
    assert [path.name for path in (folder / "out").iterdir()] == ["texts.jsonl"]
    kept = (folder / "out" / "texts.jsonl").read_text().splitlines()
    assert len(list(map(json.loads, kept))) == 4
    monkeypatch.setattr(Store, "add", add)
    assert evaluate(capsys, *arguments)[0] == 0
    assert (folder / "out" / "texts.jsonl").read_text().splitlines()[:4] == kept
