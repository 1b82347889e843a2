"""Every type of keys and values under every flash_attn: a context that works, or a line that names the type."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import ConfigError
from tests.gguf.toy_files import GEOMETRY, insertion
from tests.native.helpers import feed, feed_chunks, open_base, open_otter, random_tokens
from tests.native.test_non_disruption import make
from tests.refusals import refused

PLAIN = ("f32", "f16", "bf16")
QUANTIZED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH = ("auto", "on", "off")
BLOCK = 32
TOKENS = random_tokens(60)
# With heads of 16 the rows of the base's layers are whole blocks, and its heads are not.
SIZES: dict[int, dict[str, Any]] = {
    16: {"n_head": 4, "n_head_kv": 2},
    64: {"n_head": 1, "n_head_kv": 1},
    80: {"n_head": 1, "n_head_kv": 1, "n_embd": 80},
}

every_type = pytest.mark.parametrize("type_k", PLAIN + QUANTIZED)
every_flash = pytest.mark.parametrize("flash_attn", FLASH)


@functools.cache
def toy(head_dim: int) -> tuple[tuple[Path, Path], InsertionConfig]:
    config = insertion(base=dataclasses.replace(GEOMETRY, head_dim=head_dim, **SIZES[head_dim]))
    return make(Path(tempfile.mkdtemp()), config=config), config


def open_toy(head_dim: int, *, widened: bool, **options: Any) -> _native.Context:
    files, config = toy(head_dim)
    return open_otter(*files, config, **options) if widened else open_base(files[0], **options)


def shift_works(context: _native.Context) -> bool:
    """Whether a shift is done; a refused one must say so before it happens."""
    feed(context, TOKENS[:40], outputs=False)
    assert context.sequence_remove(0, 4, 20)
    if not context.can_shift:
        with refused(ConfigError, "type_k"):
            context.sequence_shift(0, 20, -1, -16)
        return False
    context.sequence_shift(0, 20, -1, -16)
    feed(context, TOKENS[40:], 24)
    assert np.isfinite(context.logits()).all()
    return True


@every_flash
@every_type
@pytest.mark.parametrize("widened", [False, True])
def test_keys_of_every_type_are_shifted_or_refused(type_k: str, flash_attn: str, widened: bool) -> None:
    for type_v in ("f16", "bf16", "f32"):
        context = open_toy(64, widened=widened, type_k=type_k, type_v=type_v, flash_attn=flash_attn)
        assert shift_works(context) == (type_k != "bf16"), type_v


@every_flash
@pytest.mark.parametrize("type_v", QUANTIZED)
def test_values_of_every_type_work_or_name_flash_attention(type_v: str, flash_attn: str) -> None:
    options = {"type_k": "f16", "type_v": type_v, "flash_attn": flash_attn}
    if flash_attn == "off":
        with pytest.raises(Exception, match="flash_attn"):
            open_toy(64, widened=True, **options)
        return
    assert shift_works(open_toy(64, widened=True, **options))


@every_flash
@pytest.mark.parametrize("quantized", QUANTIZED)
@pytest.mark.parametrize("option", ["type_k", "type_v"])
@pytest.mark.parametrize("head_dim", [16, 80])
@pytest.mark.parametrize("widened", [False, True])
def test_half_a_block_is_refused(head_dim: int, option: str, quantized: str, flash_attn: str, widened: bool) -> None:
    """llama.cpp aborts where an inserted layer's row is no multiple of a block, and computes nonsense where only a
    head is none: with heads of 16 its logits were off by half their size."""
    options = {"type_k": "f16", "type_v": "f16", option: quantized}
    with refused(ConfigError, option, quantized, BLOCK, head_dim):
        open_toy(head_dim, widened=widened, flash_attn=flash_attn, **options)


@every_flash
@pytest.mark.parametrize("type_k", PLAIN)
@pytest.mark.parametrize("head_dim", [16, 80])
def test_what_has_no_blocks_fits_any_head(head_dim: int, type_k: str, flash_attn: str) -> None:
    """The negative twin."""
    context = open_toy(head_dim, widened=True, type_k=type_k, type_v=type_k, flash_attn=flash_attn)
    logits, _ = feed_chunks(context, TOKENS, 60)
    exact, _ = feed_chunks(open_toy(head_dim, widened=True), TOKENS, 60)
    assert np.abs(logits - exact).max() <= 0.05 * np.abs(exact).max()
