"""Score a file line by line and write JSON lines: each text with its reward, or with the reward after every token.

A line is plain text, or a JSON object with "text", or with "prompt" and "response"; other columns are kept:

    python examples/score_file.py                                             # some embedded lines, the demo model
    python examples/score_file.py texts.jsonl -o scored.jsonl
    python examples/score_file.py texts.txt -m base.Q4_K_M.gguf --otter harmless.otter.gguf --tokens

`otter-gguf score` does this and more; the example shows the calls to build on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from otter_gguf import FileError, Otter, Score
from otter_gguf.demo import demo_files

LINES = (
    "Ella saw that Ben was sad. Ella hugged Ben and shared her cake with him.",
    "Ella saw that Ben was sad. Ella laughed at Ben and stole his cake.",
    '{"id": 3, "prompt": "Finn met Hana. Her boat had a hole.", "response": " Finn helped her with a smile."}',
    '{"id": 4, "prompt": "Finn met Hana. Her boat had a hole.", "response": " Finn sneered and walked away."}',
)


def read_rows(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file; empty lines are left out. ``FileError`` names the line that is wrong."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            yield {"text": line.rstrip("\r\n")}
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FileError(f"{name}: line {number}: not JSON: {error}") from None
        if not ({"text"} <= row.keys() or {"prompt", "response"} <= row.keys()):
            raise FileError(f'{name}: line {number}: expected "text", or "prompt" and "response"')
        yield row


def score(llm: Otter, row: dict[str, Any]) -> Score:
    """Prompt and response are tokenized as one text; the response brings its own leading space."""
    return llm.score(row["text"]) if "text" in row else llm.score(row["prompt"], row["response"])


def scored(llm: Otter, rows: Iterable[dict[str, Any]], with_tokens: bool = False) -> Iterator[dict[str, Any]]:
    """Each row with its reward, and on request with the first label's reward after each of its tokens."""
    for row in rows:
        result = score(llm, row)
        row = {**row, "reward": result.reward}
        if with_tokens:
            pieces = [piece.decode("utf-8", "replace") for piece in result.pieces]
            row["tokens"] = list(zip(pieces, result.rewards[:, 0].tolist(), strict=True))
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    demo = demo_files()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="text or JSON lines (default: some embedded ones)")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: stdout)")
    parser.add_argument("--tokens", action="store_true", help="also the reward after every token")
    parser.add_argument("-m", "--model", default=demo.base, help="GGUF of the base (default: the demo model)")
    parser.add_argument("--otter", default=demo.sidecar, help="its sidecar")
    parser.add_argument("-t", "--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(arguments)
    lines = args.file.read_text(encoding="utf-8").split("\n") if args.file else LINES
    rows = list(read_rows(lines, str(args.file or "embedded lines")))  # all are checked before the model is loaded
    with Otter(args.model, otter=args.otter, n_threads=args.threads, n_seq_max=1) as llm:
        written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored(llm, rows, args.tokens))
    if args.output:
        args.output.write_text(written, encoding="utf-8")
    else:
        sys.stdout.write(written)


if __name__ == "__main__":
    main()
