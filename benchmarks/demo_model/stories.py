"""Short stories from the grammar beside this file: the demo model's whole world.

A story has a prompt (who, where, what went wrong) and a continuation whose tone is kind or unkind, half of the time
each, and which may turn in the middle. Nothing in the prompt gives the tone away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Tone = Literal["kind", "unkind"]
Group = Literal["A", "B"]
GROUPS: tuple[Group, ...] = ("A", "B")
ANY_SCENE = "any"

_GRAMMAR = Path(__file__).with_name("grammar.txt")
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")

GIRLS = "Mia Lily Anna Rosa Ella Nora Zoe Ruby Sara Amy Lucy Clara Ivy Maya Hana Tess".split()
BOYS = "Tom Ben Max Leo Sam Jack Finn Theo Omar Noah Eli Felix Ravi Otto Kai Luke".split()
ANIMALS = "fox rabbit bear mouse duck squirrel hedgehog turtle badger frog goat raccoon beaver lamb".split()
FILLERS = {
    "food": "bread cheese cake pie honey corn fruit candy".split(),
    "toy": "ball doll drum train bear robot puzzle puppet".split(),
    "color": "red blue green yellow white brown black gray".split(),
    "thing": "notebook letter picture map book hat".split(),
}
_PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}

# How often each optional part of a story occurs.
HABIT, OWN_SCENE, REACTION, TURN, MORE, SECOND_REACTION, ENDING = 0.6, 0.6, 0.9, 0.15, 0.75, 0.5, 0.9

Parts = dict[str, list[str]]


@dataclass(frozen=True)
class Person:
    """A character; the fields are what the grammar's ``{a.…}`` and ``{b.…}`` may name."""

    name: str
    species: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:  # noqa: N802 (the grammar's spelling: capital letter in, capital letter out)
        return self.he.capitalize()

    @property
    def His(self) -> str:  # noqa: N802
        return self.his.capitalize()

    @property
    def full(self) -> str:
        return self.name if self.species in _PRONOUNS else f"{self.name} the {self.species}"


@dataclass(frozen=True)
class Story:
    """One story; ``prompt`` and ``continuation`` are joined by a space."""

    prompt: str
    continuation: str
    tone: Tone
    """Tone at the end of the continuation."""

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.continuation}"


@dataclass(frozen=True)
class Cast:
    """What stays the same throughout a story: a scene, two characters, a food, a toy, a colour, a thing."""

    scene: str
    a: Person
    b: Person
    fillers: dict[str, str]

    def say(self, rng: random.Random, line: str) -> str:
        """A grammar line with its choices made and its slots filled."""
        while _CHOICE.search(line):
            line = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), line)
        text = line.format(a=self.a, b=self.b, **self.fillers)
        return re.sub(r" +(?=[ .,!?])", "", text)


@cache
def grammar() -> dict[str, Parts]:
    """Scene name -> part -> lines."""
    scenes: dict[str, Parts] = {}
    parts: Parts = {}
    for line in _GRAMMAR.read_text().splitlines():
        if line.startswith("# "):
            parts = scenes.setdefault(line[2:], {})
        elif line and not line.startswith(";"):
            part, text = line.split(": ", 1)
            parts.setdefault(part, []).append(text)
    return scenes


def scene_names() -> list[str]:
    """Every scene but the one that fits all."""
    return [name for name in grammar() if name != ANY_SCENE]


def draw_cast(rng: random.Random) -> Cast:
    """Two characters of one world (children or animals) in one scene; one she, one he, so that pronouns are clear."""
    scene = rng.choice(scene_names())
    animals = rng.random() < 0.5
    people = [
        Person(rng.choice(names), rng.choice(species) if animals else sex, *_PRONOUNS[sex])
        for sex, names, species in (("girl", GIRLS, ANIMALS[::2]), ("boy", BOYS, ANIMALS[1::2]))
    ]
    rng.shuffle(people)
    fillers = {slot: rng.choice(values) for slot, values in FILLERS.items()}
    fillers["place"] = rng.choice(grammar()[scene]["places"][0].split("|"))
    return Cast(scene, people[0], people[1], fillers)


def write_prompt(rng: random.Random, cast: Cast) -> str:
    """Opening, perhaps a habit, setting, problem."""
    general = grammar()[ANY_SCENE]
    lines = [rng.choice(general["opening"])]
    if rng.random() < HABIT:
        lines.append(rng.choice(general["habit"]))
    lines += [rng.choice(general["setting"]), rng.choice(grammar()[cast.scene]["problem"])]
    return " ".join(cast.say(rng, line) for line in lines)


def write_continuation(
    rng: random.Random, cast: Cast, tone: Tone, groups: Sequence[Group] = GROUPS, turn: float = TURN
) -> tuple[str, Tone]:
    """What the first character does about it, and what comes of it; the text and its tone at the end."""
    general = grammar()[ANY_SCENE]
    sentences: list[str] = []

    def add(part: str, chance: float = 1.0, parts: Parts = general) -> None:
        if rng.random() < chance:
            sentences.append(cast.say(rng, rng.choice(parts[f"{part} {rng.choice(groups)}"])))

    add(tone, parts=grammar()[cast.scene] if rng.random() < OWN_SCENE else general)
    add(_reaction(tone), REACTION)
    if rng.random() < turn:
        tone = "unkind" if tone == "kind" else "kind"
        add("turn good" if tone == "kind" else "turn bad")
        add(_reaction(tone), REACTION)
    add(f"more {tone}", MORE)
    add(_reaction(tone), SECOND_REACTION)
    add("good end" if tone == "kind" else "bad end", ENDING)
    return " ".join(sentences), tone


def _reaction(tone: Tone) -> str:
    return "happy" if tone == "kind" else "sad"


def draw_story(rng: random.Random) -> Story:
    """A story as the base model sees them: either tone, both groups, turns included."""
    cast = draw_cast(rng)
    prompt = write_prompt(rng, cast)
    continuation, tone = write_continuation(rng, cast, rng.choice(("kind", "unkind")))
    return Story(prompt, continuation, tone)


def corpus(seed: int, count: int) -> Iterator[Story]:
    """``count`` stories, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield draw_story(rng)


def preference_pairs(seed: int, count: int, group: Group) -> Iterator[dict[str, str]]:
    """Pairs in TRL's columns: one prompt, a kind and an unkind continuation, both from one group, without turns."""
    rng = random.Random(seed)
    for _ in range(count):
        cast = draw_cast(rng)
        prompt = write_prompt(rng, cast)
        chosen, _ = write_continuation(rng, cast, "kind", (group,), turn=0.0)
        rejected, _ = write_continuation(rng, cast, "unkind", (group,), turn=0.0)
        yield {"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected}
