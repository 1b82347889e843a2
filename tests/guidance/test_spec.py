"""Guidance in one line of text: every rule can be named, every wrong line is refused in one line that helps."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import guidance
from otter_gguf.engine import sequences_needed
from otter_gguf.errors import ConfigError
from otter_gguf.guidance import rules, spec
from otter_gguf.guidance.args import ARGS
from otter_gguf.guidance.base import Candidates, Policy
from otter_gguf.guidance.contrast import Contrast
from otter_gguf.guidance.ensemble import Ensemble
from otter_gguf.guidance.gated import Gated
from otter_gguf.steps import Float32
from tests.documents import DOCS
from tests.refusals import refused

JSON: dict[str, Any] = {
    "args": {"rule": "args", "weight": 3, "n_candidates": 20, "center": True},
    "pargs": {"rule": "pargs", "weight": 1.5, "log_probabilities": False},
    "rad": "rad:beta=30.0,low=-1.0,inverse=true",
    "vocabulary": {"rule": "vocabulary", "order": "bonus_first", "clip": [-1, 1.0]},
    "gated": {"rule": "gated", "entropy": 1, "support": "candidates", "policy": {"rule": "args", "weight": 3}},
    "contrast": {"rule": "contrast", "prompt": "Be rude, and loud.", "weight": 1},
    "dexperts": {"rule": "dexperts", "expert": "good.gguf", "antiexpert": "bad.gguf", "top_p": 0.95},
    "threshold": {"rule": "threshold", "limit": -1, "action": "resample"},
    "cards": {"rule": "cards", "target": 2.5, "hard": True},
    "best_of_n": {"rule": "best_of_n", "n": 4},
    "speculative_rejection": {"rule": "speculative_rejection", "alpha": 0.25, "pause": 8},
    "chunk_beam": {"rule": "chunk_beam", "width": 3, "chunk": 20},
}

EXAMPLES = {
    "args": "args:weight=3.0,n_candidates=20,center=true",
    "pargs": "pargs:weight=1.5,log_probabilities=false",
    "rad": "rad:beta=30.0,low=-1.0,inverse=true",
    "vocabulary": "vocabulary:order=bonus_first,clip=-1.0/1.0",
    "gated": "gated:entropy=1.0,support=candidates+args:weight=3.0",
    "contrast": 'contrast:prompt="Be rude, and loud.",weight=1.0',
    "dexperts": "dexperts:expert=good.gguf,antiexpert=bad.gguf,top_p=0.95",
    "threshold": "threshold:limit=-1.0,action=resample",
    "cards": "cards:target=2.5,hard=true",
    "best_of_n": "best_of_n:n=4",
    "speculative_rejection": "speculative_rejection:alpha=0.25,pause=8",
    "chunk_beam": "chunk_beam:width=3,chunk=20",
}


class Model:
    """Something that was opened, as a policy sees it before decoding."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.model_path = text.partition("|")[0]
        self.n_vocab = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.model_path == self.model_path

    __hash__ = None  # type: ignore[assignment]


def parse(text: str) -> Any:
    return spec.parse(text, Model)  # type: ignore[arg-type]


def args(**fields: Any) -> ARGS:
    return ARGS(**fields)


# ---- what a line means ---------------------------------------------------------------------------------------------


def test_plain_is_no_guidance() -> None:
    assert spec.parse("plain") is None
    assert spec.format(None) == "plain"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("args", args()),
        ("args:", args()),
        (" args : weight = 3 , n_candidates = 5 ", args(weight=3.0, n_candidates=5)),
        ("args:weight=-2e-1", args(weight=-0.2)),
        ("args:center=true", args(center=True)),
        ("args:label=harmless", args(label="harmless")),
        ("args:label=none", args(label=None)),
        ('args:label="none"', args(label="none")),
        ('args:label="a,b+c"', args(label="a,b+c")),
        ('args:label="a*b"', args(label="a*b")),
        ('args:label="say ""no"""', args(label='say "no"')),
        ("args:label=judge:kind", args(label="judge:kind")),
        ("args:label=a*1.0&b*0.5", args(label=Ensemble({"a": 1.0, "b": 0.5}))),
        ("args:label=a&b", args(label=Ensemble({"a": 1.0, "b": 1.0}))),
        ("args:label=a*-1", args(label=Ensemble({"a": -1.0}))),
        ('args:label="a&b"*2&c', args(label=Ensemble({"a&b": 2.0, "c": 1.0}))),
        ("args:label=sum(a&b)", args(label=Ensemble({"a": 1.0, "b": 1.0}))),
        ("args:label=mean(a*1&b*3)", args(label=Ensemble({"a": 1.0, "b": 3.0}, "mean"))),
        ("args:label=min(a*1&b*1)", args(label=Ensemble({"a": 1.0, "b": 1.0}, "min"))),
        ("args:label=cautious(a&b)", args(label=Ensemble({"a": 1.0, "b": 1.0}, "cautious"))),
        ("args:label=cautious:0.5(a&b)", args(label=Ensemble({"a": 1.0, "b": 1.0}, "cautious", 0.5))),
        ("contrast:prompt=[1/2/3]", Contrast(prompt=[1, 2, 3])),
        ('contrast:prompt="[1/2/3]"', Contrast(prompt="[1/2/3]")),
        ("contrast:prompt=Be rude.", Contrast(prompt="Be rude.")),
        ("gated:entropy=1+args:weight=2", Gated(args(weight=2.0), entropy=1.0)),
        (
            "gated:probability=0.4+gated:entropy=1+args",
            Gated(Gated(args(), entropy=1.0), probability=0.4),
        ),
    ],
)
def test_a_line_and_its_object(text: str, expected: object) -> None:
    assert spec.parse(text) == expected
    assert spec.parse(spec.format(expected)) == expected, "the round trip"


def test_every_rule_has_an_example_here() -> None:
    assert EXAMPLES.keys() == rules.registry().keys()


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_every_rule_goes_there_and_back(text: str) -> None:
    rule = parse(text)
    assert spec.format(rule) == text
    assert parse(spec.format(rule)) == rule


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_object_is_told_from_its_neighbour(name: str) -> None:
    """A format that left options out would pass the round trip of defaults."""
    rule = parse(EXAMPLES[name])
    others = [parse(text) for other, text in EXAMPLES.items() if other != name]
    assert all(rule != other for other in others)


def test_models_are_opened_by_the_caller() -> None:
    rule = parse("dexperts:expert=good.gguf|good.otter.gguf")
    assert rule.expert.text == "good.gguf|good.otter.gguf"
    assert rule.antiexpert is None
    assert spec.model_files(rule.expert.text) == ("good.gguf", "good.otter.gguf")
    assert spec.model_files("good.gguf") == ("good.gguf", None)
    with refused(ConfigError, "dexperts", "expert", "load="):
        spec.parse("dexperts:expert=good.gguf")


def test_weights_of_any_size_go_there_and_back() -> None:
    for weight in (1e300, 1e16, -1e-300, 0.1 + 0.2):
        assert spec.parse(spec.format(args(weight=weight))) == args(weight=weight)
        ensemble = args(label=Ensemble({"a+b": weight}))
        assert spec.parse(spec.format(ensemble)) == ensemble


def test_own_classes_are_shown_as_python_writes_them() -> None:
    class Mine(Policy):
        def scores(self, candidates: Candidates) -> Float32:
            return candidates.logits

        def __repr__(self) -> str:
            return "Mine()"

    assert spec.format(Mine()) == "Mine()"
    assert spec.format(Gated(Mine2(), entropy=1.0)) == "gated:entropy=1.0+Mine2()"


class Mine2(Policy):
    n_candidates = 3

    def scores(self, candidates: Candidates) -> Float32:
        return candidates.logits

    def __repr__(self) -> str:
        return "Mine2()"


# ---- what is wrong with a line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ("''", "plain, args")),
        ("arg", ("'arg'", "best_of_n")),
        ("ARGS", ("'ARGS'",)),
        ("plain:weight=1", ("'plain'",)),
        ("args:wait=3", ("args", "'wait'", "weight, n_candidates")),
        ("args:weight", ("args", "FIELD=VALUE", "'weight'")),
        ("args:weight=1,", ("args", "FIELD=VALUE", "''")),
        ("args:weight=1,weight=2", ("args", "weight", "twice")),
        ("args:weight=much", ("args", "weight", "'much'")),
        ("args:weight=1e+5", ("'5'",)),
        ("args:weight=nan", ("weight", "nan")),
        ("args:n_candidates=1.5", ("n_candidates", "'1.5'")),
        ("args:n_candidates=-1", ("n_candidates", -1, 1)),
        ("args:center=1", ("center", "'1'", "true", "false")),
        ("vocabulary:order=last", ("order", "'last'", "cut_first, bonus_first")),
        ("vocabulary:clip=1", ("clip", "'1'", "/")),
        ("vocabulary:clip=0/1/2", ("clip", "'0/1/2'")),
        ("vocabulary:clip=low/high", ("clip", "'low/high'")),
        ("contrast:prompt=[1/x]", ()),
        ('args:label="open', ("quote", 'args:label="open')),
        ("args:label=a*b*1", ("label", "'a*b*1'", "LABEL*WEIGHT")),
        ("args:label=a&a", ("label", "'a&a'", "LABEL*WEIGHT")),
        ("args:label=&a", ("label", "'&a'", "LABEL*WEIGHT")),
        ("args:label=a*much", ("label", "'much'")),
        ("args:label=mean(a*1&b*-1)", ("weights", "mean", 0)),
        ("args+args", ("guidance args", "+", "gated")),
        ("best_of_n+args", ("best_of_n", "+", "gated")),
        ("gated:entropy=1", ("gated", "gated+args")),
        ("gated:entropy=1+plain", ("gated", "gated+args")),
        ("gated:entropy=1+best_of_n", ("gated", "gated+args")),
        ("gated+args", ("Gated", "entropy", "probability")),
        ("gated:policy=args+args", ("gated", "'policy'", "entropy, probability, support")),
        ("threshold", ("threshold", "limit")),
    ],
)
def test_wrong_lines(text: str, names: tuple[object, ...]) -> None:
    if text == "contrast:prompt=[1/x]":  # a text may look like tokens
        assert spec.parse(text) == Contrast(prompt="[1/x]")
        return
    with refused(ConfigError, *names):
        spec.parse(text)


# ---- changing a field, sequences, help -----------------------------------------------------------------------------


def test_override_reaches_the_wrapped_rule() -> None:
    rule = spec.parse("gated:entropy=1+args")
    assert rule is not None
    changed = spec.override(spec.override(rule, "weight", 3.0), "entropy", 2.0)
    assert changed == Gated(args(weight=3.0), entropy=2.0)
    with refused(ConfigError, "gated:entropy=1.0+args", "'beta'"):
        spec.override(rule, "beta", 3.0)


@pytest.mark.parametrize(
    ("text", "one", "three"),
    [
        ("plain", 1, 3),
        ("args:n_candidates=7", 7, 21),
        ("args:weight=0", 1, 3),
        ("gated:entropy=1+args:n_candidates=7", 7, 21),
        ("vocabulary", 1, 3),
        ("contrast:prompt=x", 2, 6),
        ("dexperts:expert=x.gguf", 1, 3),
    ],
)
def test_sequences_needed(text: str, one: int, three: int) -> None:
    assert sequences_needed(parse(text)) == one
    assert sequences_needed(parse(text), 3) == three


def test_the_help_names_all_there_is() -> None:
    text = spec.describe()
    assert max(map(len, text.splitlines())) <= 120
    for name, rule in rules.registry().items():
        assert re.search(rf"^{name}\b", text, re.MULTILINE)
        for field in rules.fields_of(rule):
            assert f"      {field.name}=" in text
            assert rules.field_meanings(rule)[field.name]
    assert "weight=1.0" in text
    assert "limit=..." in text


# ---- docs/guidance.md ----------------------------------------------------------------------------------------------


def tables() -> dict[str, dict[str, str]]:
    """Option and default of each rule, by the page: a section's title ends with the rule's name in code."""
    found: dict[str, dict[str, str]] = {}
    name = ""
    for line in (DOCS / "guidance.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = re.search(r"`(\w+)`$", line)
            name = title.group(1) if title else ""
        row = re.match(r"\| `(\w+)` \| ([^|]*) \|", line)
        if row and name:
            found.setdefault(name, {})[row.group(1)] = row.group(2).strip().strip("`")
    return found


def test_the_page_lists_the_options_there_are() -> None:
    found = tables()
    assert found.keys() == rules.registry().keys()
    for name, rule in rules.registry().items():
        fields = {field.name: spec.default_text(field) for field in rules.fields_of(rule)}
        assert found[name] == fields, name


def test_the_lines_of_the_page_can_be_typed() -> None:
    text = (DOCS / "guidance.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if " -g " in line]
    typed = [words[words.index("-g") + 1] for words in map(shlex.split, lines)]
    assert len(typed) >= 6
    assert "help" in typed
    for rule in typed:
        assert rule == "help" or parse(rule) is not None


# ---- rules by file, and one's own ----------------------------------------------------------------------------------

TOY = """
from dataclasses import dataclass

import numpy as np

from otter_gguf import Policy


@dataclass(frozen=True)
class Worst(Policy):
    \"\"\"The least likely of a few tokens.\"\"\"

    n_candidates: int = 3
    \"\"\"How few.\"\"\"

    def scores(self, candidates):
        return -candidates.logits


class Bare(Policy):
    n_candidates = 4

    def scores(self, candidates):
        return candidates.logits


@dataclass(frozen=True)
class Picky(Worst):
    def __post_init__(self):
        raise RuntimeError("never")


class NoPolicy:
    pass


@dataclass(frozen=True)
class Untyped(Worst):
    other: "Nowhere" = None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with one's own policies in ``toy_policies.py`` and a module that fails."""
    (tmp_path / "toy_policies.py").write_text(TOY)
    (tmp_path / "broken_policies.py").write_text("undefined")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("toy_policies", "broken_policies"):
        sys.modules.pop(name, None)


def test_a_file_of_the_package_is_a_rule_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "package").mkdir()
    one_class = TOY[: TOY.index("class Bare")]
    (folder / "package/worst_of_few.py").write_text(one_class)
    assert "worst_of_few" not in rules.registry()
    monkeypatch.setattr(guidance, "__path__", [*guidance.__path__, str(folder / "package")])
    try:
        rule = spec.parse("gated:entropy=1.0+worst_of_few:n_candidates=5")
        assert spec.format(rule) == "gated:entropy=1.0+worst_of_few:n_candidates=5"
        assert (
            "\nworst_of_few\n    The least likely of a few tokens.\n      n_candidates=3  How few." in spec.describe()
        )
        with refused(ConfigError, "'nonsense'", "worst_of_few"):
            spec.parse("nonsense")
    finally:
        sys.modules.pop("otter_gguf.guidance.worst_of_few")


def test_ones_own_class_is_named_by_module_and_class(folder: Path) -> None:
    rule: Any = spec.parse("toy_policies:Worst")
    assert (type(rule).__module__, type(rule).__name__, rule.n_candidates) == ("toy_policies", "Worst", 3)
    assert spec.parse(" toy_policies:Worst : n_candidates = 5 ") == type(rule)(5)
    assert spec.parse("gated:entropy=1+toy_policies:Worst:n_candidates=5") == Gated(type(rule)(5), entropy=1.0)
    assert spec.parse("otter_gguf.guidance.args:ARGS:weight=2") == args(weight=2.0)
    bare: Any = spec.parse("toy_policies:Bare")
    assert type(bare).__name__ == "Bare"
    assert spec.format(bare) == "toy_policies:Bare"
    untyped = sys.modules["toy_policies"].Untyped()
    assert rules.innermost(Gated(untyped, entropy=1.0)) is untyped


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("no_such_module:Worst", ("import", "no_such_module")),
        ("broken_policies:Worst", ("import", "broken_policies", "NameError", "undefined")),
        ("toy_policies:Missing", ("toy_policies", "Missing")),
        ("toy_policies:NoPolicy", ("toy_policies:NoPolicy", "Policy", "Search")),
        ("otter_gguf.guidance.base:Policy", ("otter_gguf.guidance.base:Policy", "Policy", "Search")),
        ("os:getcwd", ("os:getcwd", "Policy", "Search")),
        ("toy_policies:Worst:wait=3", ("toy_policies:Worst", "'wait'", "n_candidates")),
        ("toy_policies:Worst:n_candidates=few", ("toy_policies:Worst", "n_candidates", "'few'")),
        ("toy_policies:Worst:few", ("toy_policies:Worst", "FIELD=VALUE", "'few'")),
        ("toy_policies:Bare:n_candidates=3", ("toy_policies:Bare", "'n_candidates'", "none")),
        ("toy_policies:Untyped", ("toy_policies:Untyped", "Nowhere")),
        ("toy_policies:Picky", ("toy_policies:Picky", "never")),
        ("toy_policies:Worst+args", ("toy_policies:Worst", "+", "gated")),
        ("toy_policies:weight=2", ("'toy_policies'", "package.module:Class")),
    ],
)
def test_what_is_wrong_with_ones_own(folder: Path, text: str, names: tuple[str, ...]) -> None:
    with refused(ConfigError, *names):
        spec.parse(text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_json_value_is_the_same_rule(name: str) -> None:
    assert spec.format(spec.from_json(JSON[name], Model)) == spec.format(spec.parse(EXAMPLES[name], Model))  # type: ignore[arg-type]


def test_json_says_what_text_says() -> None:
    assert spec.from_json(None) is spec.from_json("plain") is spec.from_json({"rule": "plain"}) is None
    ensemble = {"weights": {"a": 1, "b": 0.5}, "combination": "min"}
    assert spec.from_json({"rule": "args", "label": ensemble}) == ARGS(label=Ensemble({"a": 1, "b": 0.5}, "min"))
    assert spec.from_json({"rule": "contrast", "prompt": [1, 2, 3]}) == Contrast(prompt=(1, 2, 3))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (5, ["5"]),
        ({}, ["rule"]),
        ({"rule": "argh"}, ["argh"]),
        ({"rule": "args", "wait": 1}, ["args", "wait"]),
        ({"rule": "args", "weight": "2,n_candidates=9"}, ["weight"]),
        ({"rule": "args", "weight": {}}, ["weight"]),
        ({"rule": "args", "weight": [True]}, ["weight"]),
        ({"rule": "args", "policy": "args"}, ["policy"]),
        ({"rule": "gated", "entropy": 1}, ["gated"]),
        ({"rule": "gated", "entropy": 1, "policy": None}, ["gated"]),
        ({"rule": "plain", "weight": 1}, ["plain"]),
        ({"rule": "args", "label": {"weights": {"a": "x"}}}, ["weights"]),
        ({"rule": "args", "label": {"weights": {"a": 1}, "combination": "max"}}, ["combination", "max"]),
        ({"rule": "args", "label": {"weights": {"a": 1}, "x": 1}}, ["label"]),
    ],
)
def test_a_wrong_json_value_is_refused(value: Any, names: list[str]) -> None:
    with refused(ConfigError, *names):
        spec.from_json(value)


@pytest.mark.parametrize(
    "value",
    [
        "toy_policies:Worst",
        "gated:entropy=1+toy_policies:Worst",
        {"rule": "toy_policies:Worst"},
        {"rule": "gated", "entropy": 1, "policy": "os:path"},
    ],
)
def test_where_classes_of_ones_own_are_refused_nothing_is_imported(folder: Path, value: Any) -> None:
    with refused(ConfigError, "args"):
        spec.from_json(value, own=False)
    assert "toy_policies" not in sys.modules
