"""``otter-gguf run``: rules of guidance, reward models, constraints, and the files about a completion."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import EngineError, Otter
from otter_gguf.cli import main as cli
from otter_gguf.cli._common import token_bias
from otter_gguf.cli._transcript import pieces_of
from otter_gguf.cli.run import shown_column
from otter_gguf.engine import sequences_needed
from otter_gguf.guidance import rules, spec
from otter_gguf.guidance.args import ARGS
from otter_gguf.guidance.ensemble import Ensemble
from otter_gguf.guidance.gated import Gated
from tests.refusals import assert_names, refused
from tests.synthetic_models import TEXT, load, pair

FILES = ["-m", str(pair().base), "--otter", str(pair().otter)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["run", *FILES, "-t", "1", "-c", "256", "-p", TEXT, "-n", "12", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def tokens(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    code, out, err = run(capsys, "--json", "--temp", "0", *arguments)
    assert code == 0, err
    return list(json.loads(out)["choices"][0]["rewards"]["tokens"])


def in_python(**options: Any) -> list[int]:
    with load(n_ctx=256, n_seq_max=20) as llm:
        completion: Any = llm.create_completion(TEXT, max_tokens=12, temperature=0, **options)
    return list(completion["choices"][0]["rewards"]["tokens"])


# ---- rules ---------------------------------------------------------------------------------------------------------


def test_a_rule_is_the_policy_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    guided = tokens(capsys, "-g", "args:weight=5,n_candidates=20")
    assert guided == in_python(guidance=ARGS(weight=5, n_candidates=20))
    assert guided == tokens(capsys, "--weight", "5", "--candidates", "20")
    assert guided != tokens(capsys, "-g", "plain") == in_python()


def test_flags_set_the_fields_of_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    flags = tokens(capsys, "-g", "gated:entropy=0.0+args:weight=1", "-w", "5", "--candidates", "20")
    assert flags == tokens(capsys, "-g", "args:weight=5,n_candidates=20")
    assert flags != tokens(capsys, "-g", "gated:entropy=99+args", "-w", "5", "--candidates", "20")


@pytest.mark.parametrize(
    "rule",
    [
        "rad:beta=5,n_candidates=17",
        "contrast:prompt=An eel,weight=3",
        "best_of_n:n=3",
        "cards:target=9,max_tries=2,n_tokens=12",
        "chunk_beam:chunk=4",
        "speculative_rejection:n=5,pause=3",
        "threshold:limit=-99",
    ],
)
def test_the_context_is_made_large_enough(capsys: pytest.CaptureFixture[str], rule: str) -> None:
    assert len(tokens(capsys, "-g", rule, "-s", "1")) == 12
    one_is_enough = sequences_needed(spec.parse(rule)) == 1
    assert run(capsys, "-g", rule, "-np", "1", "--temp", "0")[0] == (0 if one_is_enough else 2)


def test_experts_are_opened_and_closed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Otter] = []
    rewards: list[int] = []
    real = Otter.__init__

    def remember(self: Otter, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        opened.append(self)
        rewards.append(self.n_rewards)

    monkeypatch.setattr(Otter, "__init__", remember)
    expert = pair(seed=1)
    rule = f"dexperts:expert={expert.base}|{expert.otter},antiexpert={pair(seed=2).base},weight=1"
    guided = tokens(capsys, "-g", rule)
    assert [llm.model_path for llm in opened] == [str(expert.base), str(pair(seed=2).base), FILES[1]]
    assert [llm.options.n_ctx for llm in opened] == [256] * 3
    assert rewards == [1, 0, 1]
    assert guided != tokens(capsys)
    for llm in opened[:3]:
        with refused(EngineError, "closed"):
            llm.create_completion("x")


def test_help_lists_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-g", "help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(f"\n{name}" in captured.out for name in rules.registry())
    assert "weight=1.0" in captured.out


OWN = """
from dataclasses import dataclass

from otter_gguf import Policy


@dataclass(frozen=True)
class Kinder(Policy):
    strength: float = 1.0
    n_candidates: int = 20

    def scores(self, candidates):
        return candidates.logits + self.strength * candidates.reward()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the working folder, with ARGS under another name."""
    (tmp_path / "kind_policies.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "kind_policies"
    sys.modules.pop("kind_policies", None)


@pytest.mark.parametrize("isolation", [[], ["--isolate"]])
def test_ones_own_class_guides(capsys: pytest.CaptureFixture[str], own: str, isolation: list[str]) -> None:
    guided = tokens(capsys, "-g", f"{own}:Kinder:strength=5", *isolation)
    assert guided == tokens(capsys, "-g", "args:weight=5,n_candidates=20")
    assert guided != tokens(capsys, "-g", f"{own}:Kinder:strength=0", *isolation)


def test_a_wrong_class_is_one_line(capsys: pytest.CaptureFixture[str], own: str) -> None:
    for name in (f"{own}:Cruel", "no_such_module:Kinder", f"{own}:Kinder:strenth=5", f"{own}:dataclass"):
        code, out, err = run(capsys, "-g", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert_names(err, *name.split(":")[:2])


# ---- rewards of another model --------------------------------------------------------------------------------------


def test_a_reward_model_takes_the_place_of_the_own_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    other = pair(seed=3, base_of=0)
    flags = ["--reward-model", str(other.base), "--reward-otter", str(other.otter), "-g", "args:weight=5"]
    guided = tokens(capsys, *flags)
    with load(other, n_ctx=256) as judge:
        assert guided == in_python(guidance=ARGS(weight=5), reward_model=judge)
    assert guided != tokens(capsys, "-g", "args:weight=5")


def test_the_own_model_as_reward_model_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The second-model baseline with equal rewards makes equal choices."""
    flags = ["--reward-model", FILES[1], "--reward-otter", FILES[3], "-ctk", "f32", "-ctv", "f32"]
    assert tokens(capsys, "-w", "5", *flags) == tokens(capsys, "-w", "5", "-ctk", "f32", "-ctv", "f32")


def test_a_base_without_rewards_is_guided_by_a_reward_model(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["-m", FILES[1], "-t", "1", "-c", "256", "-p", TEXT, "-n", "12", "--temp", "0"]
    reward = ["--reward-model", FILES[1], "--reward-otter", FILES[3], "-w", "20"]
    assert cli.main(["run", *base]) == 0
    plain = capsys.readouterr().out
    assert cli.main(["run", *base, *reward]) == 0
    assert capsys.readouterr().out != plain


# ---- constraints ---------------------------------------------------------------------------------------------------


def test_logit_bias(capsys: pytest.CaptureFixture[str]) -> None:
    first = tokens(capsys)[0]
    assert first not in tokens(capsys, "--logit-bias", f"{first}-inf")
    assert tokens(capsys, "-l", "70+1000", "-l", "71+900") == [70] * 12
    assert tokens(capsys, "-l", "70+1000", "-g", "args:weight=0.1") == [70] * 12


@pytest.mark.parametrize(
    ("text", "pair_"), [("15+1", (15, 1.0)), ("15-0.5", (15, -0.5)), ("15-inf", (15, -float("inf")))]
)
def test_reading_a_bias(text: str, pair_: tuple[int, float]) -> None:
    assert token_bias(text) == pair_


def test_grammar_and_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grammar = 'root ::= "no" | "yes yes yes"'
    (tmp_path / "g.gbnf").write_text(grammar)
    out = run(capsys, "--temp", "0", "--grammar", grammar)[1]
    assert out in {f"{TEXT}no\n", f"{TEXT}yes yes yes\n"}
    assert run(capsys, "--temp", "0", "--grammar-file", str(tmp_path / "g.gbnf"))[1] == out
    assert run(capsys, "--temp", "0", "--grammar", grammar, "-w", "1")[1].removeprefix(TEXT) in {
        "no\n",
        "yes yes yes\n",
    }

    schema = '{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}'
    (tmp_path / "s.json").write_text(schema)
    out = run(capsys, "-n", "100", "--temp", "0", "-j", schema)[1]
    assert set(json.loads(out.removeprefix(TEXT))) <= {1, 2}
    assert run(capsys, "-n", "100", "--temp", "0", "-jf", str(tmp_path / "s.json"))[1] == out


def test_context_shift(capsys: pytest.CaptureFixture[str]) -> None:
    with load() as llm:
        no_end = f"{llm.model.eos_token}-inf"

    def length(*arguments: str) -> int:
        small = ["-m", FILES[1], "--otter", FILES[3], "-t", "1", "-c", "64", "-p", "An otter", "-n", "100", "--json"]
        assert cli.main(["run", *small, "-s", "1", "-l", no_end, *arguments]) == 0
        return len(json.loads(capsys.readouterr().out)["choices"][0]["rewards"]["tokens"])

    assert length() < 64
    assert length("--context-shift") == 100
    assert length("--context-shift", "--keep", "4", "-w", "1") == 100


# ---- files ---------------------------------------------------------------------------------------------------------


def test_records_are_json_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    arguments = ["-w", "2", "--candidates", "5", "--temp", "0"]
    assert run(capsys, *arguments, "--records", str(path))[0] == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(12))
    for record in records:
        assert record["kind"] == "token"
        assert record["guided"] is True
        assert len(record["candidates"]) == 5
        assert record["candidates"][record["choice"]] == record["token"]
        scores = [z + 2 * r for z, (r,) in zip(record["logits"], record["rewards"], strict=True)]
        assert record["scores"] == pytest.approx(scores, abs=1e-4)
        assert record["choice"] == scores.index(max(scores))
    assert [record["token"] for record in records] == tokens(capsys, *arguments)


def test_records_beside_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    _, out, _ = run(capsys, "--json", "-w", "1", "--records", str(path))
    assert len(path.read_text().splitlines()) == 12
    assert "steps" not in json.loads(out)["choices"][0]


def test_a_search_leaves_one_record_a_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    run(capsys, "-g", "best_of_n:n=3", "-s", "1", "--records", str(path))
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["kind"] == "text"
    assert record["rewards"][record["choice"]] == max(record["rewards"])


def test_a_page_of_rewards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert run(capsys, "-w", "1", "--html", str(path))[0] == 0
    page = path.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "otter" in page
    assert page.count("<span title=") == 12
    assert page.count("▸") == 12, "the chosen one of each step's candidates"


def test_a_character_of_several_tokens_is_whole() -> None:
    with load() as llm:
        tokens = llm.tokenize("a水", add_bos=False)
        pieces = pieces_of(llm, tokens)
        assert "".join(pieces) == "a水"
        assert len(pieces) == len(tokens) > 2
        assert "".join(pieces_of(llm, tokens[:-1])) == "a\N{REPLACEMENT CHARACTER}"
        assert pieces_of(llm, []) == []


def test_files_are_replaced_only_when_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text("mine")
    code, out, err = run(capsys, "-w", "1", "--records", str(path))
    assert (code, out) == (2, "")
    assert_names(err, path, "--force")
    assert path.read_text() == "mine"
    assert run(capsys, "-w", "1", "--records", str(path), "--force")[0] == 0
    assert path.read_text() != "mine"
    assert list(tmp_path.iterdir()) == [path]


# ---- which reward is shown -----------------------------------------------------------------------------------------


def test_colours_show_the_reward_that_guides() -> None:
    labels = ("kind", "brief")
    assert shown_column(labels, None) == 0
    assert shown_column(labels, ARGS(label="brief")) == 1
    assert shown_column(labels, Gated(ARGS(label="brief"), entropy=1.0)) == 1
    assert shown_column(labels, ARGS(label="judge:brief")) == 0
    assert shown_column(labels, ARGS(label=Ensemble({"brief": 1.0}))) == 0


# ---- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-g", "nothing"], ("'nothing'", "plain", "args")),
        (["-g", "args:wait=1"], ("args", "'wait'", "weight")),
        (["-g", "args:weight=nan"], ("ARGS", "weight", "nan")),
        (["-g", "args:n_candidates=-1"], ("ARGS", "n_candidates", -1)),
        (["-g", "args:label=unknown"], ("'unknown'", "reward")),
        (["-g", "vocabulary"], ("vocabulary head", "--vocabulary-rank")),
        (["-g", "plain", "-w", "1"], ("plain", "--weight")),
        (["-g", "rad", "-w", "1"], ("rad", "'weight'")),
        (["-g", "dexperts"], ("DExperts", "expert", "antiexpert")),
        (["-g", "dexperts:expert=/no/such.gguf"], ("/no/such.gguf",)),
        (["--label", "reward"], ("--label", "--weight", "--guidance")),
        (["--reward-model", FILES[1]], ("--reward-model", "--guidance", "--weight")),
        (["--reward-model", FILES[1], "-w", "1"], ("label", "reward")),
        (["--reward-otter", FILES[3], "-w", "1"], ("--reward-otter", "--reward-model")),
        (["-l", "999999+1"], ("logit_bias", 999999, 319)),
        (["--grammar", "root ::= ("], ("grammar", "')'")),
        (["-j", "{"], ("JSON schema", "line 1", "column 2")),
        (["-j", "{}", "--grammar", "x"], ("--grammar", "--json-schema")),
        (["--grammar-file", "/no/such"], ("/no/such",)),
        (["--keep", "3"], ("--keep", "--context-shift")),
        (["--keep", "-3", "--context-shift"], ("n_keep", -3)),
        (["-g", "best_of_n", "--context-shift"], ("context_shift",)),
        (["--records", "/no/such/folder/x"], ("/no/such/folder",)),
        (["--records", FILES[1]], (FILES[1], "input")),
        (["--records", "no-such-file", "--html", "no-such-file"], ("--html", "--records")),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], names: tuple[object, ...]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2, err
    assert_names(err, *names)
    assert out == ""
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--records", "--html"])
def test_conversations_have_no_files(capsys: pytest.CaptureFixture[str], flag: str, tmp_path: Path) -> None:
    assert cli.main(["run", *FILES, flag, str(tmp_path / "x")]) == 2
    assert_names(capsys.readouterr().err, flag, "-p")
    assert not list(tmp_path.iterdir())


def test_a_plain_model_has_no_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["run", "-m", FILES[1], "-t", "1", "-p", "x", "--html", str(tmp_path / "x")]) == 2
    assert_names(capsys.readouterr().err, "--html", "--otter")
