"""Both chains of the sampler against slow versions in numpy, written from llama.cpp's documented behaviour."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError
from tests.gguf.toy_files import write_base
from tests.native.helpers import Float32, Int32, feed, open_base, open_sampler, random_tokens
from tests.refusals import refused

V = 288
INF = np.inf
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
PENALTIES: dict[str, Any] = {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.5}
CHOICES: list[dict[str, Any]] = [
    PLAIN,
    {},
    {"temperature": 0.0},
    {"temperature": 2.0, "top_k": 5},
    {"temperature": 1.3, "top_k": 0, "top_p": 0.7},
    {"temperature": 0.7, "top_k": 100, "top_p": 0.99, "min_p": 0.2},
    {"temperature": 3.0, "top_k": 1},
    {"temperature": 3.0, "top_k": 1000, "top_p": 1.0, "min_p": 0.01},
]


@functools.cache
def model() -> _native.Model:
    with tempfile.TemporaryDirectory() as folder:
        return _native.Model(str(write_base(Path(folder) / "base.gguf")), use_mmap=False)


def make(**options: Any) -> _native.Sampler:
    return open_sampler(model(), **options)


def rows(count: int, seed: int = 0) -> Float32:
    """Logits (count, V), no two equal in a row."""
    return (2.0 * np.random.default_rng(seed).standard_normal((count, V))).astype(np.float32)


class SlowChoice:
    """Top-k, top-p, min-p, temperature and the draw of one uniform number from std::mt19937."""

    def __init__(self, seed: int, temperature: float = 0.8, top_k: int = 40, top_p: float = 0.95, min_p: float = 0.05):
        self.random = np.random.RandomState(seed)
        self.temperature, self.top_k, self.top_p, self.min_p = (
            np.float32(temperature),
            top_k,
            np.float32(top_p),
            np.float32(min_p),
        )

    def uniform(self) -> float:
        """std::uniform_real_distribution<double>: the low 32 bits are drawn first."""
        low, high = (int(self.random.randint(0, 2**32, dtype=np.uint32)) for _ in range(2))
        return (low + high * 2.0**32) / 2.0**64

    def order(self, scores: Float32) -> Int32:
        """Indices in the order in which the draw runs over them."""
        if not self.top_k and self.top_p >= 1:
            return np.arange(len(scores), dtype=np.int32)  # min-p alone and temperature do not sort
        best = np.argsort(-scores, kind="stable").astype(np.int32)
        return best[: self.top_k] if self.top_k else best

    def __call__(self, scores: Float32) -> int:
        if self.temperature == 0:
            return int(np.argmax(scores))
        kept = self.order(scores)
        if self.top_p < 1:
            p = np.exp(scores[kept] - scores[kept].max())
            p /= p.sum(dtype=np.float32)
            kept = kept[: int(np.searchsorted(np.cumsum(p), self.top_p)) + 1]
        if self.min_p > 0:
            kept = kept[scores[kept] >= scores[kept].max() + np.log(self.min_p)]
        scaled = scores[kept] / self.temperature
        p = np.exp(scaled - scaled.max()).astype(np.float64)
        return int(kept[int(np.searchsorted(np.cumsum(p), self.uniform() * p.sum()))])


def penalize(logits: Float32, history: list[int], last_n: int) -> Float32:
    out: Float32 = logits.copy()
    for token, count in Counter(history[-last_n:]).items():
        value = out[token] * np.float32(1.3) if out[token] <= 0 else out[token] / np.float32(1.3)
        out[token] = value - (np.float32(count) * np.float32(0.2) + np.float32(0.5))
    return out


# ---- choice


@pytest.mark.parametrize("options", CHOICES)
def test_choices_are_those_of_the_slow_chain(options: dict[str, Any]) -> None:
    sampler, slow = make(seed=11, **options), SlowChoice(11, **options)
    for i, scores in enumerate(rows(1000, seed=1)):
        scores = scores[: 1 + i % 60]
        assert sampler.choose(np.arange(len(scores), dtype=np.int32), scores) == slow(scores)


@pytest.mark.parametrize("options", CHOICES)
def test_samples_are_those_of_the_slow_chain(options: dict[str, Any]) -> None:
    sampler, slow = make(seed=5, **options), SlowChoice(5, **options)
    assert not sampler.has_history
    got = [sampler.sample(logits) for logits in rows(300)]
    assert got == [slow(logits) for logits in rows(300)]
    other = make(seed=6, **options)
    same = got == [other.sample(logits) for logits in rows(300)]
    assert same == (options.get("temperature") == 0.0 or options.get("top_k") == 1)


def test_choose_gives_an_index_and_accepts_nothing() -> None:
    sampler = make(temperature=0.0, **PENALTIES)
    tokens = np.asarray([7, 9, 11], np.int32)
    scores = np.asarray([1.0, 3.0, 2.9], np.float32)
    assert [sampler.choose(tokens, scores) for _ in range(3)] == [1, 1, 1]
    logits = rows(1)[0]
    assert np.array_equal(sampler.candidates(logits, V)[1], np.sort(logits)[::-1])


# ---- history


def test_candidates_without_a_history_are_the_top_k() -> None:
    logits, bonus = rows(2)
    sampler = make()
    for extra in (None, bonus):
        expected = _native.top_k(logits, 17, extra)
        got = sampler.candidates(logits, 17, extra)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("last_n", [3, 64, -1])
def test_candidates_with_penalties_are_those_of_the_slow_version(last_n: int) -> None:
    sampler = make(repeat_last_n=last_n, logit_bias=[(5, 2.5), (6, -INF), (7, -1.0)], **PENALTIES)
    assert sampler.has_history
    rng = np.random.default_rng(0)
    history: list[int] = []
    for logits in rows(60):
        biased = logits.copy()
        biased[5] += np.float32(2.5)
        biased[6] = -INF
        biased[7] -= np.float32(1.0)
        expected = penalize(biased, history, last_n if last_n > 0 else 4096)
        for extra in (None, rows(1, seed=9)[0]):
            key = expected if extra is None else expected + extra
            order = np.argsort(-key, kind="stable")[:40]
            tokens, values = sampler.candidates(logits, 40, extra)
            assert np.array_equal(tokens, order)
            assert np.array_equal(values, expected[order])
        token = int(rng.choice([5, 6, *range(20, 40)]))
        sampler.accept(token, prompt=len(history) < 3)
        history.append(token)
    assert 6 not in sampler.candidates(rows(1)[0], V)[0]


def test_samples_with_penalties_are_those_of_the_slow_version() -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 20, "top_p": 0.9}
    sampler, slow = make(seed=2, repeat_last_n=8, **options, **PENALTIES), SlowChoice(2, **options)
    history: list[int] = []
    for logits in rows(30):
        logits[20:30] += 6.0  # the same few win again and again
        token = slow(penalize(logits, history, 8))
        assert sampler.sample(logits) == token
        history.append(token)
    assert len(set(history)) < len(history)


def test_penalties_over_no_tokens_are_no_history() -> None:
    assert not make(repeat_last_n=0, **PENALTIES).has_history
    assert make(logit_bias=[(3, 0.0)]).has_history


def test_a_history_is_saved_restored_and_cloned() -> None:
    logits = rows(1)[0]
    sampler = make(seed=3, **PLAIN, **PENALTIES)

    def penalized() -> list[float]:
        values: list[float] = sampler.candidates(logits, V)[1].tolist()
        return values

    for token in (20, 21, 20):
        sampler.accept(token)
    state, before = sampler.save(), penalized()
    for _ in range(2):
        sampler.accept(int(np.argmax(logits)))
        assert penalized() != before
        sampler.restore(state)
        assert penalized() == before

    clone = sampler.clone(4)
    assert clone.candidates(logits, V)[1].tolist() == before
    clone.accept(int(np.argmax(logits)))
    assert penalized() == before
    clone.restore(state)
    assert clone.candidates(logits, V)[1].tolist() == before
    with refused(ConfigError, "state", "settings"):
        make(**PENALTIES).restore(state)
    sampler.reset()
    assert penalized() == np.sort(logits)[::-1].tolist()


def test_draws_go_on_after_a_restore_and_begin_again_after_a_reset() -> None:
    logits = rows(40)
    expected = [SlowChoice(8, **PLAIN)] * 40
    sampler = make(seed=8, **PLAIN)
    state = sampler.save()
    first = []
    for row in logits:
        first.append(sampler.sample(row))
        sampler.restore(state)
    assert first == [slow(row) for slow, row in zip(expected, logits, strict=True)]
    other = [sampler.clone(8).sample(row) for row in logits]
    assert other[0] == first[0]
    assert other != first
    sampler.reset()
    assert [sampler.sample(row) for row in logits] == first


def test_without_a_seed_samplers_differ() -> None:
    sampler = make(**PLAIN)
    clones = [sampler.clone(-1) for _ in range(2)]
    drawn = [[each.sample(row) for row in rows(30)] for each in (sampler, *clones, make(**PLAIN))]
    assert len({tuple(tokens) for tokens in drawn}) == 4


# ---- arguments


def test_rows_of_a_context_are_read_in_place(tmp_path: Path) -> None:
    context = open_base(write_base(tmp_path / "base.gguf"))
    feed(context, random_tokens(4))
    sampler = make(temperature=0.0)
    for row in context.logits():
        assert sampler.sample(row) == int(np.argmax(row))
    assert sampler.sample(np.asfortranarray(np.stack([row, row], 1))[:, 0]) == int(np.argmax(row))


def test_wrong_sizes_are_refused() -> None:
    sampler, logits = make(), rows(1)[0]
    tokens = np.arange(3, dtype=np.int32)
    for wrong in (logits[:-1], np.append(logits, 0.0).astype(np.float32)):
        with refused(ConfigError, "logits", len(wrong), V):
            sampler.sample(wrong)
        with refused(ConfigError, "logits", len(wrong), V):
            sampler.candidates(wrong, 3)
        with refused(ConfigError, "bonus", len(wrong), V):
            sampler.candidates(logits, 3, wrong)
    with refused(ConfigError, "logits", "1-D"):
        sampler.sample(rows(1))
    for k in (0, V + 1):
        with refused(ConfigError, "top_k", k, 1, V):
            sampler.candidates(logits, k)
    with refused(ConfigError, "scores", 4, 3):
        sampler.choose(tokens, logits[:4])
    with refused(ConfigError, "tokens", "1-D"):
        sampler.choose(tokens[:0], logits[:0])
    with refused(ConfigError, "score 1", "NaN"):
        sampler.choose(tokens, np.asarray([1, np.nan, 2], np.float32))
    for token in (-1, V):
        with refused(ConfigError, f"token {token}", "vocabulary"):
            sampler.accept(token)


@pytest.mark.parametrize("options", CHOICES)
def test_no_token_left(options: dict[str, Any]) -> None:
    sampler, nothing = make(**options), np.full(V, -INF, np.float32)
    with refused(ConfigError, "token", "logit"):
        sampler.sample(nothing)
    with refused(ConfigError, "token", "logit"):
        sampler.candidates(nothing, 5)
    with refused(ConfigError, "token", "logit"):
        sampler.choose(np.arange(3, dtype=np.int32), nothing[:3])
    nothing[17] = -3.0
    assert sampler.sample(nothing) == 17
    assert sampler.candidates(nothing, 5)[0].tolist() == [17]
    assert sampler.choose(np.arange(3, dtype=np.int32), nothing[15:18]) == 2


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"logit_bias": [(V, 1.0)]}, ("logit_bias", f"token {V}", "vocabulary")),
        ({"logit_bias": [(3, 1.0), (-1, 1.0)]}, ("logit_bias", "token -1", "vocabulary")),
        ({"logit_bias": [(3, np.nan)]}, ("logit_bias", "token 3", "nan")),
        ({"logit_bias": [(3, INF)]}, ("logit_bias", "token 3", "inf")),
        ({"temperature": -1.0}, ("temperature", -1)),
        ({"top_p": 0.0}, ("top_p",)),
        ({"repeat_penalty": 0.0}, ("repeat_penalty",)),
        ({"presence_penalty": INF}, ("presence_penalty",)),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        make(**options)
