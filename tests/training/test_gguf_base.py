"""A GGUF file as base: the model and the tokens that llama.cpp has, and nothing that it does not say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otter_gguf import _native
from otter_gguf.errors import FileError, MismatchError, UnsupportedError
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.training import OtterModel
from otter_gguf.training.base import load_base, load_tokenizer
from tests.gguf.toy_files import float_tensor, insertion, rewrite, split_base, write_sidecar
from tests.gguf.toy_files import write_base as write_other_base
from tests.refusals import assert_names, refused
from tests.training.native_toy import TOKENS, WORDS, native_base, native_logits, write_gguf_base
from tests.training.toy import toy_otter

DEMO = Path(__file__).parents[2] / "otter_gguf" / "demo"
DEMO_BASE = DEMO / "demo-base.Q8_0.gguf"
TEXTS = ("the otters", " two  otters,\n12", "", "Übergröße 🦦 <s>")


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(tokens).logits)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf_base(tmp_path / "base.gguf", native_base(), *WORDS)


@pytest.mark.parametrize("tied", [False, True])
def test_an_f32_file_gives_the_models_own_tensors(tmp_path: Path, tied: bool) -> None:
    model = native_base(tie_word_embeddings=tied)
    path = write_gguf_base(tmp_path / "base.gguf", model)
    loaded = load_base(path)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    torch.testing.assert_close(logits(loaded), native_logits(path), atol=1e-4, rtol=0)
    assert (logits(native_base(seed=1)) - native_logits(path)).abs().max() > 1


def test_a_quantized_file_gives_what_llama_cpp_runs() -> None:
    base = load_base(DEMO_BASE)
    tokens = load_tokenizer(base)("The otter went to the river. She saw a boat.", return_tensors="pt")["input_ids"]
    native = native_logits(DEMO_BASE, tokens)
    # llama.cpp rounds the states to 8 bits before each product.
    assert (logits(base, tokens) - native).abs().max() < 0.02 * native.abs().max()
    assert (logits(base, tokens)[:, :-1] - native[:, 1:]).abs().max() > 0.2 * native.abs().max()


def test_the_loaded_base_can_be_trained_and_saved(gguf: Path, tmp_path: Path) -> None:
    base: Any = load_base(gguf)
    assert base.dtype == torch.float32
    expected = logits(base)
    base.save_pretrained(tmp_path / "hf")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")), expected)
    model = toy_otter("normal", base)
    model.rewards(TOKENS).sum().backward()
    assert all(tensor.grad is not None for tensor in model.inserted_parameters().values())


def test_an_adapter_finds_the_file_again_and_fits_the_same_base_elsewhere(gguf: Path, tmp_path: Path) -> None:
    model = toy_otter("normal", load_base(gguf))
    with torch.no_grad():
        expected = model.rewards(TOKENS)
    model.save_pretrained(tmp_path / "adapter")
    assert model.base_name == str(gguf)
    with torch.no_grad():
        for base in (None, gguf, str(gguf), native_base()):
            assert torch.equal(OtterModel.from_pretrained(base, tmp_path / "adapter").rewards(TOKENS), expected)
    with refused(MismatchError, tmp_path / "adapter", "base_fingerprint"):
        OtterModel.from_pretrained(native_base(seed=1), tmp_path / "adapter")


@pytest.mark.parametrize("prefix", [None, True, False])
def test_tokens_are_llama_cpps(tmp_path: Path, prefix: bool | None) -> None:
    entries = () if prefix is None else (KeyValue("tokenizer.ggml.add_space_prefix", "bool", prefix),)
    path = write_gguf_base(tmp_path / "base.gguf", native_base(), *WORDS, *entries)
    tokenizer, native = load_tokenizer(path), _native.Model(str(path), vocab_only=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in TEXTS[:3]:
        expected = native.tokenize(text.encode())
        assert tokenizer(text)["input_ids"] == expected
        assert saved(text)["input_ids"] == expected
        assert tokenizer.decode(expected, skip_special_tokens=True) == text
    assert len(tokenizer("the otters")["input_ids"]) == (4 if prefix is not False else 5)


def test_other_tokens_than_llama_cpps_are_refused(tmp_path: Path) -> None:
    """Pieces without letters to put them together from, which llama.cpp finds by their scores alone."""
    path = write_gguf_base(tmp_path / "base.gguf", native_base())
    with refused(MismatchError, path, "llama.cpp [", "transformers [", "--no-tokenizer-check", "check=False"):
        load_tokenizer(path)
    with pytest.warns(UserWarning, match=re.escape(str(path))) as warned:
        assert load_tokenizer(path, check=False)("12")["input_ids"]
    assert_names(str(warned[0].message), "llama.cpp [", "transformers [")


@pytest.mark.filterwarnings("error")
def test_a_tokenizer_that_agrees_gives_no_warning(gguf: Path) -> None:
    assert (
        load_tokenizer(gguf, check=False)("the otters")["input_ids"] == load_tokenizer(gguf)("the otters")["input_ids"]
    )


def llama3_factors(head_dim: int, factor: float = 8.0) -> list[float]:
    """Arithmetic of Llama 3.1's rope, one frequency after the other."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * 10000.0 ** (i / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def rope_file(path: Path, factors: list[float]) -> Path:
    plain = write_gguf_base(path.with_name("plain.gguf"), native_base(head_dim=32))
    tensor = float_tensor("rope_freqs.weight", np.array(factors, np.float32))
    return rewrite(plain, path, tensors={tensor.name: tensor})


def test_a_scaled_rope_is_recognised_by_its_factors(tmp_path: Path) -> None:
    factors = llama3_factors(32)
    assert min(factors) == 1
    assert sum(1 < factor < 8 for factor in factors) >= 1
    path = rope_file(tmp_path / "base.gguf", factors)
    loaded: Any = load_base(path)
    assert loaded.config.rope_parameters["rope_type"] == "llama3"
    tokens = TOKENS.repeat(1, 10)
    torch.testing.assert_close(logits(loaded, tokens), native_logits(path, tokens), atol=1e-4, rtol=0)
    plain = native_base(head_dim=32)
    assert (logits(plain, tokens) - native_logits(path, tokens)).abs().max() > 1e-2


@pytest.mark.parametrize("factors", [[2.0] * 16, [*llama3_factors(32)[:-3], 7.0, 8.0, 8.0]])
def test_another_rope_is_refused(tmp_path: Path, factors: list[float]) -> None:
    path = rope_file(tmp_path / "base.gguf", factors)
    with refused(UnsupportedError, path, "rope factors", "Hugging Face"):
        load_base(path)


def test_a_rope_scaled_by_a_rule_is_refused(tmp_path: Path) -> None:
    entry = KeyValue("llama.rope.scaling.type", "str", "yarn")
    path = write_gguf_base(tmp_path / "base.gguf", native_base(), entry)
    with refused(UnsupportedError, path, "'yarn'", "Hugging Face"):
        load_base(path)


def test_what_is_no_base_is_refused(gguf: Path, tmp_path: Path) -> None:
    with refused(FileError, tmp_path / "absent.gguf"):
        load_base(tmp_path / "absent.gguf")
    (tmp_path / "damaged.gguf").write_bytes(gguf.read_bytes()[:5000])
    with refused(FileError, tmp_path / "damaged.gguf"):
        load_base(tmp_path / "damaged.gguf")
    other = write_other_base(tmp_path / "other.gguf")
    write_sidecar(tmp_path / "toy.otter.gguf", other, insertion())
    with refused(FileError, tmp_path / "toy.otter.gguf", "sidecar"):
        load_base(tmp_path / "toy.otter.gguf")
    first = split_base(gguf, 2)
    with refused(UnsupportedError, first, "shards", "llama-gguf-split --merge"):
        load_base(first)
