"""What a row's columns may hold, before tokenising."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..._numbers import shown
from .options import DataOptions

Check = Callable[[Mapping[str, Any], bool, DataOptions], str | None]


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages with role and content."""
    return isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)


def holds_chat(row: Any) -> bool:
    """Whether the prompt, or without one the first response or step, is a list."""
    if not isinstance(row, dict):
        return False
    texts = [row[name] for name in ("prompt", "chosen", "completion") if name in row]
    steps = row.get("completions")
    return isinstance(next(iter(texts or (steps if isinstance(steps, list) else ())), None), list)


def row_problem(row: Any, chat: bool, options: DataOptions) -> str | None:
    """What is wrong with a row, or ``None``.

    Args:
        chat: texts are lists of messages in this source; else strings.
    """
    if not isinstance(row, dict):
        return "not an object"
    columns = main_columns(row)
    if not columns:
        return "no 'chosen', 'completion' or 'completions'"
    if missing := [name for name in columns if name not in row]:
        return f"no {missing[0]!r}"
    problem = _text_problem(row, "prompt", chat) if "prompt" in row else None
    return problem or _CHECKS[columns](row, chat, options)


def main_columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a row of its kind must have; empty for none of the kinds. Other kinds' columns are ignored."""
    return next((columns for columns in _CHECKS if any(name in row for name in columns)), ())


def column_of(row: Mapping[str, Any], options: DataOptions) -> int:
    """The reward that a checked row trains."""
    return options.rewards.index(row.get("reward", options.rewards[0]))


def class_of(row: Mapping[str, Any], options: DataOptions) -> tuple[range, int]:
    """The columns of the head that a checked row trains, and the column of its class."""
    heads = options.classes
    columns = heads[row.get("reward", next(iter(heads)))]
    first = min(columns.values())
    column = first + row["class"] if isinstance(row["class"], int) else columns[row["class"]]
    return range(first, first + len(columns)), column


def _text_problem(row: Mapping[str, Any], column: str, chat: bool) -> str | None:
    if chat and not is_chat(row[column]):
        return f"{column!r} is no list of messages with role and content, as in the first row"
    if not chat and not isinstance(row[column], str):
        return f"{column!r} is no string, as in the first row"
    return _encoding_problem(row, column)


def _encoding_problem(row: Mapping[str, Any], column: str) -> str | None:
    """JSON can hold half a surrogate pair, which is no text for any tokenizer."""
    for text in _strings(row[column]):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"{column!r} has half a surrogate pair, {text[error.start]!r}, at character {error.start}"
    return None


def _strings(value: Any) -> Iterator[str]:
    """Every string in a value of JSON, names included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _reward_problem(row: Mapping[str, Any], options: DataOptions) -> str | None:
    allowed = ", ".join(options.rewards)
    if "reward" not in row and len(options.rewards) > 1:
        return f"no 'reward'; expected one of {allowed}"
    if row.get("reward", options.rewards[0]) not in options.rewards:
        return f"reward {row['reward']!r}, expected one of {allowed}"
    return None


def _pair_problem(row: Mapping[str, Any], chat: bool, options: DataOptions) -> str | None:
    problem = _text_problem(row, "chosen", chat) or _text_problem(row, "rejected", chat)
    margin = row.get("margin", 0.0)
    if not problem and not _is_finite(margin):
        problem = f"margin {shown(margin)}, expected a finite number"
    return problem or _reward_problem(row, options)


def _completion_problem(row: Mapping[str, Any], chat: bool, options: DataOptions) -> str | None:
    if problem := _text_problem(row, "completion", chat):
        return problem
    if ("label" in row) == ("class" in row):
        return "expected either 'label' or 'class' beside 'completion'"
    if "class" in row:
        return _class_problem(row, options)
    return _label_problem("label", row["label"]) or _reward_problem(row, options)


def _class_problem(row: Mapping[str, Any], options: DataOptions) -> str | None:
    heads = options.classes
    if not heads:
        return "'class' needs a head with several labels"
    if "reward" not in row and len(heads) > 1:
        return f"no 'reward'; expected one of {', '.join(heads)}"
    head = row.get("reward", next(iter(heads)))
    if head not in list(heads):  # a list: what JSON holds may not be hashable
        return f"reward {head!r}, expected one of {', '.join(heads)}"
    name, labels = row["class"], list(heads[head])
    if type(name) is int and 0 <= name < len(labels):
        return None
    return None if name in labels else f"class {name!r}, expected one of {', '.join(labels)}"


def _steps_problem(row: Mapping[str, Any], chat: bool, options: DataOptions) -> str | None:
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not steps or not isinstance(labels, list):
        return "'completions' and 'labels' must be lists of at least one step"
    if len(steps) != len(labels):
        return f"{len(steps)} 'completions', but {len(labels)} 'labels'"
    # Beside a prompt of messages, steps are strings within one answer, or messages themselves.
    if not all(isinstance(step, str) for step in steps) and not (chat and all(map(is_chat, steps))):
        return f"'completions' are no strings{' or lists of messages' if chat else ''}"
    if problem := _encoding_problem(row, "completions"):
        return problem
    problems = (_label_problem(f"label of step {number}", label) for number, label in enumerate(labels, start=1))
    return next(filter(None, problems), None) or _reward_problem(row, options)


def _label_problem(name: str, label: Any) -> str | None:
    if isinstance(label, bool) or (_is_number(label) and 0 <= label <= 1):
        return None
    return f"{name} is {shown(label)}, expected true, false or a number from 0 to 1"


def _is_finite(value: Any) -> bool:
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PAIR, STEPS, COMPLETION = ("chosen", "rejected"), ("completions", "labels"), ("completion",)
_CHECKS: dict[tuple[str, ...], Check] = {
    PAIR: _pair_problem,
    STEPS: _steps_problem,
    COMPLETION: _completion_problem,
}
