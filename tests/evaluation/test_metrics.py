"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from otter_gguf.evaluation.metrics import (
    coherence,
    cross_entropy,
    distinct_n,
    diversity,
    ngrams,
    perplexity,
    rep_n,
    words,
)
from tests.refusals import refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mia helped Tom.", ["Mia", "helped", "Tom", "."]),
        ("Don't, he said...", ["Don't", ",", "he", "said", ".", ".", "."]),
        ("'quoted' otters’ den", ["'", "quoted", "'", "otters", "’", "den"]),
        ("a_b 12.5 naïve 水獺", ["a_b", "12", ".", "5", "naïve", "水獺"]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_ngrams() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_rep_n_counts_repeated_ngrams() -> None:
    # a b a b: the 2-grams ab, ba, ab; two of three are different, and ARGS divides by one more than there are.
    assert rep_n("a b a b", 2) == pytest.approx(100 * (1 - 2 / 4))
    assert rep_n("a b c d", 2) == pytest.approx(100 * (1 - 3 / 4))
    assert rep_n("a", 2) == 100
    assert rep_n("", 1) == 100


def test_diversity_is_a_product() -> None:
    # five different words: 4/5 * 3/4 * 2/3
    assert diversity("a b c d e") == pytest.approx(0.4)
    # a b a b a: 2-grams ab ba ab ba (2 of 4), 3-grams aba bab aba (2 of 3), 4-grams abab baba (2 of 2)
    assert diversity("a b a b a") == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)
    assert diversity("a b c") == 0
    assert diversity("") == 0


def test_diversity_of_different_words_depends_on_their_number_alone() -> None:
    for length in (4, 10, 50):
        text = " ".join(f"w{index}" for index in range(length))
        expected = math.prod((length - n + 1) / (length - n + 2) for n in (2, 3, 4))
        assert diversity(text) == pytest.approx(expected)
        assert diversity(text) < 1


def test_distinct_n_counts_over_all_texts_and_none_across_them() -> None:
    assert distinct_n(["a b", "a c"], 1) == pytest.approx(3 / 4)
    assert distinct_n(["a b", "a c"], 2) == pytest.approx(2 / 4)  # not b a
    assert distinct_n(["a b", "a b"], 2) == pytest.approx(1 / 4)
    assert distinct_n(["", " "], 1) == 0
    assert distinct_n([], 1) == 0


def test_coherence_is_a_cosine_by_row() -> None:
    prompts = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    responses = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    assert coherence(prompts, responses) == pytest.approx([1.0, math.sqrt(0.5), -1.0, 0.0])


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2,)])
def test_coherence_wants_equal_shapes(shape: tuple[int, ...]) -> None:
    with refused(ValueError, (2, 2), shape):
        coherence(np.ones((2, 2)), np.ones(shape))


def test_perplexity_of_even_choices_is_their_number() -> None:
    quarter = np.full(7, math.log(1 / 4), np.float32)
    assert perplexity(cross_entropy(quarter)) == pytest.approx(4)
    mixed = np.log(np.array([1 / 2, 1 / 8]))
    assert perplexity(cross_entropy(mixed)) == pytest.approx(4)  # the geometric mean of 2 and 8
    assert math.isnan(cross_entropy(np.empty(0)))
