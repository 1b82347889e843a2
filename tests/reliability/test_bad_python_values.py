"""The public Python classes with every bad value for every argument: a typed error or an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import otter_gguf
from otter_gguf import (
    ARGS,
    BaseGeometry,
    ContextState,
    EngineError,
    Ensemble,
    HeadConfig,
    InsertionConfig,
    Otter,
)
from tests.completions import chat_pair, tokens_of
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.reliability.bad_values import Callee, signature_callee, unexpected

# What numpy says of truth values and casts of the values that are wrong on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GEOMETRY = BaseGeometry("llama", 2, 64, 4, 2, 16, 128, 320)
GOOD: dict[str, dict[str, Any]] = {
    "BaseGeometry": {field.name: getattr(GEOMETRY, field.name) for field in dataclasses.fields(BaseGeometry)},
    "Contrast": {"prompt": [3, 4]},
    "DExperts": {"expert": None},
    "Ensemble": {"weights": {"reward": 1.0}},
    "Gated": {"policy": ARGS(), "entropy": 1.0},
    "HeadConfig": {"name": "reward"},
    "InsertionConfig": {"base": GEOMETRY, "width": 8, "n_head_kv": (1, 1), "n_ff": (8, 8)},
    "InsertionConfig.uniform": {"base": GEOMETRY, "width": 8},
    "InsertionConfig.from_dict": {"data": InsertionConfig.uniform(GEOMETRY, 8).to_dict()},
    "InsertionConfig.reward_source": {"label": "reward"},
    "InsertionConfig.n_query_heads": {"layer": 0},
    "InsertionConfig.head_input_size": {"head": HeadConfig()},
    "InsertionConfig.head_rows": {"head": HeadConfig()},
    "Threshold": {"limit": 0.0},
    "ContextState": {"tokens": (1,), "data": b""},
    "Otter.create_completion": {"prompt": "a", "max_tokens": 2},
    "Otter.create_chat_completion": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "Otter.generate": {"tokens": [5, 6]},
    "Otter.score": {"prompt": "a", "response": "b"},
    "Otter.tokenize": {"text": "a"},
    "Otter.score_many": {"texts": [("a", "b"), ("a", None)]},
    "Otter.rerank": {"query": "a", "documents": ["b", "c"], "label": "reward", "top_n": 1},
    "Otter.tokenize_chat": {"messages": [{"role": "user", "content": "a"}]},
    "Otter.render_chat": {"messages": [{"role": "user", "content": "a"}]},
    "Otter.detokenize": {"tokens": [5, 6]},
}
RULES = (
    *("ARGS", "CARDS", "PARGS", "RAD", "BestOfN", "ChunkBeam", "Contrast", "DExperts"),
    *("Gated", "SpeculativeRejection", "Threshold", "Vocabulary"),
)
METHODS = tuple(name.removeprefix("Otter.") for name in GOOD if name.startswith("Otter."))


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_ctx=64, n_seq_max=16) as llm:
        yield llm


def constructor(name: str) -> tuple[Any, Callee]:
    made = getattr(otter_gguf, name)
    return made, signature_callee("", name, made)


@pytest.mark.parametrize("name", [*RULES, "BaseGeometry", "Ensemble", "HeadConfig", "InsertionConfig"])
def test_constructors(name: str) -> None:
    made, callee = constructor(name)
    assert unexpected(made, callee, GOOD.get(name, {})) == []


@pytest.mark.parametrize("name", ["uniform", "from_dict"])
def test_configurations_from_parts(name: str) -> None:
    made = getattr(InsertionConfig, name)
    callee = signature_callee("InsertionConfig", name, made)
    assert unexpected(made, callee, GOOD[callee.path]) == []


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_model(llm: Otter, name: str) -> None:
    method = getattr(llm, name)

    def call(*positional: Any, **named: Any) -> None:
        answer = method(*positional, **named)
        if isinstance(answer, Generator):
            for _ in range(3):
                next(answer, None)

    callee = signature_callee("Otter", name, method)
    assert unexpected(call, callee, GOOD[callee.path]) == []
    assert len(tokens_of(llm.create_completion("a", max_tokens=2, temperature=0))) == 2


@pytest.mark.parametrize("name", [*RULES, "Ensemble"])
def test_rules_that_can_be_made_can_be_used(llm: Otter, name: str) -> None:
    """Bad values that a constructor takes must not do harm later."""
    made, callee = constructor(name)

    def generate(*positional: Any, **named: Any) -> None:
        rule = made(*positional, **named)
        guidance = ARGS(label=rule, n_candidates=2) if isinstance(rule, Ensemble) else rule
        llm.create_completion("ab", max_tokens=2, guidance=guidance, seed=1)

    assert unexpected(generate, callee, GOOD.get(name, {})) == []
    assert len(tokens_of(llm.create_completion("a", max_tokens=2, temperature=0))) == 2


def test_options_of_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = chat_pair()
    callee = signature_callee("", "Otter", Otter)

    def load(*positional: Any, **named: Any) -> None:
        Otter(*positional, **named).close()

    good = {"model_path": files.base, "otter": files.otter, "n_ctx": 32, "n_threads": 1, "verbose": False}
    assert unexpected(load, callee, good) == []


def test_saved_states(llm: Otter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llm.create_completion("a", max_tokens=2)
    state = llm.save_state()
    for owner, function, good in (
        ("Otter", llm.load_state, {"state": state}),
        ("ContextState", ContextState.load, {"path": "state"}),
        ("ContextState", state.save, {"path": "state"}),
    ):
        callee = signature_callee(owner, function.__name__, function)
        assert unexpected(function, callee, good) == []
    llm.load_state(state)
    assert llm.create_completion("a", max_tokens=1, cache_prompt=True)


def test_a_model_that_has_been_closed() -> None:
    llm = open_exact(chat_pair(), n_ctx=64)
    llm.close()
    llm.close()
    for name in METHODS:
        with refused(EngineError, "closed"):
            getattr(llm, name)(**GOOD[f"Otter.{name}"])
    with refused(EngineError, "closed"):
        llm.save_state()


def test_every_public_class_is_tried_or_has_nothing_to_try() -> None:
    """A new name in the package must be added above."""
    tried = {*RULES, "BaseGeometry", "Ensemble", "HeadConfig", "InsertionConfig", "Otter", "ContextState"}
    made_by_the_package = {"Candidates", "Score", "IsolatedOtter"}
    abstract = {"Policy", "Search", "Signal"}
    through_otter = {"open_model", "AsyncOtter"}
    errors = {name for name in otter_gguf.__all__ if name.endswith("Error")}
    assert {*tried, *made_by_the_package, *abstract, *through_otter, *errors, "__version__"} == set(otter_gguf.__all__)
