"""Rows to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FileError
from .columns import PAIR, STEPS, class_of, column_of, holds_chat, main_columns, row_problem
from .options import DataOptions
from .rows import Classed, Graded, Pair, RewardDataset, Row, Stepped
from .sources import Source, read_file, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000
_SHOWN_PROBLEMS = 10


def load_rows(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None
) -> RewardDataset:
    """Read and tokenise JSONL (``.jsonl``, ``.jsonl.gz``), Parquet, or a folder of ``Dataset.save_to_disk``.

    Raises:
        FileError: unreadable, empty, or with bad rows; the message has the place of each of the first ten: the line
            of a text file, else the row counted from 1.
    """
    return _tokenise(read_file(Path(path)), tokenizer, options or DataOptions())


def tokenise_rows(
    rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None
) -> RewardDataset:
    """The same for rows at hand, such as a ``datasets.Dataset``. Rows are numbered from 1 in ``FileError``."""
    return _tokenise(read_rows(rows), tokenizer, options or DataOptions())


def _tokenise(source: Source, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> RewardDataset:
    """Any bad row fails the whole source; all of them are counted."""
    chat = bool(source.rows) and holds_chat(source.rows[0])
    problems = list(source.problems)
    for place, row in zip(source.places, source.rows, strict=True):
        if problem := row_problem(row, chat, options):
            problems.append(f"{place}: {problem}")
    dataset = RewardDataset()
    if not problems:
        for place, tokenised in zip(source.places, _encode(source.rows, chat, tokenizer, options), strict=True):
            if problem := tokenised.problem:
                problems.append(f"{place}: {problem}")
            dataset.add(tokenised, options.max_length)
    if problems:
        more = "" if len(problems) <= _SHOWN_PROBLEMS else f"; and {len(problems) - _SHOWN_PROBLEMS} more"
        raise FileError(f"{source.name}: {len(problems)} bad rows: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    if not dataset.rows:
        raise FileError(f"{source.name}: no rows to train on")
    return dataset


def _encode(
    rows: Sequence[dict[str, Any]], chat: bool, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> Iterator[Row]:
    """Tokenise in batches, which fast tokenizers do in parallel."""
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        texts = [_texts(row, chat, tokenizer, options) for row in batch]
        flat = [text for row_texts in texts for text in row_texts]
        encoded = iter(tokenizer(flat, add_special_tokens=not chat)["input_ids"])
        for row, row_texts in zip(batch, texts, strict=True):
            prompt, *responses = islice(encoded, len(row_texts))
            yield _row(row, prompt, responses, tokenizer, options)


def _texts(
    row: dict[str, Any], chat: bool, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[str, ...]:
    """The prompt, then the prompt with each response; for steps, the text up to the end of each."""
    prompt = row.get("prompt", [] if chat else "")
    begin = (_render(tokenizer, prompt, True) if prompt else "") if chat else prompt
    columns = main_columns(row)
    if columns == STEPS:
        steps = row["completions"]
        if isinstance(steps[0], str):
            return begin, *list(accumulate((step + options.step_separator for step in steps), initial=begin))[1:]
        return begin, *(_render(tokenizer, messages) for messages in list(accumulate(steps, initial=prompt))[1:])
    responses = [row[name] for name in columns]
    return begin, *(_render(tokenizer, prompt + response) if chat else begin + response for response in responses)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Any], add_generation_prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _row(
    row: dict[str, Any],
    prompt: list[int],
    responses: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
) -> Row:
    """A checked row and its texts' tokens.

    Where two parts of a text meet, a tokenizer may merge across. A response starts at the first token that is not the
    prompt's own, and a step ends with the last token that is the same whatever follows.
    """
    columns = main_columns(row)
    if columns == STEPS:
        tokens = responses[-1]
        ends = [_common_prefix(part, tokens) - 1 for part in responses]
        labels = [float(label) for label in row["labels"]]
        return Stepped(tokens, _common_prefix(prompt, tokens), ends, labels, column_of(row, options))
    if options.append_eos:
        responses = [_with_eos(tokens, tokenizer) for tokens in responses]
    start = min(_common_prefix(prompt, tokens) for tokens in responses)
    if columns == PAIR:
        chosen, rejected = responses
        if "prompt" not in row:
            start = _common_prefix(chosen, rejected)
        return Pair(chosen, rejected, start, column_of(row, options), float(row.get("margin", 0.0)))
    if "class" in row:
        return Classed(responses[0], start, *class_of(row, options))
    return Graded(responses[0], start, float(row["label"]), column_of(row, options))


def _with_eos(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two sequences share at their beginning."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
