"""Grammars and JSON schemas: what they let through, and what is refused with a line."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError
from tests.native.helpers import Float32, Int32
from tests.native.test_sampler import PENALTIES, V, make, model, rows
from tests.refusals import refused

EOS = 2
INF = np.inf
DATE = 'root ::= year "-" [01] [0-9] | "é"\nyear ::= [0-9]{4} # as in ISO 8601'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["otter", "seal"]},
        "count": {"type": "integer", "minimum": 2, "maximum": 40},
        "wild": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "count", "names"],
    "additionalProperties": False,
}


def byte(character: str) -> int:
    """The toy vocabulary's token of a byte."""
    return 3 + ord(character)


def allowed(sampler: _native.Sampler, logits: Float32) -> set[int]:
    """Every token that candidates() leaves."""
    return set(sampler.candidates(logits, V)[0].tolist())


def accepted(sampler: _native.Sampler) -> Int32:
    """Every token that a clone of the sampler accepts."""
    found = []
    for token in range(V):
        try:
            sampler.clone(0).accept(token)
        except ConfigError:
            continue
        found.append(token)
    return np.asarray(found, np.int32)


def text_of(tokens: list[int]) -> str:
    return b"".join(model().token_bytes(token) for token in tokens).decode()


def complete(sampler: _native.Sampler, limit: int = 400, seed: int = 0) -> str:
    """A text drawn from random logits, up to the end-of-text token that has to come."""
    tokens: list[int] = []
    logits = rows(limit, seed)
    logits[:, EOS] += 4.0
    for row in logits:
        token = sampler.sample(row)
        if token == EOS:
            return text_of(tokens)
        tokens.append(token)
    raise AssertionError(f"no end after {text_of(tokens)!r}")


def test_every_token_is_constrained_and_at_the_end_only_end_of_text() -> None:
    sampler, logits = make(grammar=DATE), rows(1)[0]
    assert sampler.has_history
    digits = {byte(str(digit)) for digit in range(10)}
    first = allowed(sampler, logits)
    assert digits < first
    assert 3 + 0xC3 in first  # the first byte of é
    assert byte("a") not in first
    assert EOS not in first
    for step in "2024":
        assert digits <= allowed(sampler, logits)
        sampler.accept(byte(step))
    assert allowed(sampler, logits) == {byte("-")}
    for step in "-1":
        sampler.accept(byte(step))
    sampler.accept(byte("2"))
    for _ in range(2):
        assert allowed(sampler, logits) == {EOS}
        assert sampler.sample(logits) == EOS


def test_a_character_of_two_tokens() -> None:
    sampler, logits = make(grammar=DATE), rows(1)[0]
    sampler.accept(3 + 0xC3)
    assert allowed(sampler, logits) == {3 + 0xA9}
    sampler.accept(3 + 0xA9)
    assert allowed(sampler, logits) == {EOS}


@pytest.mark.parametrize("grammar", [DATE, "root ::= [a-z ]*", 'root ::= "x"'])
def test_candidates_are_the_best_of_those_accepted(grammar: str) -> None:
    """However deep they stand in the row."""
    sampler = make(grammar=grammar)
    passed = accepted(sampler)
    assert 0 < len(passed) < V / 2
    for logits in rows(10):
        for sunk in (0.0, -50.0):
            logits[passed] += np.float32(sunk)
            for bonus in (None, rows(1, seed=4)[0]):
                key = logits if bonus is None else logits + bonus
                order = passed[np.argsort(-key[passed], kind="stable")]
                for k in (1, 3, V):
                    tokens, values = sampler.candidates(logits, k, bonus)
                    assert np.array_equal(tokens, order[:k])
                    assert np.array_equal(values, logits[tokens])


@pytest.mark.parametrize("top_k", [0, 1, 5, 40])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_sampled_texts_fit_the_grammar(top_k: int, temperature: float) -> None:
    for seed in range(4):
        sampler = make(grammar=DATE, top_k=top_k, temperature=temperature, top_p=1.0, min_p=0.0, seed=seed, **PENALTIES)
        assert re.fullmatch(r"[0-9]{4}-[01][0-9]|é", complete(sampler, seed=seed))


def test_a_forbidden_token_is_refused_and_changes_nothing() -> None:
    sampler, logits = make(grammar=DATE, **PENALTIES), rows(1)[0]
    sampler.accept(byte("1"))
    before = sampler.candidates(logits, V)
    for token in (byte("a"), EOS):
        with refused(ConfigError, "grammar", f"token {token}"):
            sampler.accept(token)
    after = sampler.candidates(logits, V)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_grammar_begins_behind_the_prompt() -> None:
    sampler, logits = make(grammar=DATE, **PENALTIES), rows(1)[0]
    before = sampler.candidates(logits, V)
    for token in (byte("a"), byte("7"), EOS):
        sampler.accept(token, prompt=True)
    tokens, values = sampler.candidates(logits, V)
    assert set(tokens.tolist()) == set(before[0].tolist())
    assert dict(zip(tokens, values, strict=True))[byte("7")] < logits[byte("7")]  # the penalties count it


def test_a_history_with_a_grammar_is_saved_and_restored() -> None:
    sampler, logits = make(grammar=DATE), rows(1)[0]
    for step in "2024":
        sampler.accept(byte(step))
    state = sampler.save()
    clone = sampler.clone(1)
    for _ in range(2):
        sampler.accept(byte("-"))
        assert byte("-") not in allowed(sampler, logits)
        sampler.restore(state)
        assert allowed(sampler, logits) == allowed(clone, logits) == {byte("-")}
    sampler.reset()
    assert 3 + 0xC3 in allowed(sampler, logits)


def test_a_dead_end_is_an_error() -> None:
    sampler, logits = make(grammar=f'root ::= "a" <[{V + 100}]>'), rows(1)[0]
    sampler.accept(byte("a"))
    for call in (lambda: sampler.sample(logits), lambda: sampler.candidates(logits, 3)):
        with refused(ConfigError, "token", "grammar", "logit"):
            call()
    forbidden = make(grammar='root ::= "a"', logit_bias=[(byte("a"), -INF)])
    with refused(ConfigError, "token", "grammar", "logit"):
        forbidden.sample(logits)


@pytest.mark.parametrize(
    ("grammar", "names"),
    [
        ("root ::= ", ()),  # the empty text
        ('root ::= "a', ("end",)),
        ("root ::= [a-", ("end",)),
        ('root = "a"', ("::=",)),
        ("root ::= (a", ("')'",)),
        ("root ::= other", ("'other'",)),
        ('start ::= "a"', ("'root'",)),
        ("# nothing", ("'root'",)),
        ("root ::= *", ("preceding",)),
        ('root ::= "\\q"', ("escape", "\\q")),
        ("root ::= root", ("'root'", "recursion")),
        ('root ::= a "x" | "y"\na ::= b\nb ::= root | "z"', ("'root'", "recursion")),
        ('root ::= a root "c" | "x"\na ::= b\nb ::= "" | "y"', ("'root'", "recursion")),
        ('root ::= "a"{5,2}', ("{m,n}",)),
        ('root ::= "a"{5, #2,7}\n 2}', ("{m,n}",)),
        ('root ::= "a"{99999}', ("repetitions",)),
        ('root ::= "a"{99999999999999999999999}', (23, "digits")),
        (f'root ::= {"(" * 5000}"a"{")" * 5000}', ("parentheses", 128)),
        ('root ::= "a\0"', ("NUL",)),
        ("root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(5000)) + 'a5000 ::= "x"', (500,)),
        (
            "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} | a{i + 1} a{i}\n" for i in range(60)) + 'a60 ::= "x"',
            ("'root'", "ways"),
        ),
        ("#" * (2**20 + 1), (2**20 + 1, 2**20)),
    ],
)
def test_wrong_grammars_are_one_line(
    grammar: str, names: tuple[object, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    if not names:
        assert allowed(make(grammar=grammar), rows(1)[0]) == {EOS}
        return
    with refused(ConfigError, "grammar", *names) as caught:
        make(grammar=grammar)
    assert len(str(caught.value)) < 200
    assert capfd.readouterr().err == ""  # llama.cpp prints the whole text


def test_what_only_looks_wrong_is_a_grammar() -> None:
    """Brackets inside literals, classes and comments, and repetitions of every form."""
    grammar = 'root ::= "{5,2}((((" [({\\]"] ("x"{2,2} "y"{0,} "z"{3})? # {5,2}((((\n'
    sampler = make(grammar=grammar)
    for step in '{5,2}(((("':
        sampler.accept(byte(step))
    assert EOS in allowed(sampler, rows(1)[0])
    with refused(ConfigError, "grammar", f"token {byte('x')}"):
        make(grammar=grammar).accept(byte("x"))


# ---- JSON schemas


@pytest.mark.parametrize("seed", range(6))
def test_a_sampled_text_fits_its_schema(seed: int) -> None:
    grammar = _native.json_schema_to_grammar(json.dumps(SCHEMA))
    value = json.loads(complete(make(grammar=grammar, seed=seed, temperature=1.5), seed=seed))
    assert set(value) - {"wild"} == {"kind", "count", "names"}
    assert value["kind"] in ("otter", "seal")
    assert 2 <= value["count"] <= 40
    assert isinstance(value.get("wild", True), bool)
    assert 1 <= len(value["names"]) <= 3
    assert all(isinstance(name, str) and len(name) <= 5 for name in value["names"])


def test_a_text_that_breaks_the_schema_is_forbidden() -> None:
    sampler = make(grammar=_native.json_schema_to_grammar('{"type": "object", "properties": {"a": {"const": 7}}}'))
    with refused(ConfigError, "grammar", f"token {byte('[')}"):
        sampler.accept(byte("["))
    sampler.accept(byte("{"))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
        {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]},
        {"allOf": [{"properties": {"a": {"type": "number"}}}, {"properties": {"b": {"type": "integer"}}}]},
        {"type": "string", "pattern": "^[a-f]{2,4}(x|yz)+$"},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": "object", "properties": {"é" * 80: {"type": "null"}}},
        {"enum": ["x" * 80000]},
    ],
)
def test_schemas_become_grammars_that_llama_cpp_takes(schema: Any) -> None:
    assert EOS not in allowed(make(grammar=_native.json_schema_to_grammar(json.dumps(schema))), rows(1)[0])


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ("", ("line 1", "column 1")),
        ("{", ("line 1", "column 2")),
        ('{"type": "object"', ("line 1", "column 18")),
        ('{"type": "thing"}', ("thing",)),
        ('{"$ref": "#/nowhere"}', ("#/nowhere",)),
        ('{"$ref": "https://example.org/schema.json"}', ("https://example.org/schema.json",)),
        ('{"type": "string", "pattern": "^(a$"}', ("^(a$",)),
        ('{"anyOf": []}', ("#/anyOf",)),
        ("[1]", ("#", "object")),
        ("true", ("#", "object")),
        ("[" * 100000, (64,)),
        ('{"properties": {"' + "é" * 9000 + '" : {}}}', ("name", 512)),
        (" " * (2**20 + 1), (2**20 + 1, 2**20)),
    ],
)
def test_wrong_schemas_are_one_line(schema: str, names: tuple[object, ...]) -> None:
    with refused(ConfigError, "JSON schema", *names):
        _native.json_schema_to_grammar(schema)
