"""Two small tokenizers, byte-level and SentencePiece, each as a Hugging Face folder and inside a toy base's GGUF.

Two larger ones, trained on texts of mixed signs, stand in a GGUF alone: they show how llama.cpp cuts a text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from otter_gguf.gguf.encoding import KeyValue

from .gguf.toy_files import GEOMETRY, write_base

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


# ---- trained ones ------------------------------------------------------------------------------------------------

# What mixed texts are made of: signs, and how many of them stand together at most.
_SIGNS: tuple[tuple[Sequence[str], int], ...] = (
    ("aabcdeEsStTrRvVmMlLdD", 6),
    ("0123456789", 9),
    (("'s", "'S", "'re", "'RE", "'vE", "'ll", "'d", "'m", "'t", "'x", "'", "’s", "'sad", "'Tell"), 1),
    ((" ", "  ", "\t", "\u00a0", "\u3000", "\u2009", "\u0085", "\u2028"), 4),
    (("\n", "\r\n", "\n\n", "\r", " \n", "\n "), 2),
    ("!?.,;:-_=+<>^~|`$#@%&*()[]{}/\\\"'", 4),
    ("éÉßÜüñŁøΣσωЖжяبرहक文中水の가각ƻǅʰªไท", 4),
    (("e\u0301", "o\u0308", "\u0301", "\u0928\u093f", "\u0e01\u0e34"), 2),
    (("🦦", "👍🏽", "👩\u200d🔬", "🇩🇪", "1\ufe0f\u20e3", "❤\ufe0f"), 2),
    ("½²①Ⅷ٣४３〇𝟙", 4),
    ("…。，、“”‘—（！・～€™→\u200b\x1c\ufeff", 2),
)


def mixed_texts(n: int, seed: int) -> list[str]:
    """Texts of up to 14 groups of letters, digits, spaces, apostrophes, signs, emoji and combining marks."""
    draw = random.Random(seed)

    def group() -> str:
        signs, most = draw.choice(_SIGNS)
        return "".join(draw.choices(signs, k=draw.randint(1, most)))

    return ["".join(group() for _ in range(draw.randint(1, 14))) for _ in range(n)]


@functools.cache
def _trained(n_tokens: int, *, byte_level: bool) -> tuple[list[str], list[str]]:
    """Pieces and merges that take no notice of words, so that it shows in the tokens where a text is cut."""
    tokenizer = Tokenizer(models.BPE())
    alphabet = _BYTES if byte_level else []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = mixed_texts(4000, seed=0) if byte_level else [text.replace(" ", "▁") for text in mixed_texts(4000, seed=0)]
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, initial_alphabet=alphabet, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [" ".join(pair) for pair in model["merges"]]


def trained_bpe_base(path: Path, pre: str | None, *metadata: KeyValue) -> Path:
    """A toy base with a byte-level tokenizer whose merges cross the borders of words.

    ``"abcabc"`` is a token that no merge makes; the last token is ``</s>``.
    """
    pieces, merges = _trained(4000, byte_level=True)
    tokens = [*pieces, "abcabc", "<s>", "</s>"]
    n = len(tokens)
    entries = [
        KeyValue("tokenizer.ggml.model", "str", "gpt2"),
        KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens),
        KeyValue("tokenizer.ggml.scores", "arr[f32]", [0.0] * n),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [1] * (n - 2) + [3, 3]),
        KeyValue("tokenizer.ggml.merges", "arr[str]", merges),
        KeyValue("tokenizer.ggml.bos_token_id", "u32", n - 2),
        KeyValue("tokenizer.ggml.eos_token_id", "u32", n - 1),
    ]
    if pre is not None:
        entries.append(KeyValue("tokenizer.ggml.pre", "str", pre))
    return write_base(path, geometry=dataclasses.replace(GEOMETRY, n_vocab=n), metadata=(*entries, *metadata))


def trained_sentencepiece_base(
    path: Path, order: Callable[[list[float]], Sequence[float]] = list, *metadata: KeyValue
) -> Path:
    """A toy base with a SentencePiece tokenizer; ``order``: what becomes of the trained scores 0, -1, -2..."""
    pieces, _ = _trained(2500, byte_level=False)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = order([-float(i) for i in range(len(pieces))])
    entries = (
        KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, *[6] * 256, *[1] * len(pieces)]),
        KeyValue("tokenizer.ggml.scores", "arr[f32]", [*[0.0] * 259, *scores]),
    )
    return write_base(path, geometry=dataclasses.replace(GEOMETRY, n_vocab=len(tokens)), metadata=(*entries, *metadata))
