"""The judge: what it counts, negation, and its independence of what the reward was taught."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from benchmarks.demo_model.stories import corpus, draw_cast, grammar, preference_pairs
from otter_gguf.demo import Judge, Verdict

GOOD = {"kind", "happy", "more kind", "turn good", "good end"}
BAD = {"unkind", "sad", "more unkind", "turn bad", "bad end"}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def unseen() -> Judge:
    return Judge.load("unseen")


def tone_lines(n_drawn: int = 20) -> Iterator[tuple[str, str, str]]:
    """Part, group and text of every tone line of the grammar, each drawn several times."""
    rng = random.Random(0)
    for parts in grammar().values():
        for name, lines in parts.items():
            part, _, group = name.rpartition(" ")
            for line in lines if part in GOOD | BAD else []:
                for _ in range(n_drawn):
                    yield part, group, draw_cast(rng).say(rng, line)


@pytest.mark.parametrize(
    ("text", "kind", "unkind"),
    [
        ("Mia helped Tom and smiled.", 2, 0),
        ("Mia pushed Tom and laughed at him.", 0, 2),
        ("They laughed together.", 1, 0),
        ("They laughed.", 0, 0),
        ("Mia did not help Tom.", 0, 1),
        ("Mia did not tease Tom.", 1, 0),
        ("Nobody smiled, and Tom was sad.", 0, 2),
        ("Mia did not wait and helped Tom.", 1, 0),
        ("Mia did not wait. She helped Tom.", 1, 0),
        ("Hugo liked yellow kites.", 0, 0),
        ("MIA HUGGED TOM!", 1, 0),
        ("", 0, 0),
    ],
)
def test_counts(judge: Judge, text: str, kind: int, unkind: int) -> None:
    assert judge.verdict(text) == Verdict(kind, unkind)


def test_score_runs_from_unkind_to_kind(judge: Judge) -> None:
    assert judge.score("He helped.") == 1
    assert judge.score("He pushed.") == -1
    assert judge.score("He helped. He pushed.") == 0
    assert judge.score("He walked.") == 0


def test_words_match_whole(judge: Judge) -> None:
    assert judge.verdict("meaning badger sadder kindle") == Verdict(0, 0)


def test_every_tone_line_is_judged_by_its_tone(judge: Judge) -> None:
    for part, _, text in tone_lines():
        if part == "turn good":  # tells of the wrong that is put right
            assert judge.verdict(text).kind > 0, text
        else:
            assert judge.score(text) == (1 if part in GOOD else -1), text


def test_unseen_words_are_the_words_of_group_b(judge: Judge, unseen: Judge) -> None:
    for _, group, text in tone_lines():
        expected = judge.verdict(text) if group == "B" else Verdict(0, 0)
        assert unseen.verdict(text) == expected, text


def test_pairs_that_taught_the_reward_hold_no_unseen_word(unseen: Judge) -> None:
    for pair in preference_pairs(20242, 3000, "A"):
        for text in pair.values():
            assert unseen.verdict(text) == Verdict(0, 0), text


def test_prompts_give_the_judge_nothing(judge: Judge) -> None:
    for story in corpus(11, 2000):
        assert judge.verdict(story.prompt) == Verdict(0, 0), story.prompt


def test_base_corpus_holds_unseen_words_of_both_kinds(unseen: Judge) -> None:
    verdicts = [unseen.verdict(story.continuation) for story in corpus(11, 500)]
    assert sum(verdict.kind for verdict in verdicts) > 200
    assert sum(verdict.unkind for verdict in verdicts) > 200


def test_judge_agrees_with_the_tone_of_whole_stories(judge: Judge) -> None:
    stories = [story for story in corpus(13, 2000) if story.tone]
    right = sum((judge.score(story.continuation) > 0) == (story.tone == "kind") for story in stories)
    assert right / len(stories) > 0.85  # turns leave some stories mixed
