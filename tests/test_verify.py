"""The proof of non-disruption, and that it would notice a disruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, MismatchError
from otter_gguf.gguf.merge import merge
from otter_gguf.options import LoadOptions
from otter_gguf.verify import Comparison, manual_text, verify
from tests.refusals import refused
from tests.synthetic_models import pair

ONE_THREAD = LoadOptions(n_threads=1)


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0", "Q4_0"])
def test_logits_are_identical(type: str) -> None:
    files = pair(type)
    result = verify(files.base, files.otter, options=ONE_THREAD)
    assert result.identical
    assert result.max_abs_diff == 0
    assert result.logits_compared >= 1_000_000
    assert result.rewards * 320 == result.logits_compared
    settings = [(comparison.mode, comparison.flash_attn) for comparison in result.comparisons]
    assert settings == [("prompt", "off"), ("decode", "off"), ("prompt", "on"), ("decode", "on")]


def test_merged_file(tmp_path: Path) -> None:
    files = pair()
    merge(files.base, files.otter, tmp_path / "merged.gguf")
    assert verify(tmp_path / "merged.gguf", min_logits=10_000, options=ONE_THREAD).identical


@pytest.mark.parametrize("cache", ["f32", "q8_0"])
def test_cache_types(cache: Any) -> None:
    options = LoadOptions(n_threads=1, type_k=cache, type_v=cache)
    result = verify(*pair(), min_logits=50_000, options=options)
    assert result.identical
    assert len(result.comparisons) == (4 if cache == "f32" else 2)


def test_progress_counts_all_logits() -> None:
    seen: list[int] = []
    result = verify(*pair(), min_logits=50_000, options=ONE_THREAD, progress=seen.append, text="Otters. " * 9)
    assert sum(seen) == result.logits_compared


def test_a_single_bit_is_noticed() -> None:
    comparison = Comparison("decode", "off")
    stock = np.linspace(-3, 3, 1000, dtype=np.float32)
    ours = stock.copy()
    comparison.add(ours, stock)
    assert (comparison.differing, comparison.max_abs_diff) == (0, 0)
    ours[500] = np.nextafter(ours[500], np.float32(9))
    comparison.add(ours, stock)
    assert comparison.differing == 1
    assert 0 < comparison.max_abs_diff < 1e-8
    assert comparison.logits == 2000


def test_zeros_of_two_signs_and_nan_count_as_differences() -> None:
    comparison = Comparison("decode", "off")
    comparison.add(np.asarray([0.0, np.nan], np.float32), np.asarray([-0.0, 1.0], np.float32))
    assert comparison.differing == 2
    assert comparison.max_abs_diff == float("inf")


def test_nothing_to_verify() -> None:
    with refused(ConfigError, pair().base, "--otter"):
        verify(pair().base)
    with refused(ConfigError, "verify", "text"):
        verify(*pair(), text="", options=ONE_THREAD)


def test_a_sidecar_of_another_base_is_refused() -> None:
    with pytest.raises(MismatchError):
        verify(pair(seed=1).base, pair().otter)


def test_manual_is_long() -> None:
    assert len(manual_text()) > 100_000
