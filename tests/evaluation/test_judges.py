"""Judges and the user's own functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import ConfigError
from otter_gguf.evaluation.judges import load_judge, of_function, of_model
from otter_gguf.plugins import load_function
from tests.evaluation.made_up import bare
from tests.refusals import refused
from tests.synthetic_models import load

SOURCE = """
class Strict:
    def score(self, text):
        return len(text)

strict = Strict()
number = 3

def of_response(text, offset=1):
    return len(text) + offset

def of_both(prompt, response):
    return len(prompt) - len(response)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a user's module; what importing it changes is taken back."""
    (tmp_path / "my_judges.py").write_text(SOURCE)
    (tmp_path / "broken_judges.py").write_text("import no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_judges", "broken_judges"):
        sys.modules.pop(name, None)


def test_a_function_of_the_response_or_of_both(folder: Path) -> None:
    assert load_judge("my_judges:of_response").score("prompt", "abc") == 4
    assert load_judge("my_judges:of_both").score("prompt", "abc") == 3
    assert load_judge("my_judges:strict.score").score("prompt", "abc") == 3
    assert load_judge("builtins:len").score("prompt", "abc") == 3


def test_a_module_is_imported_only_when_it_is_named(folder: Path) -> None:
    load_judge("demo")
    assert "my_judges" not in sys.modules
    load_judge("my_judges:of_both")
    assert "my_judges" in sys.modules


def test_a_module_of_the_folder_hides_no_other(folder: Path) -> None:
    (folder / "json.py").write_text("loads = 1")
    assert load_function("json:loads", "--judge")("1") == 1


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("demos", ("MODULE:FUNCTION",)),
        (":f", ("MODULE:FUNCTION",)),
        ("no_such_module:f", ("import", "no_such_module")),
        ("broken_judges:f", ("import", "broken_judges")),
        ("my_judges:none", ("function", "none")),
        ("my_judges:number", ("function", "number")),
    ],
)
def test_a_wrong_name_is_one_clear_line(folder: Path, name: str, names: tuple[str, ...]) -> None:
    with refused(ConfigError, "--judge", name, *names):
        load_judge(name)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), None, "good", [1, 2]])
def test_what_is_no_score_is_refused(answer: Any) -> None:
    with refused(ConfigError, "--judge", "odd", repr(answer)):
        of_function(lambda text: answer, "odd").score("", "text")


def test_the_demos_judges_differ() -> None:
    text = "Mia helped Tom."  # a word of the preference pairs
    assert load_judge("demo").score("", text) == 1
    assert load_judge("demo-unseen").score("", text) == 0


def test_a_models_reward_as_judge() -> None:
    with load() as llm:
        judge = of_model(llm)
        assert judge.score("The otter", " sleeps.") == llm.score("The otter", " sleeps.").reward
        assert judge.score("The otter", " sleeps.") != judge.score("The otter", " eats.")
    with bare() as plain, refused(ConfigError, "base.gguf", "--judge-otter"):
        of_model(plain)
