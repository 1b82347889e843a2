"""Two small tokenizers, byte-level and SentencePiece, each as a Hugging Face folder and inside a toy base's GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from otter_gguf.gguf.encoding import KeyValue

from .gguf.toy_files import write_base

Merges = Sequence[tuple[str, str]]

# Ġ is a space, Ċ a new line. "and" is put together from "an" or from "nd": the order of merges decides.
MERGES: Merges = [
    *[("o", "t"), ("ot", "t"), ("e", "r"), ("ott", "er"), ("Ġ", "otter"), ("h", "e"), ("t", "he"), ("Ġ", "the")],
    *[("i", "n"), ("in", "g"), ("s", "w"), ("Ġ", "sw"), ("1", "2"), ("12", "3"), ("4", "5"), ("Ġ", "Ġ")],
    *[("ĠĠ", "ĠĠ"), ("Ċ", "Ċ"), ("l", "l"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("r", "e"), ("'", "s")],
    *[("a", "l"), ("e", "s"), ("o", "n"), ("Ġ", "a"), ("n", "d")],
]
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SPECIAL = ("<s>", "</s>", "<|river|>")
BPE_TOKENS = [*_BYTES, *(left + right for left, right in MERGES), *_SPECIAL]
BOS, EOS = (BPE_TOKENS.index(name) for name in _SPECIAL[:2])

_WORDS = ["▁t", "he", "▁the", "ot", "er", "▁o", "▁ot", "▁otter", "te", "ter", "th", "▁s", "▁1", "12", "▁12", "rs"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS, *"▁theorsw12.,a"]


def _backend(model: Any, bos: tuple[str, int] | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos]
        )
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path, **tokens: str) -> Path:
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **tokens).save_pretrained(
        folder
    )
    return folder


def bpe_folder(folder: Path, *, added: Sequence[str] = (), normalizer: Any = None) -> Path:
    """The byte-level tokenizer for transformers; ``added``: tokens behind its own."""
    vocabulary = {token: i for i, token in enumerate(BPE_TOKENS)}
    tokenizer = _backend(models.BPE(vocab=vocabulary, merges=list(MERGES)), ("<s>", BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.add_tokens(list(added))
    return _save(tokenizer, folder)


def bpe_base(path: Path, merges: Merges = MERGES, *metadata: KeyValue) -> Path:
    """A toy base with the byte-level tokenizer; entries of the metadata replaced or added."""
    types = [1] * (len(BPE_TOKENS) - len(_SPECIAL)) + [3] * len(_SPECIAL)
    entries = (
        KeyValue("tokenizer.ggml.model", "str", "gpt2"),
        KeyValue("tokenizer.ggml.pre", "str", "gpt-2"),
        KeyValue("tokenizer.ggml.tokens", "arr[str]", BPE_TOKENS),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", types),
        KeyValue("tokenizer.ggml.merges", "arr[str]", [" ".join(pair) for pair in merges]),
        KeyValue("tokenizer.ggml.bos_token_id", "u32", BOS),
        KeyValue("tokenizer.ggml.eos_token_id", "u32", EOS),
        KeyValue("tokenizer.ggml.add_bos_token", "bool", True),
    )
    return write_base(path, metadata=(*entries, *metadata))


def swapped(merges: Merges) -> Merges:
    """The merges with two in each other's place: "nd" comes before "an"."""
    order = list(merges)
    first, second = order.index(("a", "n")), order.index(("n", "d"))
    order[first], order[second] = order[second], order[first]
    return order


def sentencepiece_backend() -> Tokenizer:
    """The SentencePiece tokenizer for transformers: each piece is merged from all pairs that make it up."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in _WORDS
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = _backend(model, ("<s>", 1))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(PIECES[:3]))
    return tokenizer


def sentencepiece_folder(folder: Path, *, added: Sequence[str] = ()) -> Path:
    """It as a folder; ``added``: tokens behind its own."""
    tokenizer = sentencepiece_backend()
    tokenizer.add_tokens(list(added))
    return _save(tokenizer, folder, unk_token="<unk>")


def sentencepiece_metadata() -> tuple[KeyValue, ...]:
    """It for a GGUF."""
    return (
        KeyValue("tokenizer.ggml.tokens", "arr[str]", PIECES),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]),
        KeyValue("tokenizer.ggml.scores", "arr[f32]", [-float(i) for i in range(len(PIECES))]),
    )


def sentencepiece_base(path: Path, *metadata: KeyValue) -> Path:
    """A toy base with the SentencePiece tokenizer; entries of the metadata replaced or added."""
    return write_base(path, metadata=(*sentencepiece_metadata(), *metadata))
