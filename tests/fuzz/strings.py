"""Texts of every kind: runs of one character, scripts, spaces, control characters, surrogates, names of tokens."""

from __future__ import annotations

import random

MOST = 300_000
"""Characters of the longest text."""

_RUNS = [
    "a",
    "!",
    " ",
    "\n",
    "\t",
    "\r\n",
    "0",
    "1",
    "é",
    "中",
    "अ",
    "가",
    "ไ",
    "🦦",
    "\u0301",
    "\u200d",
    "'",
    "'s",
    "_",
    "A",
    "aA",
    " a",
    "  ",
    "\xa0",
    "\u3000",
    "\x00",
    "\x1b",
    "\ufffd",
    "\U0010ffff",
    "ß",
    "ǅ",
    "½",
    "٣",
    "e\u0301",
    "<",
    "▁",
    "Ġ",
    "\u2028",
    "{",
    "(",
    '"',
    "\\",
    "%",
    "-",
    "=",
    "#",
    ".",
    "\u202e",
]
_NAMES = [
    "<s>",
    "</s>",
    "<unk>",
    "<|river|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<0x41>",
    "<0x0",
    "[EMPTY_1]",
    "<more_1>",
    "<mask> ",
    " <|endoftext|>  ",
    "<|end|>",
    "<|",
]
_WORDS = [
    "The",
    " otter",
    " swims",
    " in",
    " the",
    " river",
    " 123",
    "\n",
    ", ",
    "don't",
    " I'LL",
    "  ",
    "def f(x):\n    return 1",
]
_RANGES = [
    (0, 32),
    (32, 127),
    (127, 160),
    (0xA0, 0x250),
    (0x300, 0x370),
    (0x370, 0x530),
    (0x590, 0x700),
    (0x900, 0xE00),
    (0x1100, 0x1200),
    (0x2000, 0x2070),
    (0x3000, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE100),
    (0xFE00, 0xFE10),
    (0xFFF0, 0x10000),
    (0x1F300, 0x1F700),
    (0xE0000, 0xE0080),
    (0x10FF00, 0x110000),
]


def odd_length(rng: random.Random, most: int) -> int:
    """From 1 to ``most``, each order of magnitude as likely as the others."""
    return max(1, min(most, int(most ** rng.random()) + rng.choice([0, 0, 1])))


def words(rng: random.Random, most: int) -> str:
    """What people write."""
    return "".join(rng.choices(_WORDS, k=odd_length(rng, max(1, most // 6))))[:most]


def characters(rng: random.Random, most: int) -> str:
    """Characters of two or three scripts."""
    ranges = rng.sample(_RANGES, rng.randint(1, 3))
    block = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(odd_length(rng, min(most, 500))))
    return block * (odd_length(rng, most) // len(block) + 1)


def run(rng: random.Random, most: int) -> str:
    """A run of one character."""
    return rng.choice(_RUNS) * odd_length(rng, most)


def names(rng: random.Random, most: int) -> str:
    """Names of special tokens by the thousand."""
    return "".join(rng.choices(_NAMES, k=odd_length(rng, max(1, most // 5))))


def surrogates(rng: random.Random, most: int) -> str:
    """Halves of pairs, which are no text."""
    return words(rng, most - 1) + rng.choice(["\ud800", "\udfff", "\udcff", "\ude00\ud83d"]) + rng.choice(["", "a"])


_KINDS = [words, words, characters, characters, run, run, run, names]


def text(rng: random.Random, most: int = MOST) -> str:
    """A text of at most so many characters, most of them far shorter."""
    if rng.random() < 0.02:
        return surrogates(rng, max(most, 2))[:most]
    if rng.random() < 0.2:
        return "".join(rng.choice(_KINDS)(rng, max(most // 4, 1)) for _ in range(4))[:most]
    return rng.choice(_KINDS)(rng, most)[:most]
