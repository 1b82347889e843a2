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
    if chat and not tokenizer.chat_template:
        raise FileError(f"{source.name}: its texts are messages, and the tokenizer has no chat template to write them")
    problems = list(source.problems)
    for place, row in zip(source.places, source.rows, strict=True):
        if problem := row_problem(row, chat, options):
            problems.append(f"{place}: {problem}")
    dataset = RewardDataset()
    if not problems:
        for place, tokenised in zip(source.places, _encode(source, chat, tokenizer, options), strict=True):
            if problem := tokenised.problem:
                problems.append(f"{place}: {problem}")
            dataset.add(tokenised, options.max_length)
    if problems:
        more = "" if len(problems) <= _SHOWN_PROBLEMS else f"; and {len(problems) - _SHOWN_PROBLEMS} more"
        raise FileError(f"{source.name}: {len(problems)} bad rows: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    if not dataset.rows:
        raise FileError(f"{source.name}: no rows to train on")
    return dataset


def _encode(source: Source, chat: bool, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> Iterator[Row]:
    """Tokenise in batches, which fast tokenizers do in parallel."""
    room = (options.max_length + 1) * max(map(len, tokenizer.get_vocab()), default=1)
    iterator = zip(source.places, source.rows, strict=True)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        texts = [_cut(row, _texts_at(source.name, place, row, chat, tokenizer, options), room) for place, row in batch]
        flat = [text for row_texts in texts for text in row_texts]
        encoded = iter(tokenizer(flat, add_special_tokens=not chat)["input_ids"])
        for (_, row), row_texts in zip(batch, texts, strict=True):
            prompt, *responses = islice(encoded, len(row_texts))
            yield _row(row, prompt, responses, tokenizer, options)


def _cut(row: dict[str, Any], texts: Sequence[str], room: int) -> list[str]:
    """Leave out of a row's texts what no kept token can come from: tokenizers need forty times the memory of a text.

    Args:
        row: The row.
        texts: Its prompt, and the prompt with each response.
        room: A text of as many characters has more tokens than a row keeps.
    """
    prompt, *responses = texts
    has_prompt = main_columns(row) != PAIR or "prompt" in row
    shared = _shared_length(texts if has_prompt else responses)
    if main_columns(row) == STEPS:
        # The text behind the last step that may be kept is longer than a row, so the steps after it change nothing.
        kept = [text for text in responses if len(text) <= shared + room]
        responses = [*kept, *(text[: shared + 2 * room] for text in responses[len(kept) : len(kept) + 1])]
    else:
        whole, responses = responses, [text[: shared + room] for text in responses]
        if len(set(responses)) < len(set(whole)):  # where they part is not kept, but they do
            parted = _shared_length(whole)
            responses = [text + end[parted : parted + room] for text, end in zip(responses, whole, strict=True)]
    return [text[max(0, shared - room) :] for text in (prompt[: shared + room], *responses)]


def _shared_length(texts: Sequence[str]) -> int:
    """Characters that all texts share at their beginning; by halves, for texts of many megabytes."""
    first, *others = texts
    found, most = 0, min(map(len, texts))
    while found < most:
        middle = (found + most + 1) // 2
        if all(text[found:middle] == first[found:middle] for text in others):
            found = middle
        else:
            most = middle - 1
    return found


def _texts_at(
    source: str, place: str, row: dict[str, Any], chat: bool, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[str, ...]:
    """As :func:`_texts`; an error of a chat template, which is somebody's program, says where it happened."""
    try:
        return _texts(row, chat, tokenizer, options)
    except Exception as error:
        raise FileError(f"{source}: {place}: the chat template of the tokenizer fails: {error}") from None


def _texts(
    row: dict[str, Any], chat: bool, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[str, ...]:
    """The prompt, then the prompt with each response; for steps, the text up to the end of each that may be kept."""
    prompt = row.get("prompt", [] if chat else "")
    begin = (_render(tokenizer, prompt, True) if prompt else "") if chat else prompt
    columns = main_columns(row)
    if columns == STEPS:
        # Each has a token of its own.
        steps = row["completions"][: options.max_length + 1]
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
        labels = [float(label) for label in row["labels"][: len(ends)]]
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
