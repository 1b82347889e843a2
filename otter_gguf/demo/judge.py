"""The demo's judge: counts kind and unkind words of a story by rule, with negation.

It is independent of the guide: no weights, no training, no access to rewards or to the preference pairs. Half of its
words are `unseen`: they occur nowhere in the pairs that taught the reward, so a gain in them cannot be the reward
repeating its lessons. What it measures and where it errs: ``docs/demo.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

WordSet = Literal["all", "unseen"]

_WORDS = Path(__file__).with_name("judge_words.json")
_CLAUSE = re.compile(r"[.,;:!?\"]+")


@dataclass(frozen=True)
class Verdict:
    """Kind and unkind words found in a text."""

    kind: int
    unkind: int

    @property
    def score(self) -> float:
        """(kind - unkind) / (kind + unkind): -1 unkind throughout, +1 kind throughout, 0 balanced or nothing found."""
        total = self.kind + self.unkind
        return (self.kind - self.unkind) / total if total else 0.0


@dataclass(frozen=True)
class Judge:
    """Word patterns of each polarity; ``*`` at the end of a word stands for any ending."""

    kind: tuple[str, ...]
    unkind: tuple[str, ...]
    negations: frozenset[str]
    clause_breaks: frozenset[str]
    _kind: re.Pattern[str] = field(init=False, repr=False)
    _unkind: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kind", _pattern(self.kind))
        object.__setattr__(self, "_unkind", _pattern(self.unkind))

    @classmethod
    def load(cls, words: WordSet = "all") -> Judge:
        """The shipped word lists: all of them, or only those that the preference pairs never contain."""
        data = json.loads(_WORDS.read_text(encoding="utf-8"))
        groups = ("taught", "unseen") if words == "all" else ("unseen",)
        kind, unkind = (tuple(word for group in groups for word in data[side][group]) for side in ("kind", "unkind"))
        return cls(kind, unkind, frozenset(data["negations"]), frozenset(data["clause_breaks"]))

    def verdict(self, text: str) -> Verdict:
        """Counts over a text; a word after a negation in its clause counts for the other side."""
        kind = unkind = 0
        for plain, negated in map(self._cut_at_negation, self._clauses(text)):
            kind += len(self._kind.findall(plain)) + len(self._unkind.findall(negated))
            unkind += len(self._unkind.findall(plain)) + len(self._kind.findall(negated))
        return Verdict(kind, unkind)

    def score(self, text: str) -> float:
        """:attr:`Verdict.score` of a text."""
        return self.verdict(text).score

    def _clauses(self, text: str) -> Iterable[list[str]]:
        for part in _CLAUSE.split(text.lower()):
            clause: list[str] = []
            for word in part.split():
                if word in self.clause_breaks:
                    yield clause
                    clause = []
                else:
                    clause.append(word)
            yield clause

    def _cut_at_negation(self, clause: list[str]) -> tuple[str, str]:
        """What stands before the clause's first negation, and what stands behind it."""
        cut = next((index for index, word in enumerate(clause) if word in self.negations), len(clause))
        return " ".join(clause[:cut]), " ".join(clause[cut:])


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in words)
    return re.compile(rf"\b(?:{alternatives})\b")
