"""What a context refuses, and how it ends."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError, ContextFullError, EngineError
from otter_gguf.gguf.sidecar import to_native_spec
from tests.gguf.toy_files import insertion
from tests.native.helpers import Float32, feed, open_base, open_otter, random_tokens
from tests.native.test_non_disruption import CONFIG, make
from tests.refusals import assert_names, refused


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path)


def test_bad_batches_are_refused(files: tuple[Path, Path]) -> None:
    context = open_base(files[0], n_ctx=256, n_seq_max=2, n_batch=128)
    with refused(ConfigError, "token 288", "vocabulary"):
        feed(context, [288])
    with refused(ConfigError, "token -1", "vocabulary"):
        feed(context, [-1])
    with refused(ConfigError, "sequence 2", "0..1", "n_seq_max"):
        feed(context, [5], sequences=2)
    with refused(ContextFullError, "position 256", "context"):
        feed(context, [5], 256)
    with refused(ConfigError, "n_batch", 0, 128):
        feed(context, [])
    with refused(ConfigError, "n_batch", 129, 128):
        feed(context, random_tokens(129))
    with refused(ConfigError, "tokens", "positions", "sequences", "outputs", "length"):
        context.decode(np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros(2, np.int32), np.ones(2, np.bool_))
    feed(context, [5])  # none of it broke the context
    assert context.logits().shape == (1, 288)


def test_too_many_outputs_are_refused(files: tuple[Path, Path]) -> None:
    context = open_base(files[0], n_outputs_max=4)
    with refused(ConfigError, "n_outputs_max", 5, 4):
        feed(context, random_tokens(5))
    feed(context, random_tokens(4))
    assert len(context.logits()) == 4


def test_full_cache_is_a_typed_error(files: tuple[Path, Path]) -> None:
    context = open_base(files[0], n_ctx=256, n_seq_max=2)
    feed(context, random_tokens(200), outputs=False)
    with refused(ContextFullError, "KV cache", 256, 100):
        feed(context, random_tokens(100), sequences=1, outputs=False)
    feed(context, random_tokens(20), 200)


def cache_state(context: _native.Context) -> Float32:
    """Logits of one more token at position 10, taken out again: they depend on all that the cache holds."""
    feed(context, [5], 10)
    logits: Float32 = context.logits().copy()
    assert context.sequence_remove(0, 10)
    return logits


def test_a_refused_score_leaves_the_cache_as_it_was(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG, n_ctx=256, n_ubatch=8)
    feed(context, random_tokens(10))
    before = cache_state(context)
    late_mistake = random_tokens(20)
    late_mistake[19] = 288
    for position in (-1, 0, 5, 11):
        with refused(ConfigError, f"position {position}", "sequence 0", 10):
            context.score(random_tokens(3), position=position)
    with refused(ConfigError, "token 288", "vocabulary"):
        context.score(late_mistake, position=10)
    with refused(ConfigError, "sequence 4", "n_seq_max"):
        context.score(random_tokens(3), sequence=4)
    with refused(ConfigError, "position -1", "sequence 1", 0):
        context.score(random_tokens(3), sequence=1, position=-1)
    with refused(ContextFullError, "position 256", "context"):
        context.score(random_tokens(247), position=10)
    assert context.sequence_max_position(0) == 9
    assert np.array_equal(cache_state(context), before)


def test_a_score_that_fails_midway_leaves_no_trace(files: tuple[Path, Path]) -> None:
    """The cache is full when some chunks stand in it already: they go, what was there stays."""
    context = open_otter(*files, CONFIG, n_ctx=256, n_ubatch=8)
    feed(context, random_tokens(10))
    feed(context, random_tokens(150), sequences=1, outputs=False)
    before = cache_state(context)
    with refused(ContextFullError, "KV cache", 256, 8):
        context.score(random_tokens(120), position=10)
    assert context.sequence_max_position(0) == 9
    assert context.sequence_max_position(1) == 149
    assert np.array_equal(cache_state(context), before)
    assert context.score(random_tokens(50), position=10).shape == (50, 3)  # there is room for a shorter one
    assert context.sequence_max_position(0) == 59


def test_a_refused_batch_leaves_the_cache_as_it_was(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, random_tokens(10))
    before = cache_state(context)
    for first in (3, 12):
        with pytest.raises(EngineError) as caught:  # llama.cpp's own lines
            feed(context, random_tokens(2), first)
        assert_names(str(caught.value), "llama.cpp", "sequence 0", "X = 9", f"Y = {first}")
    assert context.sequence_max_position(0) == 9
    assert np.array_equal(cache_state(context), before)


def test_no_rewards_without_an_insertion(files: tuple[Path, Path]) -> None:
    context = open_base(files[0])
    feed(context, [5])
    with refused(ConfigError, "decode", "rewards"):
        context.rewards()
    with refused(ConfigError, "rewards", "sidecar"):
        context.score(random_tokens(4))


def test_logits_are_a_read_only_view(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG)
    feed(context, [5])
    logits = context.logits()
    assert not logits.flags.writeable
    context.close()
    assert np.isfinite(logits).all()  # the view keeps the memory


def test_top_k_is_the_sorted_head_of_the_logits(files: tuple[Path, Path]) -> None:
    context = open_base(files[0])
    feed(context, random_tokens(3))
    for row in range(3):
        tokens, logits = context.top_k(row, 10)
        order = np.argsort(-context.logits()[row], kind="stable")[:10]
        assert np.array_equal(tokens, order)
        assert np.array_equal(logits, context.logits()[row][order])
    for bad in ((3, 10), (-1, 10), (0, 0), (0, 289)):
        with pytest.raises(ConfigError):
            context.top_k(*bad)


def test_use_after_close(files: tuple[Path, Path]) -> None:
    context = open_base(files[0])
    context.close()
    context.close()
    with refused(EngineError, "closed"):
        feed(context, [5])


def test_one_context_from_two_threads_is_a_typed_error(files: tuple[Path, Path]) -> None:
    context = open_otter(*files, CONFIG, n_ctx=4096, n_batch=4096)
    tokens = random_tokens(4000)
    errors: list[Exception] = []

    def score() -> None:
        try:
            context.clear()
            context.score(tokens)
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any("thread" in str(error) for error in errors)


def test_contexts_of_their_own_run_in_parallel(files: tuple[Path, Path]) -> None:
    tokens = random_tokens(200)
    contexts = [open_otter(*files, CONFIG) for _ in range(4)]
    results: dict[int, Float32] = {}

    def score(i: int) -> None:
        results[i] = contexts[i].score(tokens)

    threads = [threading.Thread(target=score, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[0], results[i]) for i in range(4))


def test_wrong_insertions_are_refused(files: tuple[Path, Path]) -> None:
    base, sidecar = files
    for wrong, tensor in (
        (insertion(width=64), "blk.0.attn_norm.otter.weight"),
        (insertion(n_head_kv=(2, 2)), "blk.0.attn_qkv.otter.weight"),
        (insertion(n_ff=(32, 32)), "blk.1.ffn_norm.otter.weight"),
        (insertion(state_source="table"), "token_embd.otter.weight"),
    ):
        with refused(EngineError, base, tensor):
            open_otter(base, sidecar, wrong)


def test_failed_loads_carry_the_reason(files: tuple[Path, Path]) -> None:
    with refused(EngineError, f"{files[0]}.missing", "No such file"):
        _native.Model(str(files[0]) + ".missing")
    smaller = insertion(n_ff=(0, 0))
    with refused(EngineError, files[0], 35, 32):
        _native.Model(str(files[0]), sidecar=str(files[1]), insertion=to_native_spec(smaller))


def test_progress_can_stop_a_load(files: tuple[Path, Path]) -> None:
    seen: list[float] = []
    _native.Model(str(files[0]), progress=lambda done: seen.append(done) or True)  # type: ignore[func-returns-value]
    assert seen
    assert seen == sorted(seen)
    with pytest.raises(EngineError):
        _native.Model(str(files[0]), progress=lambda _: False)

    def fail(_: float) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _native.Model(str(files[0]), progress=fail)


def test_log_goes_to_the_callback(files: tuple[Path, Path]) -> None:
    lines: list[tuple[str, str]] = []
    _native.set_log_callback(lambda level, line: lines.append((level, line)))
    try:
        _native.Model(str(files[0]))
    finally:
        _native.set_log_callback(None)
    count = len(lines)
    assert any("general.architecture" in line for _, line in lines)
    assert all("\n" not in line for _, line in lines)
    _native.Model(str(files[0]))
    assert len(lines) == count


# ---- rewards without logits --------------------------------------------------------------------------------------


def siblings(context: _native.Context, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A text of nine tokens in all sequences, and a next token for each: tokens, positions, sequences."""
    feed(context, random_tokens(9))
    for sequence in range(1, count):
        context.sequence_copy(0, sequence)
    return random_tokens(count), np.full(count, 9, np.int32), np.arange(count, dtype=np.int32)


def test_rewards_alone_are_those_with_logits(files: tuple[Path, Path]) -> None:
    with_logits, alone = (open_otter(*files, CONFIG) for _ in range(2))
    batch = siblings(with_logits, 4)
    with_logits.decode(*batch, np.ones(4, np.bool_))
    siblings(alone, 4)
    rewards = alone.decode_rewards(*batch)
    assert rewards.shape == (4, CONFIG.n_rewards)
    assert len(np.unique(rewards[:, 0])) == 4
    np.testing.assert_allclose(rewards, with_logits.rewards(), atol=1e-5)
    assert len(alone.logits()) == 0
    for context in (with_logits, alone):  # the cache holds the same: what follows is the same
        feed(context, [7], 10, sequences=2)
    np.testing.assert_allclose(alone.rewards(), with_logits.rewards(), atol=1e-5)


def test_rewards_alone_are_refused(files: tuple[Path, Path]) -> None:
    tokens, positions, sequences = siblings(plain := open_base(files[0]), 2)
    with refused(ConfigError, "rewards", "sidecar"):
        plain.decode_rewards(tokens, positions, sequences)
    context = open_otter(*files, CONFIG, n_ubatch=2)
    with refused(ConfigError, "n_ubatch", 3, 2):
        context.decode_rewards(random_tokens(3), np.arange(3, dtype=np.int32), np.zeros(3, np.int32))
    with refused(ConfigError, "tokens", "positions", "sequences", "outputs", "length"):
        context.decode_rewards(tokens, positions[:1], sequences)


def test_a_batch_holds_a_token_of_each_sequence_at_least(files: tuple[Path, Path]) -> None:
    """llama.cpp would end the process with an assertion."""
    context = open_base(files[0], n_batch=8, n_ubatch=8, n_seq_max=16, n_outputs_max=0)
    assert (context.n_batch, context.n_seq_max) == (16, 16)
    feed(context, random_tokens(16), 0, sequences=list(range(16)), positions=[0] * 16)
    assert len(context.logits()) == 16
