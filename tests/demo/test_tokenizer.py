"""llama.cpp's tokenizer and the Hugging Face tokenizer of the demo model give the same ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.demo_model.stories import corpus
from otter_gguf import _native
from otter_gguf.demo import demo_files

pytest.importorskip("sentencepiece")
pytest.importorskip("transformers")

TRAINED_STORIES_SEED, TOKENIZER_STORIES = 20241, 8000


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer, trained anew: the same texts give the same vocabulary."""
    from benchmarks.demo_model.tokenizer import train_tokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer((story.text for story in corpus(TRAINED_STORIES_SEED, TOKENIZER_STORIES)), folder)


@pytest.fixture(scope="module")
def shipped() -> Iterator[_native.Model]:
    model = _native.Model(str(demo_files().base), vocab_only=True)
    yield model
    model.close()


def test_same_ids_on_stories(hugging_face: Any, shipped: _native.Model) -> None:
    for story in corpus(17, 1000):
        assert shipped.tokenize(story.text.encode()) == hugging_face(story.text).input_ids


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "line\nline\n", "Zebra QUIZ 2024!", "naïve café 🦦", "é\t"]
)
def test_same_ids_on_other_text(hugging_face: Any, shipped: _native.Model, text: str) -> None:
    ids = shipped.tokenize(text.encode())
    assert ids == hugging_face(text).input_ids
    assert shipped.detokenize(ids) == text.encode()


def test_prompt_and_continuation_meet_between_tokens(shipped: _native.Model) -> None:
    for story in corpus(18, 200):
        prompt, rest = story.prompt.encode(), b" " + story.continuation.encode()
        joined = shipped.tokenize(prompt) + shipped.tokenize(rest, add_special=False)
        assert shipped.tokenize(prompt + rest) == joined


def test_special_tokens_and_sizes(hugging_face: Any, shipped: _native.Model) -> None:
    assert shipped.n_vocab == len(hugging_face)
    assert (shipped.bos_token, shipped.eos_token) == (hugging_face.bos_token_id, hugging_face.eos_token_id)
    assert shipped.add_bos
