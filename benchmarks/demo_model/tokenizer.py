"""The demo model's own tokenizer: a SentencePiece BPE vocabulary, as Llama 2's, trained on its stories.

``tokenizer.model`` is what llama.cpp's converter reads; the Hugging Face files beside it are made from the same
vocabulary, so both give the same ids. No prefix space is added: ids of a prompt and ids of its continuation are then
the ids of the whole text.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

VOCABULARY = 1536


def train_tokenizer(texts: Iterable[str], folder: Path) -> LlamaTokenizer:
    """Write ``tokenizer.model`` and the Hugging Face tokenizer into the folder; the same texts give the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    pieces = _pieces(folder / "tokenizer.model")
    tokenizer = LlamaTokenizer(vocab=pieces, merges=_merges(pieces), add_prefix_space=False, add_bos_token=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _pieces(model: Path) -> dict[str, int]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return {processor.IdToPiece(index): index for index in range(processor.GetPieceSize())}


def _merges(pieces: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece from two, best piece first: SentencePiece merges whatever gives the best piece."""
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces  # ids are in the order of the scores
        if not piece.startswith("<")  # control and byte pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
