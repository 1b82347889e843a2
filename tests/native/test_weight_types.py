"""Every weight type that people download: base logits as stock llama.cpp's, bit for bit; rewards near those in F32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import quantizable
from tests.native.helpers import Float32, base_logits, feed_chunks, open_base, open_otter, random_tokens

# The type of the file, and that of a matrix which no mixture treats better than the others.
BASE_TYPES = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_0": "Q4_0",
    "Q3_K_M": "Q3_K",
    "Q2_K": "Q2_K",
    "IQ4_XS": "IQ4_XS",
    "IQ4_NL": "IQ4_NL",
    "IQ3_S": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}
# Relative error of rewards against an F32 sidecar, with room of about a third above what these weights give.
SIDECAR_TYPES = {
    "F16": 0.001,
    "BF16": 0.006,
    "Q8_0": 0.02,
    "Q6_K": 0.05,
    "Q5_K": 0.09,
    "Q5_1": 0.1,
    "Q5_0": 0.1,
    "Q4_K": 0.2,
    "Q4_1": 0.2,
    "Q4_0": 0.2,
    "IQ4_NL": 0.2,
    "IQ4_XS": 0.2,
    "Q3_K": 0.4,
    "Q2_K": 0.7,
}
FLASH = {"type_k": "f16", "type_v": "f16", "flash_attn": "on"}
TOKENS = random_tokens(96, n_vocab=320)


def base_of(type: str) -> Path:
    """MXFP4 is a mixture for experts; in a dense model only ``pure`` gives it to anything."""
    path = quantizable.base(type, pure=type == "MXFP4_MOE")
    assert quantizable.types(path)["blk.1.attn_q.weight"] == BASE_TYPES[type]
    return path


def identical(a: Float32, b: Float32) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("type", BASE_TYPES)
def test_base_logits_are_identical(type: str) -> None:
    base, sidecar = base_of(type), quantizable.sidecar("Q8_0")
    for options in ({}, FLASH):
        for size in (48, 1):
            plain = base_logits(open_base(base, **options), TOKENS, size)
            logits, rewards = feed_chunks(open_otter(base, sidecar, quantizable.CONFIG, **options), TOKENS, size)
            assert identical(plain, logits)
            assert rewards.std() > 1e-3


def test_every_type_has_logits_of_its_own() -> None:
    """The comparison can fail: no two of the bases compute the same."""
    logits = [base_logits(open_base(base_of(type)), TOKENS[:8], 8).tobytes() for type in BASE_TYPES]
    assert len(set(logits)) == len(BASE_TYPES)


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_K_M"])
def test_a_base_in_several_files(type: str) -> None:
    shards, sidecar = quantizable.shards(type), quantizable.sidecar("Q8_0")
    whole = base_logits(open_base(quantizable.base(type)), TOKENS, 48)
    assert identical(base_logits(open_base(shards), TOKENS, 48), whole)
    logits, rewards = feed_chunks(open_otter(shards, sidecar, quantizable.CONFIG), TOKENS, 48)
    assert identical(logits, whole)
    assert rewards.std() > 1e-3


@pytest.mark.parametrize("type", SIDECAR_TYPES)
def test_types_of_the_inserted_part(type: str) -> None:
    base = quantizable.base("Q8_0")
    sidecar = quantizable.sidecar(type)
    mixed = {"F16"} if type == "Q8_0" else set()
    assert {"F32", type} | mixed == set(quantizable.types(sidecar).values())
    plain = base_logits(open_base(base), TOKENS, 48)
    _, exact = feed_chunks(open_otter(base, quantizable.sidecar(), quantizable.CONFIG), TOKENS, 48)
    for size in (48, 3, 1):
        logits, rewards = feed_chunks(open_otter(base, sidecar, quantizable.CONFIG), TOKENS, size)
        assert identical(logits, plain if size == 48 else base_logits(open_base(base), TOKENS, size))
        error = float(np.sqrt(np.mean((rewards - exact) ** 2)) / exact.std())
        assert 1e-6 < error < SIDECAR_TYPES[type]
