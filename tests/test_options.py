"""Options are written in few places: these agree, and type checkers know them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from otter_gguf import Otter
from otter_gguf.arguments import CallArguments, ChatArguments, CompletionArguments, make_request
from otter_gguf.cli import main as cli
from otter_gguf.isolation import IsolatedOtter, open_model
from otter_gguf.options import LoadArguments, LoadOptions, SamplingArguments, SamplingOptions
from otter_gguf.text_model import TextModel

METHODS = sorted(name for name, value in vars(TextModel).items() if inspect.isfunction(value) and name[0] != "_")


@pytest.mark.parametrize(("arguments", "options"), [(LoadArguments, LoadOptions), (SamplingArguments, SamplingOptions)])
def test_type_checkers_know_the_fields(arguments: type, options: type) -> None:
    assert get_type_hints(arguments) == get_type_hints(options)


def keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def test_type_checkers_know_the_arguments_of_calls() -> None:
    assert keywords(make_request) == set(get_type_hints(CallArguments))
    assert keywords(TextModel.create_completion) == {*get_type_hints(CompletionArguments), "stream"}
    assert keywords(TextModel.create_chat_completion) == {*get_type_hints(ChatArguments), "stream"}
    assert keywords(open_model) == keywords(Otter) | {"isolate"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_those_that_were_declared(name: str) -> None:
    """With the same defaults; and none of an isolated model's runs in this process by mistake."""
    declared = getattr(TextModel, name)
    for kind in (Otter, IsolatedOtter):
        assert name in vars(kind)
        assert inspect.signature(getattr(kind, name)) == inspect.signature(declared)
        assert inspect.getdoc(getattr(kind, name))


def test_neither_class_is_the_other() -> None:
    assert not issubclass(IsolatedOtter, Otter)
    assert not issubclass(Otter, IsolatedOtter)


def test_help_lists_options_with_their_defaults() -> None:
    parameters = inspect.signature(Otter.create_completion).parameters
    fields = [field for field in dataclasses.fields(SamplingOptions) if field.default is not dataclasses.MISSING]
    assert {field.name: parameters[field.name].default for field in fields} == {f.name: f.default for f in fields}
    assert (parameters["logit_bias"].default, parameters["n_keep"].default, parameters["max_tokens"].default) == (
        {}, 0, 128
    )  # fmt: skip


@pytest.mark.parametrize("given", ["1,1e400", "1,,2", "x"])
def test_a_refused_flag_is_named(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "-p", "a", "-ts", given])
    message = capsys.readouterr().err
    assert "-ts" in message
    assert repr(given) in message
    assert "lambda" not in message


SNIPPET = """
from otter_gguf import Otter
from otter_gguf.isolation import IsolatedOtter, open_model

llm = Otter("base.gguf", n_ctx=64)
llm.create_completion("a", min_p=0.1, stop="b", max_tokens=None)
IsolatedOtter("base.gguf", n_ctx=64).create_chat_completion([], min_p=0.1, logprobs=True)
open_model("base.gguf", isolate=True, n_ctx=64).generate([1], top_k=3)
Otter("base.gguf", n_contex=64)  # refused
Otter("base.gguf", n_ctx="64")  # refused
open_model("base.gguf", isolate=True, type_k="q9")  # refused
llm.create_completion("a", min_pp=0.1)  # refused
llm.create_completion("a", min_p="0.1")  # refused
llm.create_chat_completion([], echo=True)  # refused
IsolatedOtter("base.gguf").create_completion("a", n_keep=None)  # refused
llm.generate([1], stop="b")  # refused
"""


@pytest.mark.slow  # mypy reads numpy's types
def test_mypy_refuses_wrong_options_and_no_others(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "calls.py").write_text(SNIPPET)
    out, _, _ = api.run(["--follow-imports=silent", f"--cache-dir={tmp_path}", str(tmp_path / "calls.py")])
    refused = {int(number) for number in re.findall(r"calls\.py:(\d+): error", out)}
    expected = {number for number, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# refused")}
    assert refused == expected, out
