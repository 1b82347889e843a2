"""The shipped insertion's two heads: what they are, and that both speak in the same unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.demo_model.stories import preference_pairs
from otter_gguf import Otter
from otter_gguf.demo import demo_files

FRESH_SEED = 911
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def foretold(llm: Otter) -> tuple[Floats, Floats]:
    """Of every token of fresh stories: its score before it is fed, and the reward behind it."""
    parts = [
        score_and_reward(llm, pair["prompt"], pair[kind])
        for pair in preference_pairs(FRESH_SEED, 12, "A")
        for kind in ("chosen", "rejected")
    ]
    scores, rewards = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    return scores, rewards


def score_and_reward(llm: Otter, prompt: str, response: str) -> tuple[npt.NDArray[np.float32], ...]:
    """(n,) each, for the response's tokens within the 64 outputs of a batch."""
    context, begin = llm.context, len(llm.tokenize(prompt)) - 1
    tokens = np.array(llm.tokenize(prompt + response)[: begin + 64], np.int32)
    places = np.arange(len(tokens), dtype=np.int32)
    context.clear()
    context.decode(tokens, places, np.zeros_like(places), places >= begin)
    scores = [context.vocabulary_scores(0, row, token[None])[0] for row, token in enumerate(tokens[begin + 1 :])]
    return np.array(scores, np.float32), context.rewards()[1:, 0].copy()


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_a_value_head_and_a_vocabulary_head_of_its_reward(llm: Otter) -> None:
    assert llm.reward_labels == ("reward",)
    assert llm.vocabulary_heads == ("next",)
    assert llm.insertion is not None
    value, scores = llm.insertion.heads
    assert scores.labels == value.labels
    assert scores.rank == 64
    assert {(head.activation, head.scale, head.shift) for head in (value, scores)} == {("tanh", (1.0,), (0.0,))}


def test_scores_foretell_rewards(foretold: tuple[Floats, Floats]) -> None:
    scores, rewards = foretold
    assert len(scores) > 500
    assert np.corrcoef(scores, rewards)[0, 1] > 0.9
    assert abs(np.corrcoef(scores, np.roll(rewards, 97))[0, 1]) < 0.5  # another token's reward


def test_scores_are_in_the_unit_of_the_reward(foretold: tuple[Floats, Floats]) -> None:
    """A factor of two either way fits worse; so would a scale that one head kept from training."""
    scores, rewards = foretold
    assert 0.8 < np.polyfit(scores, rewards, 1)[0] < 1.25
    assert abs(np.mean(scores - rewards)) < 0.1
    for factor in (0.5, 2.0):
        assert rms(scores - rewards) < rms(factor * scores - rewards)
