"""Python and C++ say the same of each architecture, in the same words."""

from __future__ import annotations

import pytest

from otter_gguf import _native
from otter_gguf.architectures import describe, of_gguf, supported

ONLY_IN_CPP = {
    "lm_head_bias",
    "long_factors",
    "map_biases",
    "no_windows",
    "only_experts",
    "only_fused_qkv",
    "other_norms",
    "parallel",
    "partial_rope",
    "rope_factors",
    "scaled",
    "steps_without_rope",
    "tied",
    "untied",
    "windows",
}
"""Features that keys of a file, a configuration that is refused, or llama.cpp's class alone tell."""
ROWS = _native.ARCHITECTURE_FEATURES
NAMES = sorted({describe(model_type).gguf for model_type in supported()})


def test_both_sides_know_the_same_architectures() -> None:
    assert sorted(ROWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_say_the_same_traits(name: str) -> None:
    """Of several model types with one name in a GGUF the row holds what any of them has."""
    traits = frozenset[str]().union(*(architecture.traits for architecture in of_gguf(name)))
    assert set(ROWS[name]) - ONLY_IN_CPP == traits


def test_no_word_is_left_over() -> None:
    words = {word for row in ROWS.values() for word in row}
    traits = {trait for model_type in supported() for trait in describe(model_type).traits}
    assert words == traits | ONLY_IN_CPP
    assert not traits & ONLY_IN_CPP
