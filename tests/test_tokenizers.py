"""transformers' tokenizer beside llama.cpp's: they agree, or every difference is named in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import normalizers, pre_tokenizers

from otter_gguf.errors import FileError, MismatchError
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.tokenizers.agreement import check_tokenizer, compare_tokenizers, load_tokenizer
from otter_gguf.tokenizers.probes import PROBES

from .gguf.toy_files import GEOMETRY
from .refusals import assert_names, refused
from .tokenizer_toys import (
    BOS,
    BPE_TOKENS,
    EOS,
    MERGES,
    PIECES,
    bpe_base,
    bpe_folder,
    sentencepiece_base,
    sentencepiece_folder,
    swapped,
)


def refusal(base: Path, folder: Path) -> str:
    with refused(MismatchError, base, folder) as caught:
        check_tokenizer(base, load_tokenizer(folder))
    message = str(caught.value)
    assert message.isprintable()
    return message


def flag(name: str, value: bool) -> KeyValue:
    return KeyValue(f"tokenizer.ggml.{name}", "bool", value)


def number(name: str, value: int) -> KeyValue:
    return KeyValue(f"tokenizer.ggml.{name}", "u32", value)


def test_the_toys_fill_the_vocabulary() -> None:
    assert len(BPE_TOKENS) == len(PIECES) == GEOMETRY.n_vocab
    assert len(set(PROBES)) == len(PROBES)


# ---- byte-level --------------------------------------------------------------------------------------------------


def test_byte_level_tokenizers_agree(tmp_path: Path) -> None:
    found = compare_tokenizers(bpe_base(tmp_path / "b.gguf"), load_tokenizer(bpe_folder(tmp_path / "hf")))
    assert (found.differences, found.notes) == ([], [])


def test_two_merges_in_another_order(tmp_path: Path) -> None:
    message = refusal(bpe_base(tmp_path / "b.gguf", swapped(MERGES)), bpe_folder(tmp_path / "hf"))
    assert_names(message, '"Otters, seals')
    whole, part, rest = (BPE_TOKENS.index(piece) for piece in ("Ġand", "Ġa", "nd"))
    found, expected = message.split("llama.cpp ")[1].split(", transformers ")
    assert f"{part}, {rest}, " in found
    assert "| a|nd|" in found
    assert f"{whole}, " in expected
    assert "|Ġand|" in expected


def test_another_pre_tokenizer(tmp_path: Path) -> None:
    """Qwen's cuts numbers into digits, so that no merge puts them together."""
    base = bpe_base(tmp_path / "b.gguf", MERGES, KeyValue("tokenizer.ggml.pre", "str", "qwen2"))
    message = refusal(base, bpe_folder(tmp_path / "hf"))
    assert_names(message, "llama.cpp [", "transformers [")
    assert "add_bos" not in message
    assert "vocabulary" not in message


def test_an_added_token(tmp_path: Path) -> None:
    message = refusal(bpe_base(tmp_path / "b.gguf"), bpe_folder(tmp_path / "hf", added=["holt"]))
    assert_names(message, "vocabulary", 288, 289, "1 of ", "'holt': llama.cpp", "transformers [288] 'holt'")


def test_an_added_token_in_place_of_padding(tmp_path: Path) -> None:
    """Converters fill up the vocabulary with unused tokens: their number is no difference, a token there is one."""
    tokens = [*BPE_TOKENS[:-1], "[PAD287]"]
    types = [1] * 285 + [3, 3, 5]
    padded = (
        KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", types),
    )
    message = refusal(bpe_base(tmp_path / "b.gguf", MERGES, *padded), bpe_folder(tmp_path / "hf"))
    assert "vocabulary" not in message
    assert_names(message, "first '<|river|>'")


def test_a_token_that_training_lacks(tmp_path: Path) -> None:
    """The piece that the GGUF alone has is found among its own."""
    tokens = [*BPE_TOKENS[:-1], "<|holt|>"]
    base = bpe_base(tmp_path / "b.gguf", MERGES, KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens))
    message = refusal(base, bpe_folder(tmp_path / "hf"))
    assert_names(message, "2 of ", "first '<|river|>'")


def test_what_is_added_to_texts_and_special_ids_are_named_together(tmp_path: Path) -> None:
    changed = (flag("add_bos_token", False), flag("add_eos_token", True), number("eos_token_id", 7))
    message = refusal(bpe_base(tmp_path / "b.gguf", swapped(MERGES), *changed), bpe_folder(tmp_path / "hf"))
    assert_names(message, "eos", 7, EOS)
    assert_names(message, "tokenizer.ggml.add_bos_token", "[]", f"[{BOS}]")
    assert_names(message, "tokenizer.ggml.add_eos_token", "[7]")
    assert_names(message, "llama.cpp [", "transformers [")


def test_another_begin_of_text(tmp_path: Path) -> None:
    message = refusal(bpe_base(tmp_path / "b.gguf", MERGES, number("bos_token_id", 7)), bpe_folder(tmp_path / "hf"))
    assert_names(message, "bos", 7, BOS, "[7]", f"[{BOS}]")
    assert "transformers [" not in message


def test_normalised_text_is_a_note(tmp_path: Path) -> None:
    """llama.cpp does not make normal forms: prompts in one have the same tokens, so nothing is refused."""
    folder = bpe_folder(tmp_path / "hf", normalizer=normalizers.NFC())
    found = compare_tokenizers(bpe_base(tmp_path / "b.gguf"), load_tokenizer(folder))
    assert found.differences == []
    assert len(found.notes) == 1
    assert_names(found.notes[0], "prompts", "NFC")


def test_another_normalisation_is_a_difference(tmp_path: Path) -> None:
    folder = bpe_folder(tmp_path / "hf", normalizer=normalizers.Lowercase())
    assert_names(refusal(bpe_base(tmp_path / "b.gguf"), folder), "first 'The otter")


# ---- SentencePiece -----------------------------------------------------------------------------------------------


def test_sentencepiece_tokenizers_agree(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "hf")
    found = compare_tokenizers(sentencepiece_base(tmp_path / "b.gguf"), load_tokenizer(folder))
    assert (found.differences, found.notes) == ([], [])


def test_two_scores_in_another_order(tmp_path: Path) -> None:
    scores = [-float(i) for i in range(GEOMETRY.n_vocab)]
    first, second = PIECES.index("▁t"), PIECES.index("th")
    scores[first], scores[second] = scores[second], scores[first]
    scores[PIECES.index("he")] = -1000.0
    base = sentencepiece_base(tmp_path / "b.gguf", KeyValue("tokenizer.ggml.scores", "arr[f32]", scores))
    message = refusal(base, sentencepiece_folder(tmp_path / "hf"))
    assert_names(message, "llama.cpp [", "transformers [")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (flag("add_bos_token", False), ("tokenizer.ggml.add_bos_token", "[]", "[1]")),
        (flag("add_eos_token", True), ("tokenizer.ggml.add_eos_token", "[2]", "[]")),
        (flag("add_space_prefix", False), ("first 'The otter",)),
    ],
)
def test_a_flag_of_the_file(entry: KeyValue, expected: tuple[str, ...], tmp_path: Path) -> None:
    base, folder = sentencepiece_base(tmp_path / "b.gguf", entry), sentencepiece_folder(tmp_path / "hf")
    assert_names(refusal(base, folder), *expected)


def test_an_added_sentencepiece_token(tmp_path: Path) -> None:
    message = refusal(sentencepiece_base(tmp_path / "b.gguf"), sentencepiece_folder(tmp_path / "hf", added=["holt"]))
    assert_names(message, "vocabulary", 288, 289, "first 'holt'")


def test_spaces_of_transformers_own_class_are_a_note(tmp_path: Path) -> None:
    """It puts a space before a text only where there is none, llama.cpp always."""
    tokenizer = load_tokenizer(sentencepiece_folder(tmp_path / "hf"))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    found = compare_tokenizers(sentencepiece_base(tmp_path / "b.gguf"), tokenizer)
    assert found.differences == []
    assert len(found.notes) == 2
    assert_names(found.notes[0], "prompts", "space")
    assert_names(found.notes[1], "'otter<s>otter <s> otter'")


# ---- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with refused(FileError, tmp_path):
        load_tokenizer(tmp_path)


def test_a_damaged_base_is_refused_before_llama_cpp_reads_it(tmp_path: Path) -> None:
    base = bpe_base(tmp_path / "b.gguf", MERGES[:-1], number("bos_token_id", 5000))
    with refused(FileError, base, "tokenizer.ggml.bos_token_id", 5000):
        compare_tokenizers(base, load_tokenizer(bpe_folder(tmp_path / "hf")))
