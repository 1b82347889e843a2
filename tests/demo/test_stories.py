"""The grammar and what is drawn from it."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from benchmarks.demo_model.stories import (
    ANY_SCENE,
    GROUPS,
    Cast,
    Person,
    Tone,
    corpus,
    draw_cast,
    grammar,
    preference_pairs,
    scene_names,
    write_continuation,
)

TONE_PARTS = {"kind", "unkind"}
GENERAL_PARTS = TONE_PARTS | {
    "happy",
    "sad",
    "more kind",
    "more unkind",
    "turn good",
    "turn bad",
    "good end",
    "bad end",
}


def girl_and_boy(scene: str = "kite") -> Cast:
    mia, tom = Person("Mia", "girl", "she", "her", "her"), Person("Tom", "fox", "he", "him", "his")
    return Cast(scene, mia, tom, {"food": "pie", "toy": "ball", "color": "red", "thing": "map", "place": "the hill"})


def test_every_tone_part_has_both_groups() -> None:
    for scene in grammar():
        parts = GENERAL_PARTS if scene == ANY_SCENE else TONE_PARTS
        for part in parts:
            for group in GROUPS:
                assert grammar()[scene][f"{part} {group}"], (scene, part, group)


def test_every_scene_has_places_and_problems() -> None:
    assert len(scene_names()) >= 15
    for scene in scene_names():
        assert len(grammar()[scene]["places"]) == 1
        assert len(grammar()[scene]["problem"]) >= 3


def test_text_is_clean() -> None:
    for story in corpus(7, 500):
        assert not re.search(r"[{}()|]|  | [.,!?]|\.\.", story.text), story.text
        assert story.prompt[-1] in '.!?"'
        assert story.continuation[-1] in '.!?"'


def test_choices_and_slots() -> None:
    said = {girl_and_boy().say(random.Random(seed), "{a} ran (up|) to {b.full}, {a.His} {toy}.") for seed in range(20)}
    assert said == {"Mia ran up to Tom the fox, Her ball.", "Mia ran to Tom the fox, Her ball."}


def test_unknown_slot_is_an_error() -> None:
    with pytest.raises(KeyError):
        girl_and_boy().say(random.Random(0), "{c} ran.")


def test_same_seed_same_stories_and_another_seed_others() -> None:
    assert list(corpus(3, 50)) == list(corpus(3, 50))
    assert set(corpus(3, 50)).isdisjoint(corpus(4, 50))


def test_tones_are_even_and_prompts_do_not_tell() -> None:
    stories = list(corpus(5, 4000))
    assert 0.45 < sum(story.tone == "kind" for story in stories) / len(stories) < 0.55
    tones: dict[str, list[bool]] = {}
    for story in stories:
        for word in set(story.prompt.split()):
            tones.setdefault(word, []).append(story.tone == "kind")
    frequent = {word: sum(seen) / len(seen) for word, seen in tones.items() if len(seen) >= 200}
    assert len(frequent) > 50
    assert all(0.37 < share < 0.63 for share in frequent.values()), frequent


def test_she_and_he_are_never_mixed_up() -> None:
    rng = random.Random(1)
    for _ in range(100):
        cast = draw_cast(rng)
        assert {cast.a.he, cast.b.he} == {"she", "he"}


def test_turn_changes_the_tone_and_no_turn_keeps_it() -> None:
    turns: tuple[tuple[Tone, Tone], ...] = (("kind", "unkind"), ("unkind", "kind"))
    for tone, other in turns:
        rng = random.Random(2)
        assert write_continuation(rng, girl_and_boy(), tone, turn=1.0)[1] == other
        assert write_continuation(rng, girl_and_boy(), tone, turn=0.0)[1] == tone


def test_pairs_share_the_prompt_and_differ_in_the_rest() -> None:
    for pair in preference_pairs(9, 200, "A"):
        assert pair.keys() == {"prompt", "chosen", "rejected"}
        assert pair["chosen"] != pair["rejected"]
        assert pair["chosen"][0] == pair["rejected"][0] == " "


def test_pairs_of_a_group_use_its_lines_alone() -> None:
    everything = " ".join(pair["chosen"] + pair["rejected"] for pair in islice(preference_pairs(9, 500, "A"), 500))
    assert "smiled" in everything
    assert "pushed" in everything
    assert "sneered" not in everything
    assert "hugged" not in everything
