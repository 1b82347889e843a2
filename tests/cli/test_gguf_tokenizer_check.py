"""`--no-tokenizer-check` of `insert` and `train`: a GGUF base whose tokenizer cannot be had for training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from otter_gguf.gguf.encoding import KeyValue
from tests.gguf.toy_files import GEOMETRY
from tests.refusals import assert_names
from tests.tokenizer_toys import MERGES, bpe_base, sentencepiece_base
from tests.training.toy import toy_rows, write_rows

FLAG = "--no-tokenizer-check"
SMALL = ("--width", "8", "--inner", "12")
# llama.cpp merges the leftmost of pieces with equal scores, which training's tokenizer cannot.
EQUAL = KeyValue("tokenizer.ggml.scores", "arr[f32]", [0.0] * GEOMETRY.n_vocab)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "pairs.jsonl", toy_rows(8))
    return tmp_path / "pairs.jsonl"


def insert(base: Path, *arguments: str) -> int:
    return main(["insert", "--base", str(base), "-o", str(base.with_name("fresh")), *SMALL, *arguments])


def train(base: Path, data: Path, *arguments: str) -> int:
    few = ("--max-steps", "1", "-b", "2", "--max-length", "32", "--cpu", "--threads", "1")
    source = ["--base", str(base), "--data", str(data), "-o", str(base.with_name("trained"))]
    return main(["train", *source, *SMALL, *few, *arguments])


def test_a_base_that_agrees_needs_no_flag(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = sentencepiece_base(tmp_path / "base.gguf")
    for flags in ((), (FLAG,)):
        assert insert(base, *flags, "--force") == 0
    assert "tokenizer" not in capfd.readouterr().err
    assert train(base, data) == 0


def test_a_difference_is_refused_by_insert_and_train_alike(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = sentencepiece_base(tmp_path / "base.gguf", EQUAL)
    for command in (partial(insert, base), partial(train, base, data)):
        assert command() == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert_names(message, base, "llama.cpp [", "transformers [", FLAG)
        assert f"that of {tmp_path}" not in message
    assert not base.with_name("fresh").exists()
    assert not base.with_name("trained").exists()


def test_with_the_flag_a_difference_is_a_warning(tmp_path: Path, data: Path) -> None:
    base = sentencepiece_base(tmp_path / "base.gguf", EQUAL)
    for command in (partial(insert, base, FLAG), partial(train, base, data, FLAG)):
        with pytest.warns(UserWarning, match=r"llama\.cpp \[") as warned:
            assert command() == 0
        told = [str(warning.message) for warning in warned if str(base) in str(warning.message)]
        assert len(told) == 1
        assert_names(told[0], base, "llama.cpp [", "transformers [")


def test_without_a_tokenizer_there_is_an_adapter_but_no_training(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the Hugging Face folder of the base it can be trained on."""
    base = bpe_base(tmp_path / "base.gguf", MERGES, KeyValue("tokenizer.ggml.pre", "str", "kimi-k2"))
    assert insert(base) == 2
    assert_names(capfd.readouterr().err, base, "tokenizer.ggml.pre", "kimi-k2")
    with pytest.warns(UserWarning, match="kimi-k2"):
        assert insert(base, FLAG) == 0
    assert train(base, data, FLAG) == 2
    assert_names(capfd.readouterr().err.splitlines()[-1], base, "tokenizer.ggml.pre", "kimi-k2", "Hugging Face")
