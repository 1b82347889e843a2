"""JSON schemas of any size: a grammar, or a line, and neither a signal nor a wait."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError
from tests.native.children import run_child
from tests.native.test_sampler import make
from tests.refusals import refused

NULL = {"type": "null"}
MAX_REFERENCES = 1024
MAX_OPTIONAL = 256
MAX_ALL_OPTIONAL = 4096
MAX_ALIKE = 1024
MAX_NODES = 16384
INT32_MAX = 2**31 - 1


def convert(schema: Any) -> str:
    return _native.json_schema_to_grammar(json.dumps(schema))


def objects(names: list[str], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict.fromkeys(names, NULL), **more}


def named(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def chain(links: int, *, with_objects: bool) -> dict[str, Any]:
    """A schema whose definitions refer to each other, the last to nothing."""

    def link(i: int) -> dict[str, Any]:
        to = {"$ref": f"#/$defs/a{i}"}
        return {"type": "object", "properties": {"x": to}} if with_objects else to

    definitions = {f"a{i}": link(i + 1) for i in range(links - 1)}
    return {**link(0), "$defs": {**definitions, f"a{links - 1}": NULL}}


@pytest.mark.parametrize("with_objects", [False, True])
def test_chains_of_references(with_objects: bool) -> None:
    assert "null" in convert(chain(MAX_REFERENCES, with_objects=with_objects))
    with refused(ConfigError, "JSON schema", "$ref", MAX_REFERENCES):
        convert(chain(MAX_REFERENCES + 1, with_objects=with_objects))


def test_the_longest_chain_and_the_largest_object_fit_a_small_stack() -> None:
    code = """
    import json
    from otter_gguf import _native

    def convert():
        print(all(len(_native.json_schema_to_grammar(json.dumps(schema))) > 1000 for schema in schemas))

    schemas = json.loads(sys.argv[1])
    in_small_thread(convert)
    """
    schemas = [chain(MAX_REFERENCES, with_objects=True), objects(named(MAX_OPTIONAL))]
    assert run_child(code, json.dumps(schemas)) == "True\n"


def test_a_reference_that_leads_back_within_an_all_of() -> None:
    """llama.cpp's converter would follow it until its stack ends."""
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    with refused(ConfigError, "JSON schema", "$ref", "allOf"):
        convert({"allOf": [{"$ref": "#/$defs/a"}], "$defs": loop})
    assert convert({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": objects(["x"])}})


def test_optional_properties() -> None:
    convert(objects(named(MAX_OPTIONAL)))
    with refused(ConfigError, "JSON schema", MAX_OPTIONAL + 1, MAX_OPTIONAL, "required"):
        convert(objects(named(MAX_OPTIONAL + 1)))
    with refused(ConfigError, "JSON schema", MAX_OPTIONAL + 1, MAX_OPTIONAL, "required"):
        convert(objects(named(MAX_OPTIONAL), additionalProperties=NULL))
    convert(objects(named(3000), required=named(3000)))


def test_optional_properties_of_all_objects() -> None:
    part = objects(named(100))
    fitting = MAX_ALL_OPTIONAL // 100
    convert({"anyOf": [part] * fitting})
    with refused(ConfigError, "JSON schema", MAX_ALL_OPTIONAL, "required"):
        convert({"anyOf": [part] * (fitting + 1)})


def test_names_that_a_rule_does_not_tell_apart() -> None:
    names = ["".join(signs) for signs in itertools.product("!?.,;:+*/=", repeat=4)][: MAX_ALIKE + 2]
    convert(objects(names[:-1], required=names))
    with refused(ConfigError, "JSON schema", MAX_ALIKE):
        convert(objects(names, required=names))


def test_copies_count_as_often_as_they_are_made() -> None:
    """Each name in a list of types is a copy of its schema, and each allOf walks through what it refers to."""
    bomb: dict[str, Any] = NULL
    for _ in range(20):
        bomb = {"type": ["object", "object"], "properties": {"x": bomb}, "required": ["x"]}
    with refused(ConfigError, "JSON schema", MAX_NODES):
        convert(bomb)
    large = objects(named(1000), required=named(1000))
    with refused(ConfigError, "JSON schema", MAX_NODES, "allOf"):
        convert({"anyOf": [{"allOf": [{"$ref": "#/$defs/a"}]}] * 20, "$defs": {"a": large}})
    convert({"anyOf": [{"allOf": [{"$ref": "#/$defs/a"}]}] * 2, "$defs": {"a": large}})


@pytest.mark.parametrize("key", ["minItems", "maxItems"])
@pytest.mark.parametrize("value", [2**31, 2**63, -1, 1.5])
def test_counts_that_would_be_cut_off(key: str, value: float) -> None:
    with refused(ConfigError, "JSON schema", key, value, INT32_MAX):
        convert({"type": "array", "items": NULL, key: value})


@pytest.mark.parametrize("key", ["minLength", "maxLength"])
def test_counts_of_texts_that_would_be_cut_off(key: str) -> None:
    with refused(ConfigError, "JSON schema", key, 2**32 + 1, INT32_MAX):
        convert({"type": "string", key: 2**32 + 1})


def test_counts_that_fit() -> None:
    assert "{2,4}" in convert({"type": "string", "minLength": 2, "maxLength": 4})
    assert "{2,4}" in convert({"type": "array", "items": NULL, "minItems": 3, "maxItems": 5})
    assert convert({"const": {"minItems": -1}})  # data
    assert convert(objects(["minItems"]))  # a name


@pytest.mark.parametrize(
    ("bounds", "names"),
    [
        ({"minimum": -(10**19)}, ("minimum", "-1e+19")),
        ({"maximum": 2**63}, ("maximum", 2**63)),
        ({"exclusiveMinimum": 2**63 - 1}, ("exclusiveMinimum", 2**63 - 1)),
        ({"exclusiveMaximum": -(2**63)}, ("exclusiveMaximum", -(2**63))),
        ({"minimum": 10**15}, ("minimum", 10**15)),
        ({"maximum": -(10**15)}, ("maximum", -(10**15))),
    ],
)
def test_bounds_that_no_grammar_can_have(bounds: dict[str, int], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "JSON schema", *names):
        convert({"type": "integer", **bounds})


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 10**15 - 1},
        {"maximum": 1 - 10**15},
        {"minimum": -(2**63), "maximum": 2**63 - 1},
        {"minimum": 0, "maximum": 2**63 - 2},
        {"minimum": -(10**18), "maximum": -(10**17)},
    ],
)
def test_bounds_that_fit(bounds: dict[str, int]) -> None:
    assert make(grammar=convert({"type": "integer", **bounds}))


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("array", "minItems", "maxItems"), ("string", "minLength", "maxLength")]
)
def test_at_least_is_no_more_than_at_most(kind: str, least: str, most: str) -> None:
    for low, high in ((5, 1), (1, 0)):
        with refused(ConfigError, "JSON schema", least, low, most, high):
            convert({"type": kind, least: low, most: high})
    assert make(grammar=convert({"type": kind, least: 2, most: 2}))


def test_a_message_is_no_longer_than_one_reads() -> None:
    with pytest.raises(ConfigError) as raised:
        convert({"type": "string", "pattern": "^" + "(" * 5000 + "$"})
    assert len(str(raised.value)) < 500
    assert "pattern" in str(raised.value)
