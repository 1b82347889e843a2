"""Order documents by the reward that each has as the response to a query: one JSON object a line, best first.

FILE has a document in each line: a JSON text, an object with "text" or "document", whose other columns are passed
through, or plain text.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import ConfigError, FileError
from ..files import MAX_ROWS
from . import _common

HELP = "order documents by their rewards as responses to a query"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp."""
    parser.add_argument("input", metavar="FILE", help="documents, one in each line; - is stdin")
    parser.add_argument("-q", "--query", required=True, type=_common.utf8, help="what stands before each document")
    parser.add_argument("-n", "--top-n", type=int, metavar="N", help="print so many, best first (default: all)")
    parser.add_argument("--label", type=_common.utf8, help="which reward, if the model predicts several")
    parser.add_argument(
        "--separator", type=_common.utf8, default="\n", help="between query and document (a line break)"
    )
    _common.add_model_arguments(parser)
    _common.add_isolation_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Score all documents, then print them in their order."""
    lines = _common.read_text(args.input, MAX_ROWS).splitlines()
    rows = [_row(line, f"{args.input}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"{args.input}: no document in it")
    documents: list[str] = [row.get("text", row.get("document")) for row in rows]
    with _common.load(args) as llm:
        for one in llm.rerank(args.query + args.separator, documents, label=args.label, top_n=args.top_n):
            print(json.dumps({**rows[one["index"]], "index": one["index"], "relevance_score": one["relevance_score"]}))
    return 0


def _row(line: str, where: str) -> Any:
    if line.lstrip()[:1] not in ("{", '"'):
        return {"text": line}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {"text": line}
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row.get("text", row.get("document")), str):
        raise FileError(f'{where}: expected "text" or "document"')
    return row
