"""The rewards of a given text, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
