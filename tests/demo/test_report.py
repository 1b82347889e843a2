"""The table and the stories side by side."""

from __future__ import annotations

import pytest

from otter_gguf.demo import report
from otter_gguf.demo.experiment import Continuation
from tests.demo.made_up import continuation, experiment


def plain(text: str, reward: float) -> str:
    return text


def marked(text: str, reward: float) -> str:
    """Zero width on screen, as colours are, and easy to take out."""
    return f"\x1b[{reward:.0f}m{text}\x1b[0m"


def test_table_shows_both_sides_and_the_difference() -> None:
    lines = report.table(experiment()).splitlines()
    assert lines[0].split() == ["plain", "guided"]
    assert lines[1].split()[3:5] == ["+0.00", "+1.00"]
    assert "+1.00 ± 0.58 (1.7 standard errors)" in lines[1]


def test_words_keep_tokens_of_a_word_together() -> None:
    text = Continuation((" un", "kind", " fox", "."), (1.0, 2.0, 3.0, 4.0), 0.0)
    assert report.words(text) == [[("un", 1.0), ("kind", 2.0)], [("fox", 3.0), (".", 4.0)]]


def test_lines_fit_the_width_unless_a_word_does_not() -> None:
    grouped = report.words(continuation("one two three extraordinarily four"))
    lines = [" ".join(text for word in line for text, _ in word) for line in report.wrap_words(grouped, 9)]
    assert lines == ["one two", "three", "extraordinarily", "four"]


def test_nothing_to_wrap() -> None:
    assert report.wrap_words([], 10) == []


def test_examples_stand_side_by_side_in_any_colour() -> None:
    bare = list(report.examples(experiment(), 2, 60, plain))
    assert sum("plain (judge" in line for line in bare) == 2
    assert all(len(line) <= 60 for line in bare)
    assert any("pushed" in line and "helped" in line for line in bare)
    painted = "\n".join(report.examples(experiment(), 2, 60, marked))
    assert "\x1b[-1m" in painted
    assert "\x1b[1m" in painted
    for code in ("\x1b[-1m", "\x1b[1m", "\x1b[0m"):
        painted = painted.replace(code, "")
    assert painted.split("\n") == bare


def test_no_more_examples_than_prompts() -> None:
    assert sum("plain (judge" in line for line in report.examples(experiment(2), 9, 60, plain)) == 2


def test_control_characters_never_reach_the_terminal() -> None:
    text = Continuation((" \x1b[2J", "x"), (0.0, 0.0), 0.0)
    assert "\x1b" not in "".join(piece for word in report.words(text) for piece, _ in word)


@pytest.mark.parametrize("width", [40, 54, 55, 79, 118])
def test_every_line_fits_the_terminal(width: int) -> None:
    lines = list(report.examples(experiment(), 2, width, plain))
    assert max(map(len, lines)) <= width
    beside = [line for line in lines if "plain (judge" in line and "guided (judge" in line]
    assert bool(beside) is (width >= 55)


def test_the_table_fits_80_columns() -> None:
    """With as many digits as there may be."""
    assert max(map(len, report.table(experiment()).splitlines())) + len("11.9") - len("1.7") < 80
