"""Preference pairs: JSONL with TRL's columns ``prompt``, ``chosen``, ``rejected`` to token ids.

Each column is a string, or a list of chat messages rendered by the tokenizer's chat template. Without ``prompt`` the
responses start where the two texts first differ. A row may name the reward that it trains in ``label``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, FileError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000
_SHOWN_PROBLEMS = 10


class Pair(TypedDict):
    """One tokenised pair; both responses start at ``start``."""

    chosen: list[int]
    rejected: list[int]
    start: int
    label: int


@dataclass(frozen=True)
class PairOptions:
    """How rows become token ids."""

    max_length: int = 1024
    """Tokens of prompt and response. Of a longer pair the responses lose their ends; a prompt that leaves them less
    than half loses its beginning."""
    append_eos: bool = True
    """End each response with the end-of-text token (unless cut), so that the reward of stopping is trained too."""
    labels: tuple[str, ...] = ("reward",)
    """``InsertionConfig.reward_labels``; with several, every row names its own in ``label``."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}, expected at least 2")


@dataclass
class PairDataset(Dataset[Pair]):
    """Tokenised pairs, and what tokenising them cost."""

    pairs: list[Pair] = field(default_factory=list)
    truncated: int = 0
    """Pairs longer than ``max_length``, shortened."""
    dropped: int = 0
    """Pairs whose responses were equal after shortening, left out."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    @property
    def n_tokens(self) -> int:
        """Tokens of all pairs, prompts counted twice."""
        return sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in self.pairs)


def load_pairs(path: str | Path, tokenizer: PreTrainedTokenizerBase, options: PairOptions | None = None) -> PairDataset:
    """Read and tokenise a JSONL file.

    Raises:
        FileError: unreadable, empty, or with bad rows; the message has the line number of each of the first ten.
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        rows.append(json.loads(line))
                        lines.append(number)
                    except ValueError as error:
                        problems.append(f"line {number}: not JSON ({error})")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return _tokenise(rows, tokenizer, options or PairOptions(), str(path), [f"line {n}" for n in lines], problems)


def tokenise_pairs(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, options: PairOptions | None = None
) -> PairDataset:
    """The same for rows at hand, such as a Hugging Face dataset. Rows are numbered from 1 in ``FileError``."""
    rows = list(rows)
    names = [f"row {number}" for number in range(1, len(rows) + 1)]
    return _tokenise(rows, tokenizer, options or PairOptions(), "pairs", names, [])


def _tokenise(
    rows: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    options: PairOptions,
    source: str,
    names: Sequence[str],
    problems: list[str],
) -> PairDataset:
    """Every bad row goes into ``problems``; any of them fails the whole source."""
    chat = bool(rows) and isinstance(rows[0], dict) and isinstance(rows[0].get("chosen"), list)
    for name, row in zip(names, rows, strict=True):
        if problem := _row_problem(row, chat, options.labels):
            problems.append(f"{name}: {problem}")
    dataset = PairDataset()
    if not problems:
        for name, pair in zip(names, _encode(rows, chat, tokenizer, options), strict=True):
            if problem := _pair_problem(pair):
                problems.append(f"{name}: {problem}")
            _add(dataset, pair, options.max_length)
    if problems:
        more = "" if len(problems) <= _SHOWN_PROBLEMS else f"; and {len(problems) - _SHOWN_PROBLEMS} more"
        raise FileError(f"{source}: {len(problems)} bad rows: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    if not dataset.pairs:
        raise FileError(f"{source}: no preference pairs")
    return dataset


def _row_problem(row: Any, chat: bool, labels: Sequence[str]) -> str | None:
    """What is wrong with a row before tokenising, or ``None``."""
    if not isinstance(row, dict):
        return "not an object"
    for column in ("prompt", "chosen", "rejected"):
        if column not in row:
            if column == "prompt":
                continue
            return f"no {column!r}"
        if chat and not _is_chat(row[column]):
            return f"{column!r} is no list of messages with role and content, as in the first row"
        if not chat and not isinstance(row[column], str):
            return f"{column!r} is no string, as in the first row"
    if "label" not in row and len(labels) > 1:
        return f"no 'label'; expected one of {', '.join(labels)}"
    if row.get("label", labels[0]) not in labels:
        return f"label {row['label']!r}, expected one of {', '.join(labels)}"
    return None


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)


def _pair_problem(pair: Pair) -> str | None:
    if pair["chosen"] == pair["rejected"]:
        return "'chosen' and 'rejected' are the same tokens"
    if min(len(pair["chosen"]), len(pair["rejected"])) <= pair["start"]:
        return "a response has no token of its own"
    return None


def _encode(
    rows: Sequence[dict[str, Any]], chat: bool, tokenizer: PreTrainedTokenizerBase, options: PairOptions
) -> Iterator[Pair]:
    """Tokenise in batches, which fast tokenizers do in parallel."""
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        texts = [_texts(row, chat, tokenizer) for row in batch]
        encoded = [
            tokenizer(list(column), add_special_tokens=not chat)["input_ids"] for column in zip(*texts, strict=True)
        ]
        for row, prompt, chosen, rejected in zip(batch, *encoded, strict=True):
            if options.append_eos:
                chosen, rejected = _with_eos(chosen, tokenizer), _with_eos(rejected, tokenizer)
            # Where prompt and response meet, a tokenizer may merge across: the response starts at the first token
            # that is not the prompt's own.
            start = _common_prefix(chosen, rejected)
            if "prompt" in row:
                start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
            label = options.labels.index(row.get("label", options.labels[0]))
            yield Pair(chosen=chosen, rejected=rejected, start=start, label=label)


def _texts(row: dict[str, Any], chat: bool, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Prompt, prompt with the chosen response, prompt with the rejected one."""
    if not chat:
        prompt = row.get("prompt", "")
        return prompt, prompt + row["chosen"], prompt + row["rejected"]
    prompt = row.get("prompt", [])
    rendered = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) if prompt else ""
    full = [tokenizer.apply_chat_template(prompt + row[name], tokenize=False) for name in ("chosen", "rejected")]
    return str(rendered), str(full[0]), str(full[1])


def _with_eos(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def _add(dataset: PairDataset, pair: Pair, max_length: int) -> None:
    """Append the pair, shortened where it is too long."""
    if max(len(pair["chosen"]), len(pair["rejected"])) > max_length:
        dataset.truncated += 1
        cut = max(0, pair["start"] - max_length // 2)
        pair["start"] -= cut
        pair["chosen"] = pair["chosen"][cut : cut + max_length]
        pair["rejected"] = pair["rejected"][cut : cut + max_length]
        if pair["chosen"] == pair["rejected"]:
            dataset.dropped += 1
            return
    dataset.pairs.append(pair)


def collate_pairs(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """A batch of B pairs: ``input_ids`` (2B, T), chosen first; ``length`` (2B); ``start`` and ``label`` (B).

    Padded on the right with token 0: causal attention never looks there, so no mask is needed.
    """
    sequences = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    length = [len(tokens) for tokens in sequences]
    input_ids = torch.zeros((len(sequences), max(length)), dtype=torch.long)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
    return {
        "input_ids": input_ids,
        "length": torch.tensor(length),
        "start": torch.tensor([pair["start"] for pair in pairs]),
        "label": torch.tensor([pair["label"] for pair in pairs]),
    }
