"""Tokenised rows, one class a kind, and the dataset of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

from torch.utils.data import Dataset

_TextRow = TypeVar("_TextRow", bound="_Text")


@dataclass(frozen=True)
class Pair:
    """A preference pair; both responses start at ``start``."""

    name: ClassVar[str] = "pairs"
    chosen: list[int]
    rejected: list[int]
    start: int
    reward: int = 0
    """Column of ``InsertionConfig.reward_labels``."""
    margin: float = 0.0
    """By how much the reward of the chosen response shall be ahead."""

    @property
    def sequences(self) -> tuple[list[int], ...]:
        return self.chosen, self.rejected

    @property
    def rewards(self) -> Sequence[int]:
        """The columns that the row trains."""
        return (self.reward,)

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it, or ``None``."""
        if self.chosen == self.rejected:
            return "'chosen' and 'rejected' are the same tokens"
        return _response_problem(self.sequences, self.start)

    def window(self, first: int, length: int) -> Pair | None:
        """The row with ``length`` tokens from ``first``; ``None`` where nothing to learn is left."""
        chosen, rejected = self.chosen[first : first + length], self.rejected[first : first + length]
        if chosen == rejected:
            return None
        return replace(self, chosen=chosen, rejected=rejected, start=self.start - first)


@dataclass(frozen=True)
class _Text:
    """A row with one response, which starts at ``start``."""

    tokens: list[int]
    start: int

    @property
    def sequences(self) -> tuple[list[int], ...]:
        return (self.tokens,)

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it, or ``None``."""
        return _response_problem(self.sequences, self.start)

    def window(self: _TextRow, first: int, length: int) -> _TextRow | None:
        """The row with ``length`` tokens from ``first``; ``None`` where nothing to learn is left."""
        return replace(self, tokens=self.tokens[first : first + length], start=self.start - first)


@dataclass(frozen=True)
class Graded(_Text):
    """A text and the reward that it deserves."""

    name: ClassVar[str] = "graded texts"
    label: float
    """From 0 to 1."""
    reward: int = 0

    @property
    def rewards(self) -> Sequence[int]:
        """The columns that the row trains."""
        return (self.reward,)


@dataclass(frozen=True)
class Classed(_Text):
    """A text and its class: one of neighbouring columns, the labels of one head."""

    name: ClassVar[str] = "classed texts"
    rewards: range
    """The head's columns."""
    label: int
    """The column of the right one."""


@dataclass(frozen=True)
class Stepped(_Text):
    """A text in steps."""

    name: ClassVar[str] = "texts in steps"
    ends: list[int]
    """Index of the last token of each step."""
    labels: list[float]
    """From 0 to 1, one a step."""
    reward: int = 0

    @property
    def rewards(self) -> Sequence[int]:
        """The columns that the row trains."""
        return (self.reward,)

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it, or ``None``."""
        before = [self.start - 1, *self.ends]
        for number, (last, end) in enumerate(zip(before, self.ends, strict=False), start=1):
            if end <= last:
                return f"step {number} has no token of its own"
        return None

    def window(self, first: int, length: int) -> Stepped | None:
        """The row with ``length`` tokens from ``first``; ``None`` where no step is whole."""
        ends = [end - first for end in self.ends if end - first < length]
        if not ends:
            return None
        tokens = self.tokens[first : first + length]
        return replace(self, tokens=tokens, start=self.start - first, ends=ends, labels=self.labels[: len(ends)])


Row = Pair | Graded | Classed | Stepped
KINDS: tuple[type[Row], ...] = (Pair, Graded, Classed, Stepped)


def _response_problem(sequences: Sequence[Sequence[int]], start: int) -> str | None:
    return "a response has no token of its own" if min(map(len, sequences)) <= start else None


@dataclass
class RewardDataset(Dataset[Row]):
    """Tokenised rows, and what tokenising them cost."""

    rows: list[Row] = field(default_factory=list)
    truncated: int = 0
    """Rows longer than ``max_length``, shortened."""
    dropped: int = 0
    """Rows left out because shortening left nothing to learn: equal responses, or no whole step."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows; the prompts of pairs count twice."""
        return sum(len(tokens) for row in self.rows for tokens in row.sequences)

    def add(self, row: Row, max_length: int) -> None:
        """Append a row, shortened where it is too long."""
        if max(map(len, row.sequences)) <= max_length:
            self.rows.append(row)
            return
        self.truncated += 1
        shortened = row.window(max(0, row.start - max_length // 2), max_length)
        if shortened is None:
            self.dropped += 1
        else:
            self.rows.append(shortened)

    def __str__(self) -> str:
        """Such as ``40 pairs, 12 graded texts, 3210 tokens, 1 cut, 0 dropped``."""
        kinds = Counter(row.name for row in self.rows)
        counts = [f"{count} {name}" for name, count in kinds.items()]
        return ", ".join([*counts, f"{self.n_tokens} tokens", f"{self.truncated} cut", f"{self.dropped} dropped"])
