"""Base logits with the insertion loaded against stock llama.cpp of the same build: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from otter_gguf.converters.adapter import convert_adapter

from otter_gguf import _native
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.sidecar import read_insertion
from tests.gguf.toy_files import adapter_tensors, insertion, write_adapter, write_base
from tests.native.helpers import base_logits, feed, feed_chunks, open_base, open_otter, random_tokens
from tests.synthetic_models import pair

TYPES = ("F32", "F16", "Q8_0", "Q4_0")
CACHES: dict[str, dict[str, Any]] = {
    "f32": {},
    "f16": {"type_k": "f16", "type_v": "f16"},
    "f16 flash": {"type_k": "f16", "type_v": "f16", "flash_attn": "on"},
}
CONFIG = insertion()


def make(folder: Path, type: str = "F32", seed: int = 1, config: InsertionConfig = CONFIG) -> tuple[Path, Path]:
    """A base of a weight type and a sidecar of random weights."""
    base, sidecar = folder / f"base-{type}.gguf", folder / f"{type}-{seed}.otter.gguf"
    if not base.exists():
        write_base(base, type=type, geometry=config.base)
    tensors = {name: 0.3 * values for name, values in adapter_tensors(config, seed).items()}  # keeps rewards near 1
    write_adapter(folder / f"adapter-{seed}", config, tensors)
    with BaseFiles.open(base) as files:
        convert_adapter(folder / f"adapter-{seed}", sidecar, files, outtype="q8_0")
    return base, sidecar


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("type", TYPES)
def test_logits_are_identical(type: str, cache: str, tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, type)
    tokens = random_tokens(200)
    for size in (100, 1):
        plain = base_logits(open_base(base, **CACHES[cache]), tokens, size)
        otter, rewards = feed_chunks(open_otter(base, sidecar, CONFIG, **CACHES[cache]), tokens, size)
        assert np.array_equal(plain.view(np.uint32), otter.view(np.uint32))
        assert rewards.std() > 1e-3


@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_logits_are_identical_with_a_quantized_cache(cache: str) -> None:
    """llama.cpp rotates what it stores in such a cache; the inserted heads go through the same."""
    options = {"type_k": cache, "type_v": cache, "flash_attn": "on"}
    base, sidecar = pair("Q8_0")
    with _native.GgufFile(str(sidecar)) as file:
        config = read_insertion(file)
    tokens = random_tokens(150)
    plain = base_logits(open_base(base, **options), tokens, 75)
    logits, rewards = feed_chunks(open_otter(base, sidecar, config, **options), tokens, 75)
    _, exact = feed_chunks(open_otter(base, sidecar, config), tokens, 75)
    assert np.array_equal(plain, logits)
    assert 0.9 < np.corrcoef(rewards[:, 0], exact[:, 0])[0, 1] < 1.0


def test_other_inserted_weights_change_rewards_and_no_logit(tmp_path: Path) -> None:
    tokens = random_tokens(100)
    base, first = make(tmp_path, seed=1)
    _, second = make(tmp_path, seed=2)
    logits, rewards = feed_chunks(open_otter(base, first, CONFIG), tokens, 50)
    same_logits, other_rewards = feed_chunks(open_otter(base, second, CONFIG), tokens, 50)
    assert np.array_equal(logits, same_logits)
    assert np.abs(rewards - other_rewards).max() > 1e-3


def test_other_base_weights_change_logits(tmp_path: Path) -> None:
    """The comparison can fail: a base quantized otherwise has other logits."""
    tokens = random_tokens(50)
    (tmp_path / "8").mkdir()
    logits = base_logits(open_base(make(tmp_path)[0]), tokens, 50)
    other = base_logits(open_base(make(tmp_path / "8", "Q8_0")[0]), tokens, 50)
    assert not np.array_equal(logits, other)


def test_identical_after_copy_removal_and_several_sequences(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, "Q8_0")
    logits = []
    for context in (open_base(base), open_otter(base, sidecar, CONFIG)):
        tokens = random_tokens(60)
        feed(context, tokens[:30])
        context.sequence_copy(0, 1)
        context.sequence_copy(0, 2, 0, 20)
        feed(context, tokens[30:33], sequences=[0, 1, 2], positions=[30, 30, 20])
        siblings = context.logits().copy()
        assert context.sequence_remove(1, 25)
        feed(context, tokens[40:50], 25, sequences=1)
        branch = context.logits().copy()
        context.sequence_keep(1)
        feed(context, tokens[50:60], 35, sequences=1)
        logits.append(np.concatenate([siblings, branch, context.logits()]))
    assert np.array_equal(logits[0], logits[1])


def test_rewards_follow_their_sequence(tmp_path: Path) -> None:
    """A copied, cut and continued sequence has the rewards of the same text fed in one go."""
    base, sidecar = make(tmp_path)
    tokens = random_tokens(60)
    context = open_otter(base, sidecar, CONFIG)
    feed(context, tokens[:40])
    context.sequence_copy(0, 3)
    feed(context, random_tokens(10, seed=9), 40)
    assert context.sequence_remove(3, 30)
    feed(context, tokens[30:], 30, sequences=3)
    _, expected = feed_chunks(open_otter(base, sidecar, CONFIG), tokens, 60)
    assert np.abs(context.rewards() - expected[30:]).max() <= 1e-4


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_fused_nodes_and_matrix_kernels_agree(outtype: str, tmp_path: Path) -> None:
    """A few tokens take fused nodes, which read plain rows, or Q4_0 as ggml has rearranged it; many take ggml's."""
    base, sidecar = tmp_path / "base.gguf", tmp_path / "other.otter.gguf"
    write_base(base)
    config = insertion(n_ff=(32, 36), heads=(HeadConfig(),))  # 36: gate and up are no whole groups of rearranged rows
    tensors = {name: 0.3 * values for name, values in adapter_tensors(config).items()}
    write_adapter(tmp_path / "adapter", config, tensors)
    with BaseFiles.open(base) as files:
        convert_adapter(tmp_path / "adapter", sidecar, files, outtype=outtype)
    tokens = random_tokens(80)
    _, many = feed_chunks(open_otter(base, sidecar, config), tokens, 80)
    for size in (1, 3):
        logits, few = feed_chunks(open_otter(base, sidecar, config), tokens, size)
        assert np.abs(few - many).max() <= 0.02 * many.std()
        assert np.array_equal(logits, base_logits(open_base(base), tokens, size))


def test_rewards_off_leaves_the_cache_filled(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path)
    tokens = random_tokens(50)
    context = open_otter(base, sidecar, CONFIG)
    feed(context, tokens[:49], rewards=False)
    feed(context, tokens[49:], 49)
    _, expected = feed_chunks(open_otter(base, sidecar, CONFIG), tokens, 50)
    assert np.abs(context.rewards() - expected[49:]).max() <= 1e-4


def test_merged_file_gives_the_same(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, "Q4_0")
    merged = tmp_path / "merged.gguf"
    merge(base, sidecar, merged)
    tokens = random_tokens(80)
    from_two = feed_chunks(open_otter(base, sidecar, CONFIG), tokens, 40)
    from_one = feed_chunks(open_otter(merged, None, CONFIG), tokens, 40)
    assert all(np.array_equal(a, b) for a, b in zip(from_two, from_one, strict=True))
