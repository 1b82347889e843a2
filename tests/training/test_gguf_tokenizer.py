"""The tokenizer made of a GGUF file cuts texts as llama.cpp does, for every pre-tokenizer of the table."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from otter_gguf import _native
from otter_gguf.errors import FileError, UnsupportedError
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.tokenizers.agreement import compare_tokenizers
from otter_gguf.tokenizers.probes import PROBES
from otter_gguf.training.gguf_tokenizer import gguf_tokenizer
from otter_gguf.training.pre_tokenizers import PRE_TOKENIZERS
from tests.refusals import refused
from tests.tokenizer_toys import (
    BPE_TOKENS,
    MERGES,
    bpe_base,
    mixed_texts,
    sentencepiece_base,
    trained_bpe_base,
    trained_sentencepiece_base,
)

# One name of each kind.
KINDS = tuple({kind: name for name, kind in reversed(PRE_TOKENIZERS.items())}.values())
TEXTS = tuple(dict.fromkeys([*PROBES, "abcabc", *mixed_texts(500, seed=1)]))
SCORES: dict[str, Callable[[list[float]], list[float]]] = {
    "trained": list,
    "shuffled": lambda scores: random.Random(0).sample(scores, len(scores)),
    "equal": lambda scores: [0.0] * len(scores),
}


def strings(name: str, values: Sequence[str]) -> KeyValue:
    return KeyValue(f"tokenizer.ggml.{name}", "arr[str]", list(values))


def made(path: Path) -> Any:
    file = _native.GgufFile(str(path))
    _native.check_base(file)
    return gguf_tokenizer(file)


def native_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    native = _native.Model(str(path), vocab_only=True)
    return [native.tokenize(text.encode(), add_special=True, parse_special=True) for text in texts]


def differing(path: Path, texts: Sequence[str] = TEXTS) -> list[str]:
    """The texts that become other tokens than llama.cpp's, with all that is added to them."""
    found = made(path)(list(texts))["input_ids"]
    return [text for text, ours, theirs in zip(texts, found, native_ids(path, texts), strict=True) if ours != theirs]


# ---- byte-level --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", KINDS)
def test_a_pre_tokenizer_cuts_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    assert differing(trained_bpe_base(tmp_path / "b.gguf", pre)) == []


@pytest.mark.slow
@pytest.mark.parametrize("pre", KINDS)
def test_a_pre_tokenizer_cuts_many_texts_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    assert differing(trained_bpe_base(tmp_path / "b.gguf", pre), mixed_texts(4000, seed=2)) == []


def test_no_pre_tokenizer_passes_for_another(tmp_path: Path) -> None:
    """The negative twin: these texts tell all kinds apart, so that a wrong pattern would have shown."""
    cuts = {pre: str(made(trained_bpe_base(tmp_path / "b.gguf", pre))(list(TEXTS))["input_ids"]) for pre in KINDS}
    assert len(KINDS) >= 25
    assert len(set(cuts.values())) == len(KINDS)
    base = trained_bpe_base(tmp_path / "b.gguf", "smollm")
    assert str(native_ids(base, TEXTS)) == cuts["smollm"] != cuts["gpt-2"]


@pytest.mark.parametrize("pre", [None, "", *sorted(PRE_TOKENIZERS.keys() - set(KINDS))])
def test_names_of_one_kind(pre: str | None, tmp_path: Path) -> None:
    """Each is known to llama.cpp, means the same there, and adds the same to a text."""
    assert differing(trained_bpe_base(tmp_path / "b.gguf", pre), TEXTS[:150]) == []


@pytest.mark.parametrize("pre", ["gemma4", "sarvam-moe", "kimi-k2", "jina-v2-code"])
def test_a_pre_tokenizer_outside_the_table_is_refused(pre: str, tmp_path: Path) -> None:
    base = trained_bpe_base(tmp_path / "b.gguf", pre)
    with refused(UnsupportedError, base, "tokenizer.ggml.pre", pre, "Hugging Face"):
        made(base)


def test_another_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    base = trained_bpe_base(tmp_path / "b.gguf", None, KeyValue("tokenizer.ggml.model", "str", "gemma4"))
    with refused(UnsupportedError, base, "tokenizer.ggml.model", "gemma4"):
        made(base)


def test_of_two_equal_merges_the_first_counts(tmp_path: Path) -> None:
    merges = [*MERGES, ("a", "n")]
    base = bpe_base(tmp_path / "b.gguf", merges)
    assert differing(base) == []
    assert native_ids(base, TEXTS) != native_ids(
        bpe_base(tmp_path / "c.gguf", merges[merges.index(("an", "d")) :]), TEXTS
    )


def test_a_merge_of_an_unknown_piece_is_refused(tmp_path: Path) -> None:
    base = bpe_base(tmp_path / "b.gguf", [*MERGES, ("otter", "otter")])
    with refused(FileError, base, "tokenizer.ggml.merges", "'otter otter'", "'otterotter'"):
        made(base)


# ---- SentencePiece -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("order", ["trained", "shuffled"])
def test_pieces_are_merged_by_their_scores(order: str, prefix: bool, tmp_path: Path) -> None:
    entry = KeyValue("tokenizer.ggml.add_space_prefix", "bool", prefix)
    base = trained_sentencepiece_base(tmp_path / "b.gguf", SCORES[order], entry)
    texts = [*TEXTS, *mixed_texts(2000, seed=3), *("a" * n for n in range(40)), *(" " * n for n in range(40))]
    assert differing(base, texts) == []


def test_another_order_of_scores_shows(tmp_path: Path) -> None:
    """The negative twin of the test above, and what no order of merges can say: pieces of equal scores."""
    plain, shuffled = (
        trained_sentencepiece_base(tmp_path / f"{order}.gguf", SCORES[order]) for order in ("trained", "shuffled")
    )
    assert sum(a != b for a, b in zip(native_ids(plain, TEXTS), native_ids(shuffled, TEXTS), strict=True)) > 100
    equal = trained_sentencepiece_base(tmp_path / "equal.gguf", SCORES["equal"])
    assert len(differing(equal)) > 100
    assert compare_tokenizers(equal, made(equal)).differences


# ---- special tokens ----------------------------------------------------------------------------------------------

# Name, type in the file, and whether the name stands for the token in a text.
SPECIAL = (
    ("<s>", 3, True),
    ("</s>", 3, True),
    ("<|im_end|>", 1, True),  # a control token by its name
    ("<fim_prefix>", 1, True),
    ("<|message|>", 3, True),  # to be shown by its name
    ("<|otter|>", 1, False),
    ("  ", 4, True),
    ("<|user|>", 4, True),
)
CHATS = (
    *(f"otter{name}otter {name} otter  {name}" for name, _, _ in SPECIAL),
    "<s><|user|>  hi<|im_end|>\n<|message|>     end",
    "<|us</s>er|>",
)


def special_base(path: Path, *metadata: KeyValue) -> Path:
    plain = BPE_TOKENS[: -len(SPECIAL)]
    kept = {name for name in plain if len(name) == 1}
    merges = [(a, b) for a, b in MERGES if a + b in plain and {a, b} <= (kept | set(plain))]
    return bpe_base(
        path,
        merges,
        strings("tokens", [*plain, *(name for name, _, _ in SPECIAL)]),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [1] * len(plain) + [kind for _, kind, _ in SPECIAL]),
        KeyValue("tokenizer.ggml.bos_token_id", "u32", len(plain)),
        KeyValue("tokenizer.ggml.eos_token_id", "u32", len(plain) + 1),
        *metadata,
    )


def test_names_of_special_tokens(tmp_path: Path) -> None:
    base = special_base(tmp_path / "b.gguf")
    tokenizer = made(base)
    assert differing(base, (*TEXTS, *CHATS)) == []
    for name, _, read in SPECIAL:
        assert (tokenizer(name, add_special_tokens=False)["input_ids"] == [tokenizer.get_vocab()[name]]) == read
    assert compare_tokenizers(base, tokenizer).notes == []
    shown = tokenizer.decode(tokenizer("<|user|>a<|im_end|><|message|>")["input_ids"], skip_special_tokens=True)
    assert shown == "<|user|>a<|message|>"


def test_a_key_comes_before_a_name(tmp_path: Path) -> None:
    """Where the file says which token begins the middle, another of a likely name is an ordinary one."""
    entry = KeyValue("tokenizer.ggml.fim_pre_token_id", "u32", len(BPE_TOKENS) - 1)
    base = special_base(tmp_path / "b.gguf", entry)
    assert differing(base, CHATS) == []
    assert len(made(base)("<fim_prefix>", add_special_tokens=False)["input_ids"]) > 1


def test_spaces_behind_special_tokens_of_phi_3(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"otershi", "\n"]
    tokens += [f"<|x{i}|>" for i in range(288 - len(tokens))]
    n = len(tokens)
    entries = (
        strings("tokens", tokens),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, 3, 3, *[6] * 256, *[1] * (n - 261)]),
    )
    texts = [f"hi{name}{space}hi" for name in tokens[:5] for space in ("", " ", "  ", "\n", " \n ")]
    ids = {}
    for name in ("Phi-3 mini", "other"):
        base = sentencepiece_base(tmp_path / "b.gguf", *entries, KeyValue("general.name", "str", name))
        assert differing(base, texts) == []
        ids[name] = native_ids(base, texts)
    assert ids["Phi-3 mini"] != ids["other"]


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("write", [bpe_base, sentencepiece_base])
def test_what_is_added_to_a_text(write: Callable[..., Path], bos: bool, eos: bool, tmp_path: Path) -> None:
    flags = [
        KeyValue(f"tokenizer.ggml.add_{name}_token", "bool", value) for name, value in (("bos", bos), ("eos", eos))
    ]
    base = write(tmp_path / "b.gguf", *([MERGES] if write is bpe_base else []), *flags)
    tokenizer = made(base)
    assert differing(base) == []
    around = len(tokenizer("")["input_ids"])
    assert around == bos + eos
    assert tokenizer.decode(tokenizer("the otters")["input_ids"], skip_special_tokens=True) == "the otters"


def test_the_files_special_ids(tmp_path: Path) -> None:
    entry = KeyValue("tokenizer.ggml.padding_token_id", "u32", BPE_TOKENS.index("<|river|>"))
    tokenizer = made(bpe_base(tmp_path / "b.gguf", MERGES, entry))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<|river|>")
    assert tokenizer.unk_token is None
    # no special token, so nothing to be read as one
    other = made(bpe_base(tmp_path / "b.gguf", MERGES, KeyValue(entry.key, "u32", BPE_TOKENS.index("Ġotter"))))
    assert other.pad_token is None


def test_empty_tokens(tmp_path: Path) -> None:
    """llama.cpp reads up to a NUL, and names what is empty."""
    base = bpe_base(tmp_path / "b.gguf", MERGES, strings("tokens", [*BPE_TOKENS[:-3], "<s>\0x", "</s>", ""]))
    tokenizer = made(base)
    assert tokenizer.convert_ids_to_tokens([285, 286, 287]) == ["<s>", "</s>", "[EMPTY_287]"]
    assert differing(base) == []


# ---- as a whole --------------------------------------------------------------------------------------------------


def test_a_chat_template_is_text(tmp_path: Path) -> None:
    template = "{{ 1 / 0 }}{% for x in range(10**9) %}{% endfor %}"
    base = bpe_base(tmp_path / "b.gguf", MERGES, KeyValue("tokenizer.chat_template", "str", template))
    assert made(base).chat_template == template
    assert made(bpe_base(tmp_path / "c.gguf")).chat_template is None


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "falcon"])
def test_saved_beside_a_model_it_stays_the_same(model_type: str, tmp_path: Path) -> None:
    """The class that transformers takes for such a model must not put a pre-tokenizer of its own in its place."""
    base = trained_bpe_base(tmp_path / "b.gguf", "smollm")
    made(base).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert loaded(list(TEXTS))["input_ids"] == native_ids(base, TEXTS)
    assert compare_tokenizers(base, loaded).differences == []
