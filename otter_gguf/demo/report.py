"""The demo's result for a terminal: a table, and stories side by side with each token coloured by its reward."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from ..text import terminal_safe
from .experiment import Continuation, Difference, Experiment

Paint = Callable[[str, float], str]
"""Text and its reward to coloured text; the width on screen must not change."""
Word = list[tuple[str, float]]
"""Pieces without a break between them, each with its reward."""

_GAP = "   "
_LEAST_COLUMN = 26  # a title has 20 characters


def table(experiment: Experiment) -> str:
    """The figures of both sides."""
    plain, guided = experiment.plain.to_dict(), experiment.guided.to_dict()
    rows = [
        ("judge, all words", "judge_mean", "+.2f", _difference(experiment.difference)),
        ("judge, unseen words", "judge_unseen_mean", "+.2f", _difference(experiment.unseen_difference)),
        ("reward at the end", "reward_mean", "+.2f", ""),
        ("different word triples", "distinct_3", ".0%", ""),
        ("ms per token", "ms_per_token", ".2f", f"{guided['ms_per_token'] / plain['ms_per_token']:.2f} times"),
    ]
    lines = [f"{'':24}{'plain':>6}{'guided':>8}"]  # 80 columns with the longest remark
    for title, key, form, remark in rows:
        lines.append(f"{title:24}{format(plain[key], form):>6}{format(guided[key], form):>8}  {remark}".rstrip())
    return "\n".join(lines)


def _difference(difference: Difference) -> str:
    return f"{difference.mean:+.2f} ± {difference.error:.2f} ({difference.in_errors:.1f} standard errors)"


def examples(experiment: Experiment, count: int, width: int, paint: Paint) -> Iterator[str]:
    """Lines that show the first stories: the prompt, then plain and guided beside each other, or one after the other
    where there is no room for two columns."""
    beside = width >= 2 * _LEAST_COLUMN + len(_GAP)
    column = (width - len(_GAP)) // 2 if beside else width
    sides = {"plain": experiment.plain, "guided": experiment.guided}
    for index in range(min(count, len(experiment.prompts))):
        yield ""
        yield from textwrap.wrap(terminal_safe(experiment.prompts[index]), width)
        titles = [f"{name} (judge {side.scores[index]:+.2f})" for name, side in sides.items()]
        columns = [wrap_words(words(side.continuations[index]), column) for side in sides.values()]
        if beside:
            yield (titles[0].ljust(column) + _GAP + titles[1]).rstrip()
            for left, right in zip_longest(*columns, fillvalue=[]):
                yield (_line(left, column, paint) + _GAP + _line(right, 0, paint)).rstrip()
            continue
        for title, lines in zip(titles, columns, strict=True):
            yield title
            yield from (_line(line, 0, paint) for line in lines)


def words(continuation: Continuation) -> list[Word]:
    """The pieces of a text grouped into words; the space between two words is left out."""
    grouped: list[Word] = []
    for piece, reward in zip(continuation.pieces, continuation.rewards, strict=True):
        text = terminal_safe(piece)
        if text[:1].isspace() or not grouped:
            grouped.append([])
        grouped[-1].append((text.strip(), reward))
    return grouped


def wrap_words(grouped: Sequence[Word], width: int) -> list[list[Word]]:
    """Lines of words that fit the width; a longer word has a line of its own."""
    lines: list[list[Word]] = []
    room = -1
    for word in grouped:
        length = _length(word)
        if length > room or not lines:
            lines.append([])
            room = width
        lines[-1].append(word)
        room -= length + 1
    return lines


def _length(word: Word) -> int:
    return sum(len(text) for text, _ in word)


def _line(line: Sequence[Word], width: int, paint: Paint) -> str:
    """A line of coloured words, padded to the width on screen."""
    shown = " ".join("".join(paint(text, reward) for text, reward in word) for word in line)
    used = sum(map(_length, line)) + max(0, len(line) - 1)
    return shown + " " * max(0, width - used)
