"""Text that must follow a grammar or a JSON schema, plain and guided."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Gated, Otter, Vocabulary
from tests.completions import chat_pair, choice_of, choices_of, tokens_of
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT

GUIDANCE = {
    "plain": None,
    "args": ARGS(4.0),
    "vocabulary": Vocabulary(5.0),
    "bonus first": Vocabulary(5.0, order="bonus_first"),
    "gated": Gated(ARGS(4.0, n_candidates=5), entropy=3.0),
    "search": BestOfN(3),
}
DATE = 'root ::= year "-" [01] [0-9]\nyear ::= [12] [0-9] [0-9] [0-9]'
OTTER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ollie", "Otto"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tame": {"type": "boolean"},
        "fish": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["name", "age", "tame", "fish"],
    "additionalProperties": False,
}
CLOSE = {ord('"'): 8.0, ord("}"): 12.0}
"""A logit bias with which a random model closes what it opens."""


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_seq_max=64) as llm:
        yield llm


@pytest.fixture(params=GUIDANCE)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every way in which tokens are chosen, among candidates that are mostly forbidden."""
    return {"max_tokens": 400, "temperature": 1.5, "seed": 5, "guidance": GUIDANCE[request.param]}


def check_otter(text: str) -> None:
    """It parses and has the schema's parts."""
    otter = json.loads(text)
    assert list(otter) == ["name", "age", "tame", "fish"]
    assert otter["name"] in ("Ollie", "Otto")
    assert isinstance(otter["age"], int)
    assert 0 <= otter["age"] <= 30
    assert isinstance(otter["tame"], bool)
    assert len(otter["fish"]) <= 3
    assert all(isinstance(fish, str) and len(fish) <= 4 for fish in otter["fish"])


# ---- grammar ---------------------------------------------------------------------------------------------------


def test_a_text_follows_its_grammar_and_ends_with_it(llm: Otter, options: dict[str, Any]) -> None:
    choice = choice_of(llm.create_completion(TEXT, grammar=DATE, **options))
    assert re.fullmatch(r"[12]\d{3}-[01]\d", choice["text"])
    assert choice["finish_reason"] == "stop"
    free = choice_of(llm.create_completion(TEXT, **{**options, "max_tokens": 7}))
    assert not re.match(r"[12]\d{3}-[01]\d", free["text"])


def test_other_draws_give_other_texts_of_the_grammar(llm: Otter) -> None:
    texts = {choice_of(llm.create_completion(TEXT, grammar=DATE, temperature=2, seed=s))["text"] for s in range(8)}
    assert len(texts) > 4
    assert all(re.fullmatch(r"[12]\d{3}-[01]\d", text) for text in texts)


def test_the_prompt_is_no_part_of_the_grammar(llm: Otter, options: dict[str, Any]) -> None:
    """Penalties count its tokens, none of which the grammar would allow."""
    choice = choice_of(llm.create_completion(TEXT, grammar=DATE, repeat_penalty=1.2, **options))
    assert re.fullmatch(r"[12]\d{3}-[01]\d", choice["text"])


def test_penalties_count_the_prompt_beside_a_grammar(llm: Otter) -> None:
    def choose(prompt: str, penalty: float) -> str:
        given: dict[str, Any] = {"grammar": 'root ::= "1" | "2"', "presence_penalty": penalty, "temperature": 0}
        return str(choice_of(llm.create_completion([ord(letter) for letter in prompt], **given))["text"])

    liked = choose("a", 0.0)
    assert choose("a" + liked, 100.0) != liked
    assert choose(liked, 0.0) in "12"


def test_a_grammar_leaves_the_text_alone_that_follows_it(llm: Otter) -> None:
    pieces = [llm.model.token_bytes(token) for token in range(llm.n_vocab)]
    no_letters = {token: float("-inf") for token, piece in enumerate(pieces) if not piece.isalpha()}
    given: dict[str, Any] = {"max_tokens": 20, "temperature": 1, "seed": 1, "logit_bias": no_letters}
    free = tokens_of(llm.create_completion(TEXT, **given))
    assert len(free) == 20
    assert tokens_of(llm.create_completion(TEXT, grammar="root ::= [a-zA-Z]*", **given)) == free
    assert tokens_of(llm.create_completion(TEXT, grammar="root ::= [a-z]*", **given)) != free


def test_a_batch_follows_the_grammar_text_by_text(llm: Otter, options: dict[str, Any]) -> None:
    prompts = [TEXT, "The otter", "a"]
    singles = [choice_of(llm.create_completion(prompt, grammar=DATE, **options))["text"] for prompt in prompts]
    batch = [choice["text"] for choice in choices_of(llm.create_completion(prompts, grammar=DATE, **options))]
    assert batch == singles
    assert all(re.fullmatch(r"[12]\d{3}-[01]\d", text) for text in batch)


def test_max_tokens_may_cut_it(llm: Otter) -> None:
    choice = choice_of(llm.create_completion(TEXT, grammar=DATE, max_tokens=3))
    assert (len(choice["text"]), choice["finish_reason"]) == (3, "length")


@pytest.mark.parametrize("grammar", ["root = 1", 'start ::= "a"', "root ::= missing", "root ::= [", "\0"])
def test_wrong_grammars_are_refused(llm: Otter, grammar: str) -> None:
    with refused(ConfigError, "grammar"):
        llm.create_completion(TEXT, grammar=grammar)
    assert tokens_of(llm.create_completion(TEXT, max_tokens=2))


def test_a_grammar_that_the_bias_blocks_is_refused(llm: Otter, options: dict[str, Any]) -> None:
    with refused(ConfigError, "token", "grammar"):
        llm.create_completion(TEXT, grammar='root ::= "a"', logit_bias={ord("a"): float("-inf")}, **options)


# ---- JSON schema -----------------------------------------------------------------------------------------------


def test_a_text_is_json_of_its_schema(llm: Otter, options: dict[str, Any]) -> None:
    choice = choice_of(llm.create_completion(TEXT, json_schema=OTTER, logit_bias=CLOSE, **options))
    check_otter(choice["text"])
    assert choice["finish_reason"] == "stop"


def test_a_schema_may_be_text(llm: Otter) -> None:
    given: dict[str, Any] = {"max_tokens": 400, "temperature": 1, "seed": 2, "logit_bias": CLOSE}
    text = choice_of(llm.create_completion(TEXT, json_schema=json.dumps(OTTER), **given))["text"]
    check_otter(text)
    assert choice_of(llm.create_completion(TEXT, json_schema=OTTER, **given))["text"] == text


@pytest.mark.parametrize("schema", [{}, "{}"])
@pytest.mark.parametrize(
    ("liked", "kind"), [('"', str), ("{}", dict), ("[]", list), ("true", bool), ("nul", type(None))]
)
def test_an_empty_schema_is_any_json(llm: Otter, schema: Any, liked: str, kind: type) -> None:
    bias = {ord(letter): 30.0 + index for index, letter in enumerate(liked)}
    out = llm.create_completion(TEXT, json_schema=schema, max_tokens=40, seed=1, logit_bias=bias)
    assert isinstance(json.loads(choice_of(out)["text"]), kind)


@pytest.mark.parametrize("schema", ["{", "[1", {"type": "otter"}, {"$ref": "#/nowhere"}, {"a": object()}, 3, ["a"]])
def test_wrong_schemas_are_refused(llm: Otter, schema: Any) -> None:
    with refused(ConfigError):
        llm.create_completion(TEXT, json_schema=schema)


@pytest.mark.parametrize("levels", [15, 40])
def test_a_schema_that_refers_to_its_own_parts_is_not_written_out(llm: Otter, levels: int) -> None:
    """Small in memory, and 4 to the power of its levels as JSON."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"anyOf": [schema] * 4}
    begin = time.process_time()
    with refused(ConfigError, "JSON schema", 2**20):
        llm.create_completion(TEXT, json_schema=schema)
    assert time.process_time() - begin < 10.0


def test_a_pattern_that_no_grammar_can_express_is_refused(llm: Otter, capfd: pytest.CaptureFixture[str]) -> None:
    """llama.cpp would print a warning and accept any string."""
    schema = {"type": "string", "pattern": "^(?!a)b$"}
    with refused(ConfigError, "pattern", "^(?!a)b$") as raised:
        llm.create_completion(TEXT, json_schema=schema)
    assert "accepting" not in str(raised.value)
    out = llm.create_completion(TEXT, json_schema={"type": "string", "pattern": "^b{3}$"}, temperature=1, seed=1)
    assert json.loads(choice_of(out)["text"]) == "bbb"
    assert capfd.readouterr().err == ""


def test_grammar_and_schema_exclude_each_other(llm: Otter) -> None:
    with refused(ConfigError, "grammar", "json_schema"):
        llm.create_completion(TEXT, json_schema={}, grammar=DATE)


# ---- chat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object", "schema": OTTER},
        {"type": "json_schema", "json_schema": {"name": "otter", "strict": True, "schema": OTTER}},
    ],
)
def test_chat_answers_in_json(llm: Otter, options: dict[str, Any], response_format: Any) -> None:
    messages = [{"role": "user", "content": "Which otter?"}]
    out = llm.create_chat_completion(messages, response_format=response_format, logit_bias=CLOSE, **options)
    check_otter(choice_of(out)["message"]["content"])
    assert choice_of(out)["finish_reason"] == "stop"


def test_chat_answers_with_any_object(llm: Otter) -> None:
    messages = [{"role": "user", "content": "Which otter?"}]
    bias = {**CLOSE, ord(","): -20.0}
    out = llm.create_chat_completion(messages, response_format={"type": "json_object"}, logit_bias=bias, seed=1)
    assert isinstance(json.loads(choice_of(out)["message"]["content"]), dict)


def test_a_response_format_of_text_asks_for_nothing(llm: Otter) -> None:
    messages = [{"role": "user", "content": "Which otter?"}]
    outs = [
        choice_of(llm.create_chat_completion(messages, max_tokens=12, seed=3, response_format=given))["message"]
        for given in (None, {"type": "text"})
    ]
    assert outs[0] == outs[1]


@pytest.mark.parametrize("given", ["json", {"type": "xml"}, {}, {"type": "json_object", "schema": 3}, [1]])
def test_other_response_formats_are_refused(llm: Otter, given: Any) -> None:
    with refused(ConfigError, "response_format", repr(given)):
        llm.create_chat_completion([{"role": "user", "content": "a"}], response_format=given)
