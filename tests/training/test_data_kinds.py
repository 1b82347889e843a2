"""Rows beside pairs - margins, grades, classes, steps - and where they are read from."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from otter_gguf.errors import FileError
from otter_gguf.training import DataOptions, RewardDataset, load_rows, tokenise_rows
from otter_gguf.training.data import Classed, Graded, Pair, Stepped, collate
from tests.refusals import refused
from tests.training.mixed import OPTIONS, mixed_rows, table_of
from tests.training.toy import toy_tokenizer, write_rows

PAIR = {"prompt": "ab", "chosen": " good", "rejected": " bad"}
GRADED = {"prompt": "ab", "completion": " good", "label": True}
CLASSED = {"prompt": "ab", "completion": " good", "class": "y"}
STEPPED = {"prompt": "ab", "completions": [" one", " two"], "labels": [1, 0.5]}
CLASSES = ("reward", "a.x", "a.y", "b.y", "b.z")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def text(tokens: list[int]) -> str:
    return str(toy_tokenizer().decode(tokens))


def one(row: dict[str, Any], **options: Any) -> Any:
    return tokenise_rows([row], toy_tokenizer(), DataOptions(**options))[0]


def chat_tokenizer() -> Any:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def test_margins_belong_to_pairs() -> None:
    assert one(PAIR).margin == 0
    assert one({**PAIR, "margin": 2}).margin == 2
    assert one({**PAIR, "margin": -0.5}).margin == -0.5


@pytest.mark.parametrize(("label", "value"), [(True, 1.0), (False, 0.0), (1, 1.0), (0.25, 0.25)])
def test_graded_texts_have_a_label(label: Any, value: float) -> None:
    row = one({**GRADED, "label": label})
    assert isinstance(row, Graded)
    assert (text(row.tokens), row.start, row.label, row.reward) == ("ab good</s>", 2, value, 0)
    assert row != one({**GRADED, "label": 0.75})


def test_a_text_without_prompt_is_all_response() -> None:
    assert one({"completion": "good", "label": 1}).start == 0


@pytest.mark.parametrize("name", ["y", 1])
def test_classed_texts_name_their_class(name: Any) -> None:
    row = one({**CLASSED, "class": name, "reward": "a"}, rewards=CLASSES)
    assert isinstance(row, Classed)
    assert (text(row.tokens), row.start, row.rewards, row.label) == ("ab good</s>", 2, range(1, 3), 2)
    other = one({**CLASSED, "class": "y", "reward": "b"}, rewards=CLASSES)
    assert (other.rewards, other.label) == (range(3, 5), 3)


def test_a_class_needs_no_head_where_there_is_one() -> None:
    assert one(CLASSED, rewards=("reward", "a.x", "a.y")).label == 2
    with refused(FileError, "row 1", "reward", "a, b"):
        one(CLASSED, rewards=CLASSES)


def test_steps_end_with_the_separator() -> None:
    row = one(STEPPED)
    assert isinstance(row, Stepped)
    assert text(row.tokens) == "ab one\n two\n"
    assert [text(row.tokens[: end + 1]) for end in row.ends] == ["ab one\n", "ab one\n two\n"]
    assert (row.start, row.labels) == (2, [1.0, 0.5])
    other = one(STEPPED, step_separator="")
    assert [text(other.tokens[: end + 1]) for end in other.ends] == ["ab one", "ab one two"]


def test_a_merge_across_the_border_of_steps_ends_a_step_before_it() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "d", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    row = {"prompt": "d", "completions": ["ab", "ca"], "labels": [1, 0]}
    (found,) = tokenise_rows([row], fast, DataOptions(step_separator="")).rows
    assert found == Stepped([3, 0, 4, 0], 1, [1, 3], [1.0, 0.0])
    with refused(FileError, "row 1", "step 1"):
        tokenise_rows([{**row, "completions": ["b", "ca"]}], fast, DataOptions(step_separator=""))


def test_chat_messages_go_through_the_template() -> None:
    user, tokenizer = message("user", "hi"), chat_tokenizer()
    rows: list[dict[str, Any]] = [
        {"prompt": user, "completion": message("assistant", "yes"), "label": 0.5},
        {"prompt": user, "completions": ["one", "two"], "labels": [1, 0]},
        {"prompt": user, "completions": [message("assistant", "one"), message("tool", "2")], "labels": [1, 0]},
    ]
    graded, steps, turns = tokenise_rows(rows, tokenizer).rows
    (without,) = tokenise_rows([{**rows[2], "prompt": []}], tokenizer).rows
    del rows[2]["prompt"]
    assert tokenise_rows([rows[2]], tokenizer).rows == [without]
    assert isinstance(graded, Graded)
    assert (text(graded.tokens), text(graded.tokens[graded.start :])) == ("[user]hi[assistant]yes</s>", "yes</s>")
    assert isinstance(steps, Stepped)
    assert isinstance(turns, Stepped)
    assert [text(steps.tokens[steps.start : end + 1]) for end in steps.ends] == ["one\n", "one\ntwo\n"]
    assert [text(turns.tokens[: end + 1]) for end in turns.ends] == [
        "[user]hi[assistant]one",
        "[user]hi[assistant]one[tool]2",
    ]


BAD: list[tuple[dict[str, Any], tuple[object, ...]]] = [
    ({**PAIR, "margin": math.nan}, ("margin", math.nan)),
    ({**PAIR, "margin": math.inf}, ("margin", math.inf)),
    ({**PAIR, "margin": "1"}, ("margin", "'1'")),
    ({**PAIR, "margin": True}, ("margin", True)),
    ({**PAIR, "reward": "c"}, ("reward", "'c'", ", ".join(CLASSES))),
    ({**PAIR, "reward": ["reward"]}, ("['reward']", ", ".join(CLASSES))),
    ({**GRADED, "label": 1.5}, ("label", 1.5, 0, 1)),
    ({**GRADED, "label": -0.1}, ("label", -0.1)),
    ({**GRADED, "label": math.nan}, ("label", math.nan)),
    ({**GRADED, "label": "good"}, ("label", "'good'")),
    ({**GRADED, "reward": "a"}, ("reward", "'a'", ", ".join(CLASSES))),
    ({**GRADED, "completion": None}, ("completion", "string")),
    ({"prompt": "ab", "completion": "x"}, ("label", "class", "completion")),
    ({**GRADED, "class": "x"}, ("label", "class", "completion")),
    ({**CLASSED, "class": "z", "reward": "a"}, ("class", "'z'", "x, y")),
    ({**CLASSED, "class": 2, "reward": "a"}, ("class 2", "x, y")),
    ({**CLASSED, "class": -1, "reward": "a"}, ("class", -1, "x, y")),
    ({**CLASSED, "class": True, "reward": "a"}, ("class", True, "x, y")),
    ({**CLASSED, "class": ["x"], "reward": "a"}, ("class", ["x"], "x, y")),
    ({**CLASSED, "reward": "reward"}, ("'reward'", "a, b")),
    ({**CLASSED, "reward": ["a"]}, ("reward", ["a"], "a, b")),
    ({**STEPPED, "labels": [1]}, ("2 'completions'", "1 'labels'")),
    ({**STEPPED, "labels": [1, 2]}, ("label", "step 2", 0, 1)),
    ({**STEPPED, "labels": True}, ("completions", "labels", "lists")),
    ({**STEPPED, "completions": [], "labels": []}, ("completions", "labels", "lists")),
    ({**STEPPED, "completions": [" one", 2]}, ("completions", "strings")),
    ({**STEPPED, "completions": [message("user", "x")] * 2}, ("completions", "strings")),
    ({"prompt": "ab", "completions": [" one"]}, ("no 'labels'",)),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_rows_are_refused(case: int) -> None:
    row, names = BAD[case]
    good = {**PAIR, "reward": "reward"}
    with refused(FileError, "rows", "1 bad", "row 2", *names):
        tokenise_rows([good, {"reward": "reward", **row}], toy_tokenizer(), DataOptions(rewards=CLASSES))


def test_a_class_needs_a_head_with_several_labels() -> None:
    with refused(FileError, "row 1", "class", "head"):
        one(CLASSED)


def test_a_step_without_tokens_is_refused() -> None:
    assert len(one({**STEPPED, "completions": ["", "x"]}).ends) == 2
    with refused(FileError, "row 1", "step 1"):
        one({**STEPPED, "completions": ["", "x"]}, step_separator="")
    with refused(FileError, "row 1", "response"):
        one({**GRADED, "completion": ""}, append_eos=False)


def test_long_texts_are_cut_and_counted() -> None:
    graded = {"prompt": "p" * 30, "completion": "c" * 50, "label": 1}
    classed = {"prompt": "p" * 5, "completion": "c" * 50, "class": "y"}
    steps = {"prompt": "p" * 30, "completions": ["a" * 8, "b" * 20, "c"], "labels": [1, 0, 1]}
    late = {"prompt": "p" * 30, "completions": ["a" * 45], "labels": [1]}
    options = DataOptions(max_length=40, rewards=("a.x", "a.y"))
    rows = [
        {**row, "reward": reward} for row, reward in ((graded, "a.x"), (classed, "a"), (steps, "a.x"), (late, "a.x"))
    ]
    dataset = tokenise_rows(rows, toy_tokenizer(), options)
    assert (len(dataset), dataset.truncated, dataset.dropped) == (3, 4, 1)
    first, second, third = dataset.rows
    assert isinstance(first, Graded)
    assert isinstance(second, Classed)
    assert isinstance(third, Stepped)
    assert (text(first.tokens), first.start) == ("p" * 20 + "c" * 20, 20)
    assert (text(second.tokens), second.start) == ("p" * 5 + "c" * 35, 5)
    assert text(third.tokens) == "p" * 20 + "a" * 8 + "\n" + "b" * 11
    assert (third.ends, third.labels) == ([28], [1.0])
    assert "1 graded texts, 1 classed texts, 1 texts in steps, 120 tokens, 4 cut, 1 dropped" in str(dataset)


def test_one_batch_holds_every_kind() -> None:
    rows = tokenise_rows(mixed_rows(10), toy_tokenizer(), OPTIONS).rows
    batch = collate(rows)
    assert batch["kind"].tolist() == [0, 0, 1, 2, 3] * 2
    assert batch["row"].tolist() == [*range(10), 0, 1, 5, 6]
    for index, (row, length) in enumerate(zip(batch["row"].tolist(), batch["length"].tolist(), strict=True)):
        tokens = rows[row].sequences[int(index >= 10)]
        assert batch["input_ids"][index].tolist() == tokens + [0] * (batch["input_ids"].shape[1] - length)
    steps = rows[4]
    assert isinstance(steps, Stepped)
    n_steps = len(steps.ends)
    assert batch["step_end"][4].tolist()[:n_steps] == steps.ends
    assert set(batch["step_end"][4].tolist()[n_steps:]) <= {-1}
    assert batch["step_label"][4].tolist()[:n_steps] == steps.labels
    assert batch["rewards"][3].tolist() == [2, 5]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as one of the sources that are read."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return write_rows(path, rows)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif kind == "parquet":
        table_of(rows).to_parquet(str(path))
    else:
        table_of(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "saved"])
def test_every_source_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    dataset = load_rows(written(tmp_path, kind, mixed_rows(20)), toy_tokenizer(), OPTIONS)
    assert dataset.rows == tokenise_rows(mixed_rows(20), toy_tokenizer(), OPTIONS).rows
    assert {type(row) for row in dataset.rows} == {Pair, Graded, Classed, Stepped}


def test_datasets_are_rows_at_hand() -> None:
    table = table_of(mixed_rows(20))
    assert set(table.column_names) > {"margin", "class", "labels"}
    assert table[0]["margin"] is None
    dataset = tokenise_rows(table, toy_tokenizer(), OPTIONS)
    assert dataset.rows == tokenise_rows(mixed_rows(20), toy_tokenizer(), OPTIONS).rows


def test_messages_come_through_a_table(tmp_path: Path) -> None:
    user = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": user, "chosen": message("assistant", "yes"), "rejected": message("assistant", "no")}] * 2
    dataset = load_rows(written(tmp_path, "parquet", rows), chat_tokenizer())
    assert dataset.rows == tokenise_rows(rows, chat_tokenizer()).rows
    assert len(dataset) == 2


@pytest.mark.parametrize("kind", ["parquet", "saved", "jsonl.gz"])
def test_bad_rows_of_any_source_have_their_place(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, [{**PAIR, "margin": 1.0}, {**PAIR, "margin": math.inf}])
    place = "line" if kind == "jsonl.gz" else "row"
    with refused(FileError, f"rows.{kind}", "1 bad", f"{place} 2", "margin", math.inf):
        load_rows(path, toy_tokenizer())


def test_null_is_absent_in_a_table_but_not_in_json(tmp_path: Path) -> None:
    rows = [{**PAIR, "margin": None}]
    assert one(PAIR).margin == 0
    assert len(load_rows(written(tmp_path, "parquet", [*rows, {**PAIR, "margin": 1.0}]), toy_tokenizer())) == 2
    with refused(FileError, "rows.jsonl", "line 1", "margin", None):
        load_rows(written(tmp_path, "jsonl", rows), toy_tokenizer())


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, mixed_rows(20))
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"nonsense"):
        path.write_bytes(damaged)
        with refused(FileError, f"rows.{kind}"):
            load_rows(path, toy_tokenizer(), OPTIONS)


def test_folders_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    with refused(FileError, tmp_path):
        load_rows(tmp_path, toy_tokenizer())
    splits = tmp_path / "splits"
    DatasetDict({"train": Dataset.from_list([PAIR]), "test": Dataset.from_list([PAIR])}).save_to_disk(str(splits))
    with refused(FileError, splits, splits / "train", splits / "test"):
        load_rows(splits, toy_tokenizer())
    assert len(load_rows(splits / "train", toy_tokenizer())) == 1


def test_an_empty_dataset_says_so() -> None:
    assert str(RewardDataset()) == "0 tokens, 0 cut, 0 dropped"
