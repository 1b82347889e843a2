"""Vocabularies that end llama.cpp's process in a text or a grammar, which no reader of keys sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError, FileError, UnsupportedError
from otter_gguf.gguf.encoding import KeyValue
from tests.gguf.toy_files import GEOMETRY, base_metadata, write_base
from tests.native.children import run_child
from tests.native.helpers import open_sampler
from tests.refusals import refused
from tests.tokenizer_toys import BPE_TOKENS, MERGES, bpe_base

LIMIT = 512
PLACE = 280


def check(path: Path) -> None:
    _native.check_base(_native.GgufFile(str(path)))


def with_token(path: Path, *texts: str) -> Path:
    """The toy base with other texts for one token or more, from PLACE on."""
    (tokens,) = (entry.value for entry in base_metadata(GEOMETRY) if entry.key == "tokenizer.ggml.tokens")
    changed = [*tokens[:PLACE], *texts, *tokens[PLACE + len(texts) :]]
    return write_base(path, metadata=(KeyValue("tokenizer.ggml.tokens", "arr[str]", changed),))


def test_the_whitespace_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    """Two spaces end llama.cpp's process."""
    path = bpe_base(tmp_path / "base.gguf", MERGES, KeyValue("tokenizer.ggml.pre", "str", "whitespace"))
    with refused(UnsupportedError, "base.gguf", "tokenizer.ggml.pre", "whitespace"):
        check(path)


@pytest.mark.parametrize("pre", ["default", "gpt-2", "youtu"])
def test_its_neighbours_are_not(pre: str, tmp_path: Path) -> None:
    path = bpe_base(tmp_path / "base.gguf", MERGES, KeyValue("tokenizer.ggml.pre", "str", pre))
    check(path)
    assert _native.Model(str(path), vocab_only=True).tokenize(b"a  b")


@pytest.mark.parametrize("character", ["a", "é", "▁", "\U0001f9a6"])
def test_the_longest_token(character: str, tmp_path: Path) -> None:
    check(with_token(tmp_path / "base.gguf", character * LIMIT))
    with refused(FileError, "base.gguf", "tokenizer.ggml.tokens", f"token {PLACE}", LIMIT + 1, LIMIT):
        check(with_token(tmp_path / "base.gguf", character * (LIMIT + 1)))


def test_the_longest_token_and_a_grammar_fit_a_small_stack(tmp_path: Path) -> None:
    path = with_token(tmp_path / "base.gguf", "a" * LIMIT)
    code = """
    import numpy as np
    from otter_gguf import _native
    from tests.native.helpers import open_sampler

    def choose():
        model = _native.Model(sys.argv[1], vocab_only=True)
        sampler = open_sampler(model, temperature=0.0, grammar="root ::= [a-z]+")
        logits = np.zeros(model.n_vocab, np.float32)
        logits[int(sys.argv[2])] = 1.0
        print(sampler.sample(logits), sampler.sample(logits))

    in_small_thread(choose)
    """
    assert run_child(code, path, PLACE).split() == [str(PLACE)] * 2


def test_a_token_that_is_spelled_longer_than_written(tmp_path: Path) -> None:
    """llama.cpp describes what is no byte of a byte-level tokenizer, with the whole token in each description."""
    tokens = [*BPE_TOKENS]
    tokens[PLACE] = "中" * 60
    path = bpe_base(tmp_path / "base.gguf", MERGES, KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens))
    check(path)
    model = _native.Model(str(path), vocab_only=True)
    with refused(ConfigError, f"token {PLACE}", LIMIT):
        open_sampler(model, grammar="root ::= [a-z]+")
    assert open_sampler(model)
