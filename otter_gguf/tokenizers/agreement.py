"""Whether transformers' tokenizer, used in training, and llama.cpp's, used at run time, give the same token ids.

A model trained on other tokens than it is fed predicts rewards of texts that nobody wrote, without any error. Neither
torch nor transformers is imported before a tokenizer is loaded.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import _native
from ..errors import FileError, MismatchError, UnsupportedError
from ..gguf.base import BaseFiles
from ..text import terminal_safe
from .probes import PROBES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""A folder that holds none of them has no tokenizer."""

SAMPLED_PIECES = 2000
"""Pieces of the vocabulary that are compared as texts of their own at most, evenly spread over it."""

_SHOWN_IDS = 12
_SHOWN_TEXT = 60
_TYPES = "tokenizer.ggml.token_type"
_UNUSED = 5  # a row of the embedding without a piece
_NORMAL_FORMS: tuple[Literal["NFC"], Literal["NFKC"]] = ("NFC", "NFKC")
_LETTER = "a"


@dataclass
class Agreement:
    """What a comparison found."""

    differences: list[str] = field(default_factory=list)
    """Each in words; none if the tokenizers agree."""
    notes: list[str] = field(default_factory=list)
    """Differences that a caller can avoid, and how."""


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds a Hugging Face tokenizer."""
    return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer, by folder or Hub name; code that a folder brings never runs.

    Raises:
        FileError: there is none.
        UnsupportedError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UnsupportedError(f"{name}: its tokenizer needs transformers: pip install 'otter-gguf[train]'") from None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(name), revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{name}: cannot load the tokenizer: {reason}") from None
    # What some versions of transformers make of a folder without a tokenizer.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise FileError(f"{name}: cannot load the tokenizer: it has no vocabulary")
    return tokenizer


def check_tokenizer(base: str | Path, tokenizer: PreTrainedTokenizerBase, *, advice: str = "") -> list[str]:
    """Compare a tokenizer with that of a base GGUF (see :func:`compare_tokenizers`).

    Args:
        base: The GGUF; the first file of a split one.
        tokenizer: What training uses.
        advice: What to do about a difference; a general advice if empty.

    Returns:
        The notes of the comparison.

    Raises:
        MismatchError: they differ; one message lists the differences, and of texts the first.
        FileError, UnsupportedError: the GGUF is damaged, or no model that llama.cpp runs.
    """
    found = compare_tokenizers(base, tokenizer)
    if found.differences:
        name = getattr(tokenizer, "name_or_path", "") or "training"
        advice = advice or "use the base whose tokenizer this is; its rewards would be those of other texts"
        raise MismatchError(f"{base}: another tokenizer than that of {name}: {'; '.join(found.differences)}; {advice}")
    return found.notes


def compare_tokenizers(base: str | Path, tokenizer: PreTrainedTokenizerBase) -> Agreement:
    """Compare transformers' tokenizer with llama.cpp's of a base GGUF.

    Compared are the size of the vocabulary, the end-of-text and begin-of-text tokens, what is added to every text, and
    the token ids of :data:`~.probes.PROBES`, of special tokens as text, and of :data:`SAMPLED_PIECES`.
    Differences that a caller can avoid are notes: texts that agree in a Unicode normal form, which llama.cpp does not
    make, or without a space in front, and texts with special tokens inside.

    Raises:
        FileError, UnsupportedError: the GGUF is damaged, or no model that llama.cpp runs.
    """
    with BaseFiles.open(base) as files:
        _native.check_base(files.metadata_file)
        n_used = _n_used(files.metadata_file)
    pair = _Pair(_native.Model(os.fsencode(base), vocab_only=True), tokenizer)
    found = Agreement([*pair.vocabulary_differences(n_used), *pair.added_differences()])
    pieces = pair.pieces(n_used)
    pair.compare_texts(found, [*PROBES, *pair.special_texts(), *pieces])
    pair.note_special_inside(found)
    return found


def _n_used(file: _native.GgufFile) -> int:
    """Tokens up to the last that has a piece; converters fill the vocabulary up to the rows of the embedding."""
    n_tokens = file.array_length("tokenizer.ggml.tokens")
    types: Sequence[int] = file.value(_TYPES) if _TYPES in file.keys else ()
    while n_tokens and n_tokens <= len(types) and types[n_tokens - 1] == _UNUSED:
        n_tokens -= 1
    return n_tokens


class _Pair:
    """llama.cpp's vocabulary beside transformers' tokenizer; in messages the one is found, the other expected."""

    def __init__(self, native: _native.Model, tokenizer: Any) -> None:
        self.native = native
        self.tokenizer = tokenizer

    def native_ids(self, text: str, *, added: bool = False) -> list[int]:
        """As at run time, where the names of special tokens are read as these tokens."""
        return self.native.tokenize(text.encode(), add_special=added, parse_special=True)

    def ids(self, text: str, *, added: bool = False) -> list[int]:
        """As in training."""
        return list(self.tokenizer(text, add_special_tokens=added)["input_ids"])

    def vocabulary_differences(self, n_used: int) -> list[str]:
        """Of the number of tokens, and of the special ones' ids."""
        n_expected = max(self.tokenizer.get_vocab().values(), default=-1) + 1
        differences = []
        if not n_used <= n_expected <= self.native.n_vocab:
            differences.append(f"vocabulary of {n_used} tokens, expected {n_expected}")
        for name, found, expected in (
            ("bos", self.native.bos_token, self.tokenizer.bos_token_id),
            ("eos", self.native.eos_token, self.tokenizer.eos_token_id),
        ):
            if expected is not None and found != expected:
                differences.append(f"{name} is token {found}, expected {expected}")
        return differences

    def added_differences(self) -> list[str]:
        """Of the tokens that every text gets in front and behind."""
        found = _around(self.native_ids(_LETTER), self.native_ids(_LETTER, added=True))
        expected = _around(self.ids(_LETTER), self.ids(_LETTER, added=True))
        return [
            f"{place} every text stand {theirs}, expected {ours} (key tokenizer.ggml.{key})"
            for place, key, theirs, ours in zip(
                ("in front of", "behind"), ("add_bos_token", "add_eos_token"), found, expected, strict=True
            )
            if theirs != ours
        ]

    def special_texts(self) -> list[str]:
        """The names of all tokens that are no ordinary pieces."""
        return list(map(str, self.tokenizer.get_added_vocab()))

    def pieces(self, n_used: int) -> list[str]:
        """The texts of some tokens; those that are parts of a character only have none."""
        step = max(1, math.ceil(n_used / SAMPLED_PIECES))
        data = (self.native.token_bytes(token, special=True) for token in range(0, n_used, step))
        return [text for text in (piece.decode("utf-8", "ignore") for piece in data) if text]

    def compare_texts(self, found: Agreement, texts: Iterable[str]) -> None:
        """Add the first difference and the number of them; what a caller can avoid becomes notes."""
        unique = list(dict.fromkeys(texts))
        advice = {text: self._advice(text) for text in unique if self.native_ids(text) != self.ids(text)}
        refused = [text for text, avoidable in advice.items() if avoidable is None]
        if refused:
            first = self._shown(refused[0])
            found.differences.append(f"{len(refused)} of {len(unique)} texts become other tokens, first {first}")
        first_of = {avoidable: text for text, avoidable in reversed(advice.items()) if avoidable is not None}
        found.notes += [f"{_quoted(text)} becomes other tokens: {reason}" for reason, text in first_of.items()]

    def note_special_inside(self, found: Agreement) -> None:
        """Tokenizers differ in the space that they put behind a special token in the middle of a text."""
        texts = [f"otter{special}otter {special} otter" for special in self.tokenizer.all_special_tokens]
        differing = [text for text in texts if self.native_ids(text) != self.ids(text)]
        if differing:
            found.notes.append(f"special tokens inside a text, as in chats: {self._shown(differing[0])}")

    def _advice(self, text: str) -> str | None:
        """How to write a text so that llama.cpp cuts it as transformers does; None if that is not known."""
        expected = self.ids(text)
        rewritten = {form: unicodedata.normalize(form, text) for form in _NORMAL_FORMS}
        for form, normalised in rewritten.items():
            if normalised != text and self.native_ids(normalised) == expected:
                return f"give prompts in Unicode normal form {form}, which llama.cpp does not make"
        # SentencePiece puts a space before every text, transformers only before those that have none
        endings = ("", _LETTER) if text != " " else (_LETTER,)  # nothing is put before a text without characters
        if text.startswith(" ") and all(self.native_ids(text[1:] + end) == self.ids(text + end) for end in endings):
            return "give prompts without a space in front"
        return None

    def _shown(self, text: str) -> str:
        """A text and what both make of it, from shortly before the first difference."""
        found, expected = self.native_ids(text), self.ids(text)
        first = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            min(len(found), len(expected)),
        )
        begin = 0 if max(len(found), len(expected)) <= _SHOWN_IDS else max(0, first - 2)
        found, expected = (ids[begin : begin + _SHOWN_IDS] for ids in (found, expected))
        where = f" from token {begin} on" if begin else ""
        theirs = [self.native.token_bytes(token, special=True).decode("utf-8", "backslashreplace") for token in found]
        ours = self.tokenizer.convert_ids_to_tokens(expected)
        return f"{_quoted(text)}{where}: llama.cpp {found} {_joined(theirs)}, transformers {expected} {_joined(ours)}"


def _around(inner: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and behind ``inner`` in ``whole``; all of it before, if ``inner`` is not there."""
    for begin in range(len(whole) - len(inner) + 1):
        if whole[begin : begin + len(inner)] == inner:
            return whole[:begin], whole[begin + len(inner) :]
    return whole, []


def _quoted(text: str) -> str:
    return terminal_safe(repr(text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + "..."))


def _joined(pieces: Iterable[object]) -> str:
    text = "|".join(map(str, pieces)).replace("\n", "\\n")
    return terminal_safe(f"'{text}'")
