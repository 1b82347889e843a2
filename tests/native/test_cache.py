"""Moved positions, saved sequences, and log-probabilities of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError, ContextFullError
from otter_gguf.gguf.merge import merge
from tests.gguf.toy_files import GEOMETRY, insertion
from tests.native.helpers import Float32, feed, feed_chunks, open_base, open_otter, random_tokens
from tests.native.test_non_disruption import CACHES, CONFIG, make
from tests.refusals import refused
from tests.synthetic_models import pair

HEADER = 32
QUANTIZED: dict[str, Any] = {"type_k": "q8_0", "type_v": "q8_0", "flash_attn": "on"}
WIDER = insertion(n_ff=(32, 64))
TOKENS = random_tokens(80)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path)


# ---- shift


def slide(context: _native.Context, n_keep: int = 4, n_drop: int = 20) -> Float32:
    """Logits of ten tokens fed behind a text whose middle was dropped and whose end moved down."""
    feed(context, TOKENS[:40])
    assert context.sequence_remove(0, n_keep, n_keep + n_drop)
    context.sequence_shift(0, n_keep + n_drop, -1, -n_drop)
    assert context.sequence_max_position(0) == 39 - n_drop
    feed(context, TOKENS[40:50], 40 - n_drop)
    logits: Float32 = context.logits().copy()
    return logits


@pytest.mark.parametrize("cache", CACHES)
def test_logits_after_a_shift_are_those_of_stock_llama_cpp(cache: str, files: tuple[Path, Path]) -> None:
    stock = slide(open_base(files[0], **CACHES[cache]))
    assert np.array_equal(stock, slide(open_otter(*files, CONFIG, **CACHES[cache])))
    whole = open_base(files[0], **CACHES[cache])
    feed(whole, TOKENS[:40])
    feed(whole, TOKENS[40:50], 40)
    assert not np.array_equal(stock, whole.logits())


def test_logits_after_a_shift_with_a_quantized_cache(tmp_path: Path) -> None:
    """llama.cpp turns such keys back, rotates them, and quantizes them again; so with the inserted heads'."""
    config = insertion(base=dataclasses.replace(GEOMETRY, n_head=1, n_head_kv=1, head_dim=64))
    files = make(tmp_path, config=config)
    context = open_otter(*files, config, **QUANTIZED)
    assert context.can_shift
    assert np.array_equal(slide(open_base(files[0], **QUANTIZED)), slide(context))
    exact = open_otter(*files, config)
    slide(exact)
    assert 0.9 < np.corrcoef(context.rewards()[:, 0], exact.rewards()[:, 0])[0, 1] < 1.0


def test_no_shift_where_llama_cpp_would_crash() -> None:
    """Quantized keys of a head size that llama.cpp stores as they are: its shift takes them for mixed ones."""
    context = open_base(pair().base, **QUANTIZED)
    feed(context, TOKENS[:40])
    assert not context.can_shift
    with refused(ConfigError, "KV cache", "type_k"):
        context.sequence_shift(0, 10, -1, -5)
    values_only = open_base(pair().base, **{**QUANTIZED, "type_k": "f16"})
    feed(values_only, TOKENS[:40])
    values_only.sequence_shift(0, 10, -1, 5)


def test_rewards_after_a_shift_are_those_of_the_merged_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    merge(*files, merged)
    rewards = []
    for context in (open_otter(*files, CONFIG), open_otter(merged, None, CONFIG)):
        slide(context)
        rewards.append(context.rewards())
    assert np.array_equal(rewards[0], rewards[1])


@pytest.mark.parametrize("delta", [17, 200])
def test_a_whole_text_moved_is_the_same_text(delta: int, files: tuple[Path, Path]) -> None:
    """Attention sees distances, in the inserted layers too, so moving everything changes rounding alone. (A text whose
    middle was dropped has no such reference: its end was computed with the middle in sight.)"""
    still, moved, unmoved = (open_otter(*files, CONFIG) for _ in range(3))
    for context in (still, moved, unmoved):
        feed(context, TOKENS[:60])
    moved.sequence_shift(0, 0, -1, delta)
    feed(still, TOKENS[60:], 60)
    feed(moved, TOKENS[60:], 60 + delta)
    _, expected = feed_chunks(open_otter(*files, CONFIG), TOKENS, 80)
    assert np.abs(still.rewards() - expected[60:]).max() <= 1e-4
    assert np.abs(moved.rewards() - still.rewards()).max() <= 1e-4
    assert np.abs(moved.logits() - still.logits()).max() <= 1e-3 * np.abs(still.logits()).max()
    feed(unmoved, TOKENS[60:61], 60)
    gap = open_otter(*files, CONFIG)
    feed(gap, TOKENS[:60])
    assert gap.sequence_remove(0, 0, 30)  # another text has other rewards by far more than that
    feed(gap, TOKENS[60:61], 60)
    assert np.abs(gap.rewards() - unmoved.rewards()).max() > 1e-3


def test_a_shift_moves_no_other_sequence(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:30])
    feed(context, TOKENS[:30], sequences=1)
    context.sequence_shift(0, 10, -1, 100)
    assert context.sequence_max_position(0) == 129
    assert context.sequence_max_position(1) == 29
    feed(context, TOKENS[30:40], 30, sequences=1)
    _, expected = feed_chunks(open_otter(*files, CONFIG), TOKENS[:40], 40)
    assert np.abs(context.rewards() - expected[30:]).max() <= 1e-4


def test_shared_tokens_are_not_moved(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:30])
    context.sequence_copy(0, 1)
    context.sequence_copy(1, 2, 0, 10)
    with refused(ConfigError, "sequence 0", "sequence 1"):
        context.sequence_shift(0, 10, -1, -5)
    assert context.sequence_remove(1)
    with refused(ConfigError, "sequence 0", "sequence 2"):
        context.sequence_shift(0, 10, -1, -5)
    assert context.sequence_max_position(0) == 29
    context.sequence_keep(0)
    context.sequence_shift(0, 10, -1, 5)
    assert context.sequence_max_position(0) == 34
    feed(context, TOKENS[:30], sequences=1)  # what it shared is gone
    context.sequence_shift(0, 10, -1, 5)
    context.clear()
    feed(context, TOKENS[:30])
    context.sequence_shift(0, 0, -1, 5)


def test_a_shift_out_of_the_context_is_refused(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    assert context.can_shift
    context.sequence_shift(0, 0, -1, 7)  # nothing to move
    feed(context, TOKENS[:30])
    for begin, delta in ((0, -1), (10, -11), (0, context.n_ctx - 29)):
        with refused(ConfigError, delta, begin, 29, context.n_ctx):
            context.sequence_shift(0, begin, -1, delta)
    with refused(ConfigError, "sequence 4", "n_seq_max"):
        context.sequence_shift(4, 0, -1, 1)
    context.sequence_shift(0, 30, -1, -5)
    context.sequence_shift(0, 5, 5, 3)
    context.sequence_shift(0, 0, -1, 0)
    assert context.sequence_max_position(0) == 29
    context.sequence_shift(0, 0, -1, context.n_ctx - 30)
    assert context.sequence_max_position(0) == context.n_ctx - 1


# ---- saved sequences


def continue_(context: _native.Context, sequence: int = 0) -> tuple[Float32, Float32]:
    feed(context, TOKENS[50:70], 50, sequences=sequence)
    return context.logits().copy(), context.rewards()


@pytest.mark.parametrize("cache", CACHES)
def test_a_loaded_sequence_goes_on_as_if_never_saved(cache: str, files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG, **CACHES[cache])
    feed(context, TOKENS[:50])
    data = context.state()
    expected = continue_(context)

    context.clear()
    feed(context, random_tokens(70, seed=5))
    assert context.load_state(data) == len(data)
    assert context.sequence_max_position(0) == 49
    same_context = continue_(context)

    other = open_otter(*files, CONFIG, **CACHES[cache])
    other.load_state(data)
    for got in (same_context, continue_(other)):
        assert np.array_equal(got[0], expected[0])
        assert np.array_equal(got[1], expected[1])


def test_a_state_loads_into_another_sequence(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:50])
    data = context.state(0)
    feed(context, random_tokens(20, seed=3), sequences=2)
    context.load_state(data, 2)
    assert context.sequence_max_position(2) == 49
    logits, rewards = continue_(context, 2)
    _, expected = feed_chunks(open_otter(*files, CONFIG), TOKENS[:70], 70)
    assert np.abs(rewards - expected[50:]).max() <= 1e-4
    assert context.sequence_max_position(0) == 49
    assert np.abs(logits - continue_(context)[0]).max() <= 1e-3


def test_a_state_after_a_shift_holds_the_rotated_keys(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:40])
    context.sequence_shift(0, 0, -1, 10)
    data = context.state()
    feed(context, TOKENS[40:50], 50)
    expected = context.rewards()
    context.load_state(data)
    feed(context, TOKENS[40:50], 50)
    assert np.array_equal(context.rewards(), expected)


def test_an_empty_sequence_can_be_saved(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    data = context.state()
    feed(context, TOKENS)
    context.load_state(data)
    assert context.sequence_max_position(0) == -1


def assert_refused(context: _native.Context, data: bytes, *names: object) -> None:
    context.clear()
    feed(context, TOKENS[:5])
    with refused(ConfigError, *names):
        context.load_state(data)
    assert context.sequence_max_position(0) == -1


def test_damaged_states_are_refused(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:10])
    data = context.state()
    for size in (0, 1, 7, 8, HEADER - 1):
        assert_refused(context, data[:size], "sequence")
    for size in (HEADER, HEADER + 1, HEADER + 50, len(data) // 2, len(data) - 1):
        assert_refused(context, data[:size], size - HEADER, len(data) - HEADER)
    assert_refused(context, data + b"\0", len(data) + 1 - HEADER, len(data) - HEADER)
    rng = np.random.default_rng(0)
    for place in [*range(HEADER + 40), *rng.integers(HEADER, len(data), 60)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        assert_refused(context, bytes(flipped), "state")
    assert_refused(context, b"GGUF" + bytes(100), "sequence")
    assert context.load_state(data) == len(data)


@pytest.mark.parametrize("change", ["no insertion", "insertion", "cache", "base"])
def test_foreign_states_are_refused(change: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS[:10])
    data = context.state()
    others: dict[str, Callable[[], _native.Context]] = {
        "no insertion": lambda: open_base(files[0]),
        "insertion": lambda: open_otter(*make(tmp_path, seed=2, config=WIDER), WIDER),
        "cache": lambda: open_otter(*files, CONFIG, type_k="f16"),
        "base": lambda: open_otter(*make(tmp_path, "Q8_0"), CONFIG),
    }
    other = others[change]()
    assert_refused(other, data, "model", "insertion", "cache type")
    assert_refused(context, other.state(), "model", "insertion", "cache type")


def test_a_state_without_room_is_refused(files: tuple[Path, Path]) -> None:
    large = open_otter(*files, CONFIG, n_ctx=512)
    feed(large, random_tokens(300), outputs=False)
    data = large.state()
    with refused(ContextFullError, 256, "saved", "n_ctx"):
        open_otter(*files, CONFIG, n_ctx=256).load_state(data)
    feed(large, random_tokens(200), sequences=1, outputs=False)
    with refused(ContextFullError, 512, "saved", "n_ctx"):
        large.load_state(data, 2)
    assert large.sequence_max_position(2) == -1
    assert large.sequence_max_position(1) == 199
    high = open_otter(*files, CONFIG, n_ctx=512)
    feed(high, TOKENS[:10], 400)
    small = open_otter(*files, CONFIG, n_ctx=256)
    with refused(ContextFullError, 256, "saved", "n_ctx"):  # few cells, but positions beyond the context
        small.load_state(high.state())
    assert small.sequence_max_position(0) == -1


# ---- log-probabilities


def reference(logits: Float32, tokens: Any) -> Float32:
    """ln p of each token but the first, from the logits (n, V) of the tokens before."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    picked: Float32 = wide[np.arange(len(tokens) - 1), tokens[1:]].astype(np.float32)
    return picked


@pytest.mark.parametrize("outputs", [512, 7])
def test_log_probabilities_are_those_of_the_logits(outputs: int, files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, TOKENS)
    expected = reference(context.logits(), TOKENS)
    for other in (open_otter(*files, CONFIG, n_outputs_max=outputs), open_base(files[0], n_outputs_max=outputs)):
        got = other.log_probabilities(TOKENS)
        assert got.shape == (79,)
        assert np.abs(got - expected).max() <= 1e-5
        assert other.sequence_max_position(0) == 79
        assert len(other.logits()) == 0
    assert expected.std() > 1e-2


def test_log_probabilities_go_on_from_a_text(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG, n_outputs_max=8)
    whole = context.log_probabilities(TOKENS)
    context.clear()
    assert np.abs(context.log_probabilities(TOKENS[:30]) - whole[:29]).max() <= 1e-5
    assert np.abs(context.log_probabilities(TOKENS[30:], position=30) - whole[30:]).max() <= 1e-5
    feed(context, random_tokens(5), 80)  # the inserted part's cache is filled too
    _, expected = feed_chunks(open_otter(*files, CONFIG), np.concatenate([TOKENS, random_tokens(5)]), 85)
    assert np.abs(context.rewards() - expected[80:]).max() <= 1e-4
    assert context.log_probabilities(np.empty(0, np.int32), sequence=1).shape == (0,)
    assert context.log_probabilities(TOKENS[:1], sequence=1).shape == (0,)
    assert context.sequence_max_position(1) == 0


def test_refused_log_probabilities_leave_the_cache_as_it_was(files: tuple[Path, Path]) -> None:
    context = open_base(files[0], n_ctx=256, n_outputs_max=8)
    feed(context, TOKENS[:5])
    with refused(ConfigError, "position 3", "sequence 0", 5):
        context.log_probabilities(TOKENS, position=3)
    with refused(ConfigError, "token 288", "vocabulary"):
        context.log_probabilities(np.asarray([5, 288], np.int32), position=5)
    with refused(ContextFullError, "position 264", 256):
        context.log_probabilities(random_tokens(260), position=5)
    feed(context, random_tokens(150), sequences=1, outputs=False)
    with refused(ContextFullError, "KV cache", 256, 8):
        context.log_probabilities(random_tokens(120), position=5)
    assert context.sequence_max_position(0) == 4
