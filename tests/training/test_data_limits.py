"""Rows that no tokenizer should see as they are: huge, of many steps, with numbers and texts that are none."""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_gguf.errors import FileError
from otter_gguf.training import DataOptions, load_rows, tokenise_rows
from otter_gguf.training.data import encoding, sources
from tests.refusals import refused
from tests.training.toy import toy_tokenizer

PAIR = {"prompt": "a", "chosen": " b", "rejected": " c"}
HALF = "x\ud800"


def chat(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "true", '"1"'])
def test_a_margin_that_is_no_finite_number_is_refused(margin: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{json.dumps(PAIR)[:-1]}, "margin": {margin}}}\n')
    with refused(FileError, path, "line 1", "margin"):
        load_rows(path, toy_tokenizer())
    path.write_text(f'{json.dumps(PAIR)[:-1]}, "margin": 1e300}}\n')
    assert load_rows(path, toy_tokenizer())[0].margin == 1e300  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**PAIR, "prompt": HALF}, "prompt"),
        ({**PAIR, "chosen": HALF}, "chosen"),
        ({"prompt": "a", "completion": HALF, "label": 1}, "completion"),
        ({"prompt": "a", "completions": ["b", HALF], "labels": [1, 0]}, "completions"),
        ({"prompt": chat("a"), "chosen": chat(HALF), "rejected": chat("c")}, "chosen"),
        ({"prompt": [{**chat("a")[0], HALF: "b"}], "chosen": chat("b"), "rejected": chat("c")}, "prompt"),
    ],
)
def test_half_a_surrogate_pair_is_refused(row: dict[str, Any], column: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with refused(FileError, "row 1", column, r"'\ud800'"):
        tokenise_rows([row], tokenizer)
    whole = json.loads(json.dumps(row).replace("\\ud800", "\\ud83e\\udda6"))
    assert len(tokenise_rows([whole], tokenizer)) == 1


def test_messages_need_a_template() -> None:
    row = {"prompt": chat("x"), "chosen": chat("y"), "rejected": chat("z")}
    tokenizer = toy_tokenizer()
    with refused(FileError, "template"):
        tokenise_rows([row], tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert len(tokenise_rows([row], tokenizer)) == 1


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[9].content }}", "{% if %}", "{{ 1 / 0 }}"]
)
def test_a_template_that_fails_names_its_row(template: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = template
    row = {"prompt": chat("x"), "chosen": chat("y"), "rejected": chat("z")}
    with refused(FileError, "row 1", "template"):
        tokenise_rows([row], tokenizer)


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 1000)
    path = tmp_path / "pairs.jsonl"
    line = json.dumps({**PAIR, "chosen": "b" * (1002 - len(json.dumps(PAIR)))})
    path.write_text(f"{line}\n{line}x\n")
    with refused(FileError, path, "line 2", 1000):
        load_rows(path, toy_tokenizer())
    path.write_text(f"{line}\n")
    load_rows(path, toy_tokenizer())


# ---- cut before they are tokenised -----------------------------------------------------------------------------


def words(draw: random.Random, most: int) -> str:
    return "".join(draw.choice(string.ascii_lowercase + " <s>\u00e9") for _ in range(draw.randint(1, most)))


def random_row(draw: random.Random) -> dict[str, Any]:
    """Any kind, with parts from short to many times a row's length."""
    most = draw.choice([3, 30, 300])
    prompt = {} if draw.random() < 0.3 else {"prompt": words(draw, draw.choice([3, 30, 300]))}
    kind = draw.randrange(3)
    if kind == 0:
        shared = words(draw, draw.choice([3, 300]))
        return {**prompt, "chosen": f"{shared}x{words(draw, most)}", "rejected": f"{shared}y{words(draw, most)}"}
    if kind == 1:
        return {**prompt, "completion": words(draw, most), "label": 1}
    count = draw.choice([1, 4, 40])
    return {**prompt, "completions": [words(draw, most) for _ in range(count)], "labels": [1] * count}


def test_what_is_left_out_changes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with whole texts, of many lengths, in small rows."""
    draw, tokenizer, options = random.Random(3), toy_tokenizer(), DataOptions(max_length=12)
    rows = [random_row(draw) for _ in range(400)]
    found = tokenise_rows(rows, tokenizer, options)
    cut: Callable[..., list[str]] = encoding._cut
    shorter = [
        sum(map(len, cut(row, texts, 13 * 4))) < sum(map(len, texts))
        for row in rows
        for texts in [encoding._texts(row, False, tokenizer, options)]
    ]
    assert sum(shorter) > 100
    monkeypatch.setattr(encoding, "_cut", lambda row, texts, room: list(texts))
    assert found == tokenise_rows(rows, tokenizer, options)


@pytest.mark.parametrize(
    ("texts", "length"),
    [(("a", "a"), 1), (("", "a"), 0), (("ab", "abc"), 2), (("abc", "abd"), 2), (("abcd", "abxd", "abcd"), 2)],
)
def test_what_texts_share(texts: tuple[str, ...], length: int) -> None:
    assert encoding._shared_length(texts) == length


@pytest.mark.parametrize("column", ["prompt", "chosen", "both"])
def test_a_huge_text_is_cut_first(column: str) -> None:
    """A tokenizer would take minutes and gigabytes."""
    huge = "word " * 4_000_000
    row = {"prompt": huge, "chosen": f"{huge}x", "rejected": f"{huge}y"} if column == "both" else {**PAIR, column: huge}
    begin = time.monotonic()
    dataset = tokenise_rows([PAIR, row], toy_tokenizer(), DataOptions(max_length=64))
    assert time.monotonic() - begin < 5
    assert (dataset.truncated, dataset.dropped) == ((1, 1) if column == "both" else (1, 0))


def test_many_steps_are_tokenised_in_little_time() -> None:
    row = {"prompt": "a", "completions": ["step"] * 20_000, "labels": [1] * 20_000}
    begin = time.monotonic()
    dataset = tokenise_rows([row], toy_tokenizer(), DataOptions(max_length=128))
    assert time.monotonic() - begin < 5
    assert dataset.truncated == 1
    assert len(dataset[0].ends) == 25  # type: ignore[union-attr]
