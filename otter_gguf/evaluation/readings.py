"""What the model itself says of finished texts, all read in one way, whatever generated them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..context.batches import common_length
from ..errors import ConfigError
from .metrics import cross_entropy

if TYPE_CHECKING:
    from ..model import Otter


@dataclass(frozen=True)
class Reading:
    """One response behind its prompt. Both are tokenized as one text."""

    cross_entropy: float
    """Mean of -ln p of the response's tokens under the base, at temperature 1, in nats; NaN without tokens."""
    token_rewards: tuple[float, ...] | None
    """The guide's, behind each of the response's tokens; None for a model without rewards."""
    reward: float | None
    """The guide's for the whole text."""


def read_texts(
    llm: Otter,
    texts: Iterable[tuple[str, str]],
    label: str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> list[Reading]:
    """Read (prompt, response) pairs.

    Args:
        llm: The base, with the insertion that gives the rewards if there is one.
        texts: Pairs. What does not fit the context is cut.
        label: Which reward; None = the first.
        progress: Called after each text.

    Raises:
        ConfigError: There is no such label.
    """
    column = reward_column(llm.reward_labels, label)
    readings = []
    for prompt, response in texts:
        readings.append(_read(llm, prompt, response, column))
        progress()
    return readings


def reward_column(labels: Sequence[str], label: str | None) -> int | None:
    """The column of a label, of the first where none is named; None where there are no rewards at all.

    ``ConfigError`` names the labels there are.
    """
    if label is None:
        return 0 if labels else None
    if label not in labels:
        known = ", ".join(labels) or "none"
        raise ConfigError(f"--label {label}: the model predicts no such reward; there are: {known}")
    return labels.index(label)


def _read(llm: Otter, prompt: str, response: str, column: int | None) -> Reading:
    alone, tokens = (llm.tokenize(text, special=True)[: llm.n_ctx] for text in (prompt, prompt + response))
    n_prompt = common_length(alone, tokens)
    log_p = llm.engine.read([tokens], "log_probabilities")[0][max(0, n_prompt - 1) :]
    if column is None:
        return Reading(cross_entropy(log_p), None, None)
    rewards = llm.score(tokens).rewards[:, column]
    return Reading(cross_entropy(log_p), tuple(rewards[n_prompt:].tolist()), float(rewards[-1]))
