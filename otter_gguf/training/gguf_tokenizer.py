"""The tokenizer of a GGUF file for transformers, made from what the file says about it (``tokenizer.ggml.*``).

transformers makes one too, but guesses what the file only names: how a text is cut into words before pieces are merged
(:mod:`.pre_tokenizers`), and where SentencePiece puts spaces. This one follows llama.cpp, which reads the same keys
(``src/llama-vocab.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .. import _native
from ..errors import FileError, UnsupportedError
from .pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

_SPACE = "▁"
"""What SentencePiece writes for a space."""
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_ADVICE = "train on the base's Hugging Face folder instead"
# llama.cpp takes tokens of these names for control tokens, whatever type the file gives them.
_CONTROL_NAMES = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> "
    "[e~[".split()
)
_USER_DEFINED_NAMES = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())
# The same, where the file does not say which token is for filling in the middle: its keys, and the names.
_FILL_IN_NAMES = {
    "fim_pre prefix": "<|fim_prefix|> <|prefix|> <|code_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> "
    "<PRE> ▁<PRE>",
    "fim_suf suffix": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid middle": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")


def gguf_tokenizer(file: _native.GgufFile) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a base file that :func:`._native.check_base` has passed; its chat template stays a text.

    Raises:
        FileError: a merge names a token that is not in the vocabulary.
        UnsupportedError: a kind of tokenizer or of pre-tokenizer that is not made here.
    """
    vocabulary = _Vocabulary(file)
    kind = vocabulary.value("model")
    if kind == "gpt2":
        backend, add_bos = _byte_level(vocabulary)
    elif kind == "llama":
        backend, add_bos = _sentencepiece(vocabulary), True
    else:
        raise vocabulary.unsupported("model", kind)
    named = vocabulary.named_tokens(add_bos)
    _add_special_tokens(backend, vocabulary)
    backend.post_processor = _template(vocabulary, named, add_bos)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": vocabulary.tokens[token] for name, token in named.items()},
    )
    if "tokenizer.chat_template" in file.keys:
        tokenizer.chat_template = str(file.value("tokenizer.chat_template"))
    return tokenizer


class _Vocabulary:
    """A file's keys ``tokenizer.ggml.*``, read as llama.cpp reads them."""

    def __init__(self, file: _native.GgufFile) -> None:
        self._file = file
        self.path = file.path
        self._keys = set(file.keys)
        # llama.cpp reads C strings, and names those that are empty
        texts = (text.partition("\0")[0] for text in self.value("tokens"))
        self.tokens = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
        self.ids = {text: token for token, text in enumerate(self.tokens)}
        self.types: Sequence[int] = self.value("token_type") or [1] * len(self.tokens)
        self._control_names = _CONTROL_NAMES.union(*self._fill_in_names())

    def value(self, name: str, default: Any = None) -> Any:
        """Return the value of ``tokenizer.ggml.NAME``."""
        key = f"tokenizer.ggml.{name}"
        return self._file.value(key) if key in self._keys else default

    def _fill_in_names(self) -> Iterator[list[str]]:
        for names, texts in _FILL_IN_NAMES.items():
            if all(self.value(f"{name}_token_id") is None for name in names.split()):
                yield texts.split()

    def unsupported(self, name: str, value: object) -> UnsupportedError:
        """Return the error that says of which value of ``tokenizer.ggml.NAME`` no tokenizer is made here."""
        return UnsupportedError(
            f"{self.path}: no tokenizer for training is made of key 'tokenizer.ggml.{name}' = {value!r}; {_ADVICE}"
        )

    def pre_tokenizer(self) -> PreTokenizer:
        """Return how texts are cut into words."""
        name = self.value("pre") or "default"
        if name not in PRE_TOKENIZERS:
            raise self.unsupported("pre", name)
        return PRE_TOKENIZERS[name]

    def named_tokens(self, add_bos: bool) -> dict[str, int]:
        """Return the ids of ``bos``, ``eos``, ``unk`` and ``pad``: the file's, or else those that llama.cpp takes."""
        keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        given = {name: self.value(f"{key}_token_id", -1) for name, key in keys.items()}
        found = {name: token for name, token in given.items() if 0 <= token < len(self.tokens)}
        for name, token in self._default_tokens(add_bos).items():
            found.setdefault(name, token)
        # Of an ordinary piece transformers would make a special token, as llama.cpp does not.
        return {name: token for name, token in found.items() if name in ("bos", "eos") or self.is_special(token)}

    def _default_tokens(self, add_bos: bool) -> dict[str, int]:
        if self.value("model") == "llama":
            return {"bos": 1, "eos": 2, "unk": 0}
        # Without a meaning: what llama.cpp adds to every text if it is told to add a token, but not which.
        added = {"bos": self.value("add_bos_token", add_bos), "eos": self.value("add_eos_token", False)}
        return {name: 11 for name, wanted in added.items() if wanted and len(self.tokens) > 11}

    def is_special(self, token: int) -> bool:
        """Tell whether its name in a text is read as this token, before the text is cut into words."""
        return self.is_control(token) or self.types[token] == _USER_DEFINED or self._is_rendered(token)

    def is_control(self, token: int) -> bool:
        """Tell whether the token is no part of a text, so that a decoder may skip it."""
        control = self.types[token] in (_UNKNOWN, _CONTROL) or self.tokens[token] in self._control_names
        return control and not self._is_rendered(token)

    def _is_rendered(self, token: int) -> bool:
        return self.tokens[token] in _USER_DEFINED_NAMES

    def strips_spaces(self) -> bool:
        """Tell whether spaces behind special tokens are left out, as llama.cpp does for models that are named Phi-3."""
        name = str(self._file.value("general.name")).lower() if "general.name" in self._keys else ""
        return "phi-3" in name or "phi3" in name


# ---- byte-level --------------------------------------------------------------------------------------------------


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Make the tokenizer of a ``gpt2`` vocabulary; also returns whether its kind adds a begin-of-text token."""
    pre_tokenizer = vocabulary.pre_tokenizer()
    model = models.BPE(vocab=vocabulary.ids, merges=_file_merges(vocabulary), ignore_merges=pre_tokenizer.ignore_merges)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre_tokenizer.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, pre_tokenizer.add_bos


def _file_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return the merges in the file's order; of two that are the same the first counts."""
    merges: dict[tuple[str, str], None] = {}
    for merge in vocabulary.value("merges"):
        space = merge.index(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        for piece in (left, right, left + right):
            if piece not in vocabulary.ids:
                raise FileError(
                    f"{vocabulary.path}: key 'tokenizer.ggml.merges' holds {merge!r}, but there is no token {piece!r}"
                )
        merges[left, right] = None
    return list(merges)


# ---- SentencePiece -----------------------------------------------------------------------------------------------


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """Make the tokenizer of a ``llama`` vocabulary, which merges by scores and writes unknown characters as bytes."""
    unknown = vocabulary.tokens[vocabulary.named_tokens(True).get("unk", 0)]
    model = models.BPE(
        vocab=vocabulary.ids, merges=_score_merges(vocabulary), unk_token=unknown, byte_fallback=True, fuse_unk=True
    )
    backend = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.value("add_space_prefix", True):  # before every text, and before what follows a special token
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        backend.normalizer = spaces
        backend.decoder = decoders.Sequence(steps)
    return backend


def _score_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make up a piece in the order in which llama.cpp merges them, best score first.

    Where scores are equal llama.cpp takes the leftmost pair of the text, which no order of merges can say. Here the
    longer piece comes first, so that a run of one character is merged from the left as well.
    """
    ids = vocabulary.ids
    scores: Sequence[float] = vocabulary.value("scores") or [0.0] * len(ids)
    found = [
        (-scores[token], -len(piece), ids[piece[:cut]], ids[piece[cut:]], cut, piece)
        for piece, token in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(piece[:cut], piece[cut:]) for *_, cut, piece in sorted(found)]


# ---- special tokens ----------------------------------------------------------------------------------------------


def _add_special_tokens(backend: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Have the names of special tokens read as these tokens.

    Where two names overlap, llama.cpp reads the longer one and this tokenizer the one that begins first.
    """
    strips = vocabulary.strips_spaces()
    special = [token for token in range(len(vocabulary.tokens)) if vocabulary.is_special(token)]
    for control in (True, False):
        added = [
            AddedToken(name, special=control, normalized=False, rstrip=strips and name not in _NOT_STRIPPED)
            for name in (vocabulary.tokens[token] for token in special if vocabulary.is_control(token) == control)
        ]
        (backend.add_special_tokens if control else backend.add_tokens)(added)


def _template(vocabulary: _Vocabulary, named: dict[str, int], add_bos: bool) -> processors.TemplateProcessing:
    """Say what is added to every text."""
    adds = {"bos": vocabulary.value("add_bos_token", add_bos), "eos": vocabulary.value("add_eos_token", False)}
    around = {name: [name] if adds[name] else [] for name in adds}
    tokens = [
        {"id": name, "ids": [named[name]], "tokens": [vocabulary.tokens[named[name]]]} for name in adds if adds[name]
    ]
    single, second = ([*around["bos"], text, *around["eos"]] for text in ("$A", "$B:1"))
    return processors.TemplateProcessing(single=single, pair=[*single, *second], special_tokens=tokens)
