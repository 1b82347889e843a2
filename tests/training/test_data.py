"""Preference pairs: where responses start, what is cut, and which rows are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_gguf.errors import ConfigError, FileError
from otter_gguf.training import DataOptions, RewardDataset, load_rows, tokenise_rows
from otter_gguf.training.data import Pair, collate
from tests.refusals import refused
from tests.training.toy import toy_rows, toy_tokenizer, write_rows

EOS = 257
ROW = {"prompt": "ab", "chosen": " good", "rejected": " bad"}


def text(tokens: list[int]) -> str:
    return str(toy_tokenizer().decode(tokens))


def one(row: dict[str, Any], **options: Any) -> Any:
    return tokenise_rows([row], toy_tokenizer(), DataOptions(**options))[0]


def test_prompt_and_responses_are_joined_and_ended() -> None:
    pair = one(ROW)
    assert (text(pair.chosen), text(pair.rejected)) == ("ab good</s>", "ab bad</s>")
    assert text(pair.chosen[pair.start :]) == " good</s>"
    assert pair.start == 2
    assert one(ROW, append_eos=False).chosen == pair.chosen[:-1]


def test_end_of_text_is_not_added_twice() -> None:
    assert one({**ROW, "chosen": " good</s>"}).chosen.count(EOS) == 1


def test_without_prompt_responses_start_where_the_texts_part() -> None:
    pair = one({"chosen": "ab good", "rejected": "ab bad"})
    assert text(pair.chosen[pair.start :]) == "good</s>"
    assert pair.start == 3


def test_a_shared_beginning_of_the_responses_belongs_to_them() -> None:
    pair = one({"prompt": "ab", "chosen": " so good", "rejected": " so bad"})
    assert text(pair.chosen[pair.start :]) == " so good</s>"


def test_a_merge_across_the_border_moves_the_start_before_it() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    dataset = tokenise_rows(
        [{"prompt": "ab", "chosen": "cd", "rejected": "d"}], PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    )
    assert dataset[0] == Pair(chosen=[0, 5, 3], rejected=[4, 3], start=0, reward=0)


def test_chat_messages_go_through_the_template() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    pair: Any = tokenise_rows([row], tokenizer)[0]
    assert text(pair.chosen) == "[user]hi[assistant]yes</s>"
    assert text(pair.rejected[pair.start :]) == "no</s>"


def test_long_pairs_are_cut_and_counted() -> None:
    row = {"prompt": "p" * 30, "chosen": "c" * 50, "rejected": "r" * 5}
    dataset = tokenise_rows([row, ROW], toy_tokenizer(), DataOptions(max_length=40))
    assert (len(dataset), dataset.truncated, dataset.dropped) == (2, 1, 0)
    pair: Any = dataset[0]
    assert text(pair.chosen) == "p" * 20 + "c" * 20
    assert text(pair.rejected) == "p" * 20 + "r" * 5 + "</s>"
    assert pair.start == 20
    assert tokenise_rows([row], toy_tokenizer(), DataOptions(max_length=81)).truncated == 0


def test_a_short_prompt_is_kept_whole() -> None:
    pair = one({"prompt": "ab", "chosen": "c" * 50, "rejected": "r" * 5}, max_length=20)
    assert text(pair.chosen) == "ab" + "c" * 18


def test_pairs_that_differ_only_beyond_the_cut_are_dropped_and_counted() -> None:
    row = {"prompt": "a", "chosen": "x" * 30 + "y", "rejected": "x" * 30 + "z"}
    dataset = tokenise_rows([row, ROW], toy_tokenizer(), DataOptions(max_length=20))
    assert (len(dataset), dataset.truncated, dataset.dropped) == (1, 1, 1)
    with refused(FileError, "no rows"):
        tokenise_rows([row], toy_tokenizer(), DataOptions(max_length=20))


def test_rows_name_their_reward_where_there_are_several() -> None:
    rewards = ("safety.harmless", "safety.helpful")
    assert one({**ROW, "reward": "safety.helpful"}, rewards=rewards).reward == 1
    assert one({**ROW, "reward": "reward"}).reward == 0
    with refused(FileError, "row 1", "reward", "safety.harmless", "safety.helpful"):
        one(ROW, rewards=rewards)
    with refused(FileError, "row 1", "other", "reward"):
        one({**ROW, "reward": "other"})


def test_reads_jsonl_and_skips_empty_lines(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", toy_rows(30))
    path.write_text("\n" + path.read_text() + "\n\n")
    dataset = load_rows(path, toy_tokenizer())
    assert len(dataset) == 30
    texts = [row["prompt"] + row[name] for row in toy_rows(30) for name in ("chosen", "rejected")]
    assert dataset.n_tokens == sum(len(text) + 1 for text in texts)  # a token a byte, and end-of-text
    assert dataset.rows == tokenise_rows(toy_rows(30), toy_tokenizer()).rows


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"chosen": "a"}, ("no 'rejected'",)),
        ({"rejected": "a"}, ("no 'chosen'",)),
        (["a", "b"], ("object",)),
        ({**ROW, "chosen": 3}, ("chosen", "string")),
        ({**ROW, "prompt": None}, ("prompt", "string")),
        ({**ROW, "chosen": [{"role": "user", "content": "x"}]}, ("chosen", "string")),
        ({**ROW, "rejected": " good"}, ("chosen", "rejected", "same")),
        ({"prompt": "", "chosen": "ab</s>", "rejected": ""}, None),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path: Path, bad: Any, names: tuple[str, ...] | None) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [ROW, ROW, bad])
    if names is None:
        assert len(load_rows(path, toy_tokenizer())) == 3
        return
    with refused(FileError, "pairs.jsonl", "1 bad", "line 3", *names):
        load_rows(path, toy_tokenizer())


def test_an_empty_response_without_end_of_text_is_refused() -> None:
    with refused(FileError, "row 1", "response"):
        one({**ROW, "rejected": ""}, append_eos=False)


def test_a_line_that_is_not_json_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [ROW])
    path.write_text(path.read_text() + "{oops\n")
    with refused(FileError, "pairs.jsonl", "line 2", "JSON"):
        load_rows(path, toy_tokenizer())


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [ROW, *[{}] * 25])
    with refused(FileError, "pairs.jsonl", "25 bad", "line 2", "line 11", "chosen", "completion", "completions", 15):
        load_rows(path, toy_tokenizer())


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_unreadable_and_empty_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with refused(FileError, "pairs.jsonl"):
        load_rows(path, toy_tokenizer())


def test_options_are_checked() -> None:
    with refused(ConfigError, "max_length", 1, 2):
        DataOptions(max_length=1)


def test_batches_hold_chosen_first_and_are_padded_on_the_right() -> None:
    dataset = tokenise_rows([ROW, {**ROW, "prompt": "abc", "margin": 0.5}], toy_tokenizer())
    batch = collate(dataset.rows)
    assert batch["input_ids"].shape == (4, 9)
    assert batch["length"].tolist() == [8, 9, 7, 8]
    assert batch["row"].tolist() == [0, 1, 0, 1]
    assert batch["start"].tolist() == [2, 3]
    assert batch["rewards"].tolist() == [[0, 1], [0, 1]]
    assert batch["label"].tolist() == [0, 0.5]
    assert text(batch["input_ids"][3, :8].tolist()) == "abc bad</s>"
    assert batch["input_ids"].dtype == torch.long


def test_datasets_index_their_rows() -> None:
    dataset = tokenise_rows([ROW], toy_tokenizer())
    assert dataset[0] is dataset.rows[0]
    assert len(RewardDataset()) == 0
