"""JSON schemas: well-formed ones, broken ones, and those that blow up; as values, or as text where values cannot be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from .strings import odd_length, text, words

_NUMBERS = [
    0,
    1,
    -1,
    5,
    9,
    10,
    99,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64,
    10**15,
    10**16,
    -(10**19),
    10**30,
    0.5,
    1e15,
    1e300,
    -1e300,
    1.5e-9,
]
_SIZES = [0, 1, 2, 5, 100, 2000, 10**6, 2**31, 2**63, 2**64, -1, 1.5]
_PATTERNS = [
    "^a$",
    "^[a-z]+$",
    "^.*$",
    "^(a|b){1,3}$",
    "^" + ".*" * 50 + "$",
    "^(((a)))$",
    "^[^\\n]$",
    "^a{0,1000}$",
    "^\\d{4}-\\d$",
    "^(a*)*$",
    "a",
    "^[z-a]$",
    "^(?=x)$",
    "^\\p{L}$",
    "^(",
    "^)$",
    "^a{3,1}$",
    "^a{99999999999}$",
    "^\\u00fc[$",
    "^$",
    "^\\",
    "^[\\]\\-\\x41]+$",
    "^\\u00e9{2}\\.(?:a|b)+$",
]
_FORMATS = ["date", "time", "date-time", "uuid", "uuid1", "email", "x"]
_NAMES = ["a", "b", "name", "ü", "", "a" * 500, 'q"', "\\", "\n", "additional", "$ref", "a-b", "a_b", "-", "root"]


def _random(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.choice(_KINDS if depth < 5 else _LEAVES)
    made: Any = kind(rng, depth)
    if isinstance(made, dict) and rng.random() < 0.03:
        made[rng.choice(["$ref", "type", "enum", "const", "minimum", "default", "title", "not", "nullable"])] = _odd(
            rng
        )
    return made


def _odd(rng: random.Random) -> Any:
    if rng.random() < 0.002:
        return "\ud800"
    return rng.choice(
        [None, True, 0, -1, 10**30, "", "x", "#", "#/$defs/a", [], [[]], {}, {"a": {}}, [None, 1, "a"], 1.5]
    )


def _typed(rng: random.Random, name: str, rest: dict[str, Any]) -> dict[str, Any]:
    """Of a type, which its other keys may tell as well."""
    return rest if rng.random() < 0.2 else {"type": name, **rest}


def _number(rng: random.Random, depth: int) -> Any:
    bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]
    given: dict[str, Any] = {name: rng.choice(_NUMBERS) for name in rng.sample(bounds, rng.choice([0, 1, 2]))}
    if rng.random() < 0.4:
        least = rng.choice([-1, 1]) * odd_length(rng, 10**16)
        given = {bounds[rng.choice([0, 2])]: least, bounds[rng.choice([1, 3])]: least + odd_length(rng, 10**16)}
    elif rng.random() < 0.2:
        given = {rng.choice(bounds[:4]): rng.choice([-1, 1]) * odd_length(rng, 10**14)}
    return {"type": rng.choice(["integer", "integer", "number"]), **given}


def _string(rng: random.Random, depth: int) -> Any:
    extras: list[dict[str, Any]] = [
        {},
        {"pattern": rng.choice(_PATTERNS)},
        {"format": rng.choice(_FORMATS)},
        {"minLength": rng.choice(_SIZES), "maxLength": rng.choice(_SIZES)} if rng.random() < 0.2 else {},
        {"pattern": f"^{words(rng, 200)}$" if rng.random() < 0.7 else f"^{text(rng, 200)}$"},
        {"minLength": (least := rng.choice(_SIZES[:5])), "maxLength": least + rng.choice(_SIZES[:5])},
    ]
    return _typed(rng, "string", rng.choice(extras))


def _constant(rng: random.Random, depth: int) -> Any:
    values = [_odd(rng) for _ in range(rng.choice([0, 1, 3, 3, 200]))]
    return {"enum": values} if rng.random() < 0.6 else {"const": _odd(rng)}


def _simple(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.1:
        return rng.choice([True, False, {"type": "x"}, {"type": []}])
    return rng.choice([{}, {"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}])


def _reference(rng: random.Random, depth: int) -> Any:
    good = ["#/$defs/a", "#/$defs/b"]
    bad = [
        "#",
        "#/properties/a",
        "#/nothing",
        "http://x/y",
        "",
        "#/$defs/a/b/c",
        "#/$defs/a/anyOf/0",
        "#/$defs/b/enum/1",
    ]
    return {"$ref": rng.choice(good if rng.random() < 0.8 else bad)}


def _array(rng: random.Random, depth: int) -> Any:
    made = _typed(rng, "array", {"items": _random(rng, depth + 1)})
    if rng.random() < 0.2:
        made["items"] = [made["items"], *(_random(rng, depth + 1) for _ in range(rng.randint(0, 2)))]
    if rng.random() < 0.3:
        made |= {"minItems": (least := rng.choice(_SIZES[:4])), "maxItems": least + rng.choice(_SIZES[:4])}
    elif rng.random() < 0.1:
        made |= {"minItems": rng.choice(_SIZES), "maxItems": rng.choice(_SIZES)}
    if rng.random() < 0.2:
        made["prefixItems"] = [_random(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return made


def _object(rng: random.Random, depth: int) -> Any:
    names = rng.sample(_NAMES, rng.randint(0, 4)) + (["a" * 600] if rng.random() < 0.005 else [])
    made = _typed(rng, "object", {"properties": {name: _random(rng, depth + 1) for name in names}})
    if rng.random() < 0.7:
        made["required"] = [name for name in [*names, "other"] if rng.random() < 0.5]
    if rng.random() < 0.3:
        made["additionalProperties"] = _random(rng, depth + 1)
    if depth == 0 and rng.random() < 0.9:
        made["$defs"] = {name: _random(rng, 1) for name in ("a", "b")}
    return made


def _several(rng: random.Random, depth: int) -> Any:
    return {rng.choice(["anyOf", "oneOf", "allOf"]): [_random(rng, depth + 1) for _ in range(rng.randint(0, 4))]}


_LEAVES = [_number, _string, _constant, _simple, _reference]
_KINDS = [*_LEAVES, _array, _object, _object, _several]


def _links(rng: random.Random, n: int) -> Any:
    inside = rng.random() < 0.5
    links = ({"$ref": f"#/$defs/a{i + 1}"} for i in range(n))
    steps = [{"type": "object", "properties": {"x": link}} if inside else link for link in links]
    return {
        "$ref": "#/$defs/a0",
        "$defs": {**{f"a{i}": step for i, step in enumerate(steps)}, f"a{n}": {"type": "null"}},
    }


def _nested(rng: random.Random, n: int) -> str:
    begin, end = rng.choice(
        [
            ('{"items":', "}"),
            ('{"type":"object","properties":{"a":', "}}"),
            ('{"anyOf":[', "]}"),
            ("[", "]"),
            ('{"enum":[', "]}"),
        ]
    )
    return begin * n + "{}" + end * n


def _properties(rng: random.Random, n: int) -> Any:
    names = [rng.choice([f"p{i}", "é" * (i % 300) + str(i), f"{'-' * (i % 50)}{i}"]) for i in range(n)]
    made: dict[str, Any] = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    return made | ({"required": names} if rng.random() < 0.5 else {})


def _value_nested(rng: random.Random, n: int) -> Any:
    made: Any = {}
    for _ in range(n):
        made = {"items": made}
    return made


_BOMBS: list[Callable[[random.Random, int], Any]] = [
    _links,
    _nested,
    _nested,
    _properties,
    _properties,
    _value_nested,
    lambda rng, n: {"enum": [f"e{i}" for i in range(n)]},
    lambda rng, n: {"const": "x" * n},
    lambda rng, n: {
        "type": "string",
        "pattern": "^" + rng.choice(["(", "a", "[a]", "a?", ".*", "(a|b)", "\\("]) * n + "$",
    },
    lambda rng, n: {"type": "string", "minLength": n, "maxLength": 2 * n},
    lambda rng, n: {"type": "array", "items": {"type": "array", "maxItems": n}, "minItems": n},
    lambda rng, n: {"anyOf": [{"type": "object", "properties": {f"a{i}": {}}} for i in range(n)]},
    lambda rng, n: {"allOf": [{"properties": {f"a{i}": {"type": "string"}}} for i in range(n)]},
    lambda rng, n: {"type": "array", "prefixItems": [{}] * n},
    lambda rng, n: {"$ref": "#/" + "a/" * n},
    lambda rng, n: {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    lambda rng, n: {
        "$defs": {"a": {"properties": {"x": {"$ref": "#/$defs/a"}, "y": {"$ref": "#/$defs/a"}}}},
        "$ref": "#/$defs/a",
    },
]


def schema(rng: random.Random) -> Any:
    """A schema of some kind; a value, or JSON text."""
    kind = rng.random()
    if kind < 0.6:
        made = _random(rng)
        return json.dumps(made) if rng.random() < 0.3 or not isinstance(made, dict) else made
    if kind < 0.9:
        return rng.choice(_BOMBS)(rng, odd_length(rng, 20_000))
    return rng.choice(
        [text(rng, 300), "{", "[]", "3", "null", '"x"', "{}", '{"a":1,"a":2}', "NaN", "1e999", [], 3, None, {1: 2}]
    )
