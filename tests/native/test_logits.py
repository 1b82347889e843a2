"""Functions of a row of logits against numpy in double."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError
from tests.native.helpers import Float32, Int32
from tests.refusals import refused

INF = np.inf


def row(size: int, scale: float = 3.0, seed: int = 0) -> Float32:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def sorted_head(keys: Float32, k: int) -> Int32:
    """The k highest keys' places, equal ones in order."""
    order = np.argsort(-keys, kind="stable")[:k]
    return order[keys[order] > -INF].astype(np.int32)


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 1000, 128256])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_log_sum_exp_and_entropy(size: int, scale: float) -> None:
    logits = row(size, scale)
    wide = logits.astype(np.float64) - logits.max()
    total = np.log(np.exp(wide).sum())
    p = np.exp(wide - total)
    assert _native.log_sum_exp(logits) == pytest.approx(total + logits.max(), rel=1e-7, abs=1e-7)
    assert _native.entropy(logits) == pytest.approx(total - (p * wide).sum(), rel=1e-6, abs=1e-6)


def test_extreme_logits() -> None:
    logits = np.asarray([-INF, 0.0, -INF, 0.0, -1e30, -87.2, -88.1, -200.0], np.float32)
    assert _native.log_sum_exp(logits) == pytest.approx(np.log(2.0), abs=1e-12)
    assert _native.entropy(logits) == pytest.approx(np.log(2.0), abs=1e-12)
    one = np.asarray([-INF, 3e38, -INF], np.float32)
    assert _native.log_sum_exp(one) == float(np.float32(3e38))
    assert _native.entropy(one) == 0.0
    assert _native.log_sum_exp(np.full(3, -INF, np.float32)) == -INF
    far = np.zeros(1000, np.float32)
    far[:3] = (-20.0, -50.0, -80.0)
    exact = np.log(np.exp(far.astype(np.float64)).sum())
    assert _native.log_sum_exp(far) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("function", [_native.log_sum_exp, _native.entropy])
def test_what_has_no_sum_is_refused(function: Callable[[Float32], float]) -> None:
    for place in (0, 3, 99):
        for wrong in (np.nan, INF):
            logits = row(100)
            logits[place] = wrong
            with refused(ConfigError, "logits", "NaN", "plus"):
                function(logits)
    with refused(ConfigError, "logits", "NaN"):
        function(np.asarray([-INF, np.nan], np.float32))
    for shape in ((0,), (2, 3), ()):
        with refused(ConfigError, "logits", "1-D"):
            function(np.zeros(shape, np.float32))
    with pytest.raises(TypeError):
        function(np.zeros(3))  # type: ignore[arg-type]
    with refused(ConfigError, "logits", "minus"):
        _native.entropy(np.full(100, -INF, np.float32))


@pytest.mark.parametrize("size", [1, 5, 64, 100, 5000])
def test_top_k_is_the_sorted_head(size: int) -> None:
    for seed, coarse in ((0, False), (1, True)):
        logits, bonus = row(size, seed=seed), row(size, seed=seed + 10)
        if coarse:  # many are equal
            logits, bonus = np.round(logits), np.round(bonus)
        logits[:: size // 3 + 1] = -INF
        logits[-1] = 0.0
        for k in sorted({1, min(3, size), size // 2 + 1, size}):
            for extra in (None, bonus):
                tokens, values = _native.top_k(logits, k, extra)
                assert np.array_equal(tokens, sorted_head(logits if extra is None else logits + extra, k))
                assert np.array_equal(values, logits[tokens])


def test_a_bonus_changes_order_and_cut_and_not_the_logits() -> None:
    logits = np.asarray([5.0, 4.0, 3.0, 2.0], np.float32)
    tokens, values = _native.top_k(logits, 2, np.asarray([0.0, -INF, 0.0, 10.0], np.float32))
    assert tokens.tolist() == [3, 0]
    assert values.tolist() == [2.0, 5.0]


def test_top_k_refuses() -> None:
    logits = row(10)
    for k in (0, -1, 11):
        with refused(ConfigError, "top_k", k, 1, 10):
            _native.top_k(logits, k)
    with refused(ConfigError, "bonus", 9, 10):
        _native.top_k(logits, 2, row(9))
    with refused(ConfigError, "token", "logits", "minus"):
        _native.top_k(np.full(10, -INF, np.float32), 2)
    logits[3] = np.nan
    assert 3 not in _native.top_k(logits, 10)[0]
