"""Give the rewards of texts that are there already: one JSON object a line on stdout.

FILE is JSON lines with "text", "prompt" and "response", or "chosen" and "rejected" with or without "prompt" (TRL's
preference columns); other columns are passed through. -p and -f score one plain text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ContextFullError, FileError
from ..files import MAX_ROWS
from . import _common

if TYPE_CHECKING:
    from ..scoring import Score
    from ..text_model import TextModel

HELP = "rewards of given texts, JSON lines in and out"

Row = dict[str, Any]

KINDS: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "response"), ("chosen", "rejected"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp."""
    parser.add_argument("input", nargs="?", metavar="FILE", help="JSON lines; - is stdin")
    parser.add_argument("-p", "--prompt", type=_common.utf8, metavar="TEXT", help="score this text")
    parser.add_argument("-f", "--file", metavar="FILE", help="score the text of this file; - is stdin")
    parser.add_argument("--tokens", action="store_true", help="also the rewards of every token")
    _common.add_model_arguments(parser, leave_out=("n_seq_max",))
    _common.add_isolation_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Score row by row; pairs end with a summary on stderr."""
    rows = list(_rows(args))
    margins = []
    with _common.load(args, n_seq_max=1) as llm:
        for number, row in _progress(rows):
            try:
                result = score_row(llm, row, with_tokens=args.tokens)
            except (ConfigError, ContextFullError) as error:
                raise type(error)(f"{_where(args, number)}{error}") from None
            print(json.dumps(result), flush=True)
            if "margin" in result:
                margins.append(result["margin"])
    if margins:
        accuracy = sum(margin > 0 for margin in margins) / len(margins)
        mean = sum(margins) / len(margins)
        print(f"{len(margins)} pairs: accuracy {accuracy:.4f}, mean margin {mean:+.4f}", file=sys.stderr)
    return 0


def score_row(llm: TextModel, row: Row, *, with_tokens: bool) -> Row:
    """The row with its rewards: ``reward`` and ``rewards`` by label; for a pair ``chosen_reward``, ``rejected_reward``
    and ``margin``."""
    if "chosen" in row:
        prompt = row.get("prompt", "")
        chosen, rejected = llm.score(prompt, row["chosen"]), llm.score(prompt, row["rejected"])
        result = {**row, **_fields("chosen_", chosen, with_tokens), **_fields("rejected_", rejected, with_tokens)}
        result["margin"] = chosen.reward - rejected.reward
        return result
    score = llm.score(row["text"]) if "text" in row else llm.score(row["prompt"], row["response"])
    return {**row, **_fields("", score, with_tokens)}


def _fields(prefix: str, score: Score, with_tokens: bool) -> Row:
    fields: Row = {f"{prefix}reward": score.reward, f"{prefix}rewards": score.final}
    if with_tokens:
        details = score.to_dict()
        fields.update({f"{prefix}{name}": details[name] for name in ("tokens", "pieces", "token_rewards", "n_prompt")})
    return fields


def _rows(args: argparse.Namespace) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows; all are checked before the first is scored."""
    text = _common.prompt_of(args)
    if (text is None) == (args.input is None):
        raise ConfigError("give either a file of JSON lines, or a text with -p or -f")
    if text is not None:
        yield 0, {"text": text}
        return
    for number, line in enumerate(_common.read_text(args.input, MAX_ROWS).splitlines(), 1):
        if line.strip():
            yield number, parse_row(line, f"{args.input}: line {number}: ")


def parse_row(line: str, where: str) -> Row:
    """A row of JSON lines. ``FileError`` names the line and what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        raise FileError(f"{where}no JSON: {error}") from None
    if not isinstance(row, dict):
        raise FileError(f"{where}expected an object, found {type(row).__name__}")
    for columns in KINDS:
        if all(column in row for column in columns):
            wrong = [column for column in ("prompt", *columns) if not isinstance(row.get(column, ""), str)]
            if wrong:
                raise FileError(f"{where}{', '.join(wrong)} must be text (no list of messages)")
            return row
    raise FileError(f'{where}expected "text", "prompt" + "response", or "chosen" + "rejected" (+ "prompt")')


def _where(args: argparse.Namespace, number: int) -> str:
    return f"{args.input}: line {number}: " if number else ""


def _progress(rows: list[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    from tqdm import tqdm

    yield from tqdm(rows, desc="Scoring", unit="row", file=sys.stderr, disable=None if len(rows) > 1 else True)
