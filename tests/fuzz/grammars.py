"""Grammars (GBNF): well-formed ones, broken ones, and those that blow up."""

from __future__ import annotations

import random
from collections.abc import Callable

from .strings import odd_length, text

_CLASSES = [
    "[a-z]",
    "[^x]",
    ".",
    "[0-9A-F]",
    r"[\x00-\U0010FFFF]",
    r"[\n\t ]",
    "[^\\n]",
    "[]",
    "[a-]",
    "[z-a]",
    "[é中🦦]",
]
_REPEATS = [
    "*",
    "+",
    "?",
    "{2}",
    "{0,3}",
    "{1,}",
    "{0}",
    "{3,1}",
    "{1000}",
    "{0,99999999999}",
    "{,5}",
    "{2,2000}",
    "**",
    "{0,}{0,}",
]


def _random(rng: random.Random) -> str:
    names = ["root", *(f"r{i}" for i in range(rng.randint(0, 6)))]
    rules = [f"{name} ::= {_alternatives(rng, names, 0)}" for name in names]
    if rng.random() < 0.1:
        rules.pop(rng.randrange(len(rules)))
    return rng.choice(["\n", "\n\n", "\r\n"]).join(rules)


def _alternatives(rng: random.Random, names: list[str], depth: int) -> str:
    parts = [_sequence(rng, names, depth) for _ in range(rng.choice([1, 1, 2, 3]))]
    return " | ".join(parts) + rng.choice(["", "", "", " |"])


def _sequence(rng: random.Random, names: list[str], depth: int) -> str:
    return " ".join(_item(rng, names, depth) for _ in range(rng.choice([0, 1, 1, 2, 4])))


def _item(rng: random.Random, names: list[str], depth: int) -> str:
    kind = rng.random()
    if kind < 0.3:
        item = rng.choice(_CLASSES)
    elif kind < 0.5:
        item = '"' + text(rng, 20).replace('"', '\\"').replace("\\", "\\\\") + '"'
    elif kind < 0.75 or depth > 4:
        item = rng.choice(names)
    elif kind < 0.78:
        item = rng.choice(["<[1]>", "!<[2]>", "<s>", "!<s>", "<[99999999999]>", "undefined", "<nothing>"])
    else:
        item = f"({_alternatives(rng, names, depth + 1)})"
    return item + (rng.choice(_REPEATS) if rng.random() < 0.3 else "")


_BOMBS: list[Callable[[random.Random, int], str]] = [
    lambda rng, n: "root ::= " + "(" * n + '"a"' + ")" * n,
    lambda rng, n: "root ::= " + "(" * n,
    lambda rng, n: 'root ::= "a"' + "{0,9}" * min(n, 50),
    lambda rng, n: f'root ::= ("a"{{0,{n}}}){{0,{n}}}',
    lambda rng, n: "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(n)) + f'\nr{n} ::= "a"',
    lambda rng, n: (
        "root ::= r0\n" + "\n".join(f'r{i} ::= r{i + 1} "a" | r{i + 1}' for i in range(n)) + f'\nr{n} ::= "a"'
    ),
    lambda rng, n: "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(n)) + f"\nr{n} ::= [^x]?",
    lambda rng, n: 'root ::= root "a" | "a"',
    lambda rng, n: "root ::= root?" + " root?" * (n % 20),
    lambda rng, n: "root ::= s\ns ::= [^x] s s s | [^x] s s | [^x] s | [^x]",
    lambda rng, n: "root ::= " + " | ".join(["[^x]+"] * n),
    lambda rng, n: "root ::= " + " ".join(["[^x]*"] * n),
    lambda rng, n: "root ::= " + " ".join(["[^x]?"] * n),
    lambda rng, n: f'root ::= "{"a" * n}"',
    lambda rng, n: f"root ::= [{'a' * n}]",
    lambda rng, n: "root ::= ([^x]*)*" + "*" * (n % 5),
    lambda rng, n: 'root ::= "\\U0010FFFF" "\\xff" "\\u12" "\\',
    lambda rng, n: "#" * n,
]


def _of_tokens(rng: random.Random) -> str:
    """Tokens by their ids or names, which must be one token each; none holds for long."""
    names = ["<[3]>", "<[5]>", "!<[5]>", "!<[287]>", "<[288]>", "<s>", "!</s>", "<more_1>", "<|river|>"]
    items = [rng.choice(names) + rng.choice(["", "", "*", "+", "{2}"]) for _ in range(rng.randint(1, 3))]
    return "root ::= " + rng.choice([" ", " | "]).join([*items, rng.choice(["", "", ".*", "[^x]", '"a"'])]).strip(" |")


def grammar(rng: random.Random) -> str:
    """A grammar of some kind."""
    kind = rng.random()
    if kind < 0.1:
        return _of_tokens(rng)
    if kind < 0.6:
        return _random(rng)
    if kind < 0.9:
        return rng.choice(_BOMBS)(rng, odd_length(rng, 20_000))
    return f"root ::= {text(rng, 3000)}" if kind < 0.95 else text(rng, 3000)
