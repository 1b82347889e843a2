"""The rewards of a given text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ._numbers import shown
from .errors import ConfigError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Score:
    """A scored text: prompt and response as one sequence of tokens."""

    labels: tuple[str, ...]
    """What each column of ``rewards`` means."""
    tokens: Int32
    """(n,) token ids."""
    pieces: tuple[bytes, ...]
    """The bytes of each token; a character may be split over several."""
    rewards: Float32
    """(n, n_rewards): the rewards of the text that ends with the token."""
    n_prompt: int
    """How many of the tokens are the prompt's."""

    @property
    def reward(self) -> float:
        """The first label's reward of the whole text."""
        return float(self.rewards[-1, 0])

    @property
    def final(self) -> dict[str, float]:
        """Every label's reward of the whole text."""
        return dict(zip(self.labels, self.rewards[-1].tolist(), strict=True))

    @property
    def response_rewards(self) -> Float32:
        """(n - n_prompt, n_rewards): the rows of the response's tokens."""
        return self.rewards[self.n_prompt :]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; bytes that are no text become U+FFFD."""
        return {
            "labels": list(self.labels),
            "tokens": self.tokens.tolist(),
            "pieces": [piece.decode("utf-8", errors="replace") for piece in self.pieces],
            "token_rewards": self.rewards.tolist(),
            "n_prompt": self.n_prompt,
            "reward": self.reward,
        }


class Ranked(TypedDict):
    """One of the documents of a ranking."""

    index: int
    """Which of those that were given."""
    relevance_score: float
    """Its reward as the response to the query."""
    document: str


def with_query(query: str, documents: Sequence[str]) -> list[tuple[str, str]]:
    """What is scored of a ranking. ``ConfigError`` if the documents are no list of texts."""
    if not isinstance(documents, (list, tuple)) or not all(isinstance(one, str) for one in documents):
        raise ConfigError(f"documents is {shown(documents)}, expected a list of texts")
    return [(query, one) for one in documents]


def ranked(
    scores: Sequence[Score], documents: Sequence[str], label: str | None = None, top_n: int | None = None
) -> list[Ranked]:
    """Documents by their rewards, best first; equal ones in the order in which they were given.

    ``ConfigError`` if there is no such label, or ``top_n`` is no number of documents.
    """
    if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
        raise ConfigError(f"top_n is {shown(top_n)}, expected a whole number of at least 1")
    labels = scores[0].labels if scores else ()
    if label is not None and scores and label not in labels:
        raise ConfigError(f"label is {shown(label)}, the model predicts: {', '.join(labels)}")
    column = labels.index(label) if label is not None and scores else 0
    rewards = [float(score.rewards[-1, column]) for score in scores]
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])[:top_n]
    return [{"index": i, "relevance_score": rewards[i], "document": documents[i]} for i in order]
