"""Look for everything that is wrong with GGUF files, before or instead of running them.

Structure, metadata, tensors, NaN and infinities, checksums, and whether base and inserted part belong together. Exit
code 0 if nothing is wrong with any of them, else 2. docs/security.md says what this does and does not promise.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..text import terminal_safe
from . import _common

if TYPE_CHECKING:
    from ..gguf.check import Report

HELP = "list everything that is wrong with GGUF files"

WRONG_FILE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, and the base that sidecars among them are for."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="base (its first shard), sidecar or merged GGUF")
    parser.add_argument("--base", metavar="FILE", help="the base that each sidecar must belong to")
    parser.add_argument("--json", action="store_true", help="JSON for machines")


def run(args: argparse.Namespace) -> int:
    """Check file after file; a bad one does not keep the others from being checked."""
    from ..gguf.check import check_file

    reports = []
    for path in args.files:
        reports.append(check_file(path, args.base))
        if not args.json:
            print_report(reports[-1])
    if args.json:
        _common.print_json([report.to_dict() for report in reports])
    return 0 if all(report.ok for report in reports) else WRONG_FILE


def print_report(report: Report) -> None:
    """A line about the file, then one for each kind of problem, and for what could not be looked at."""
    verdict = f"ok ({', '.join(report.passed)})" if report.ok else "NOT ok"
    _print_line(f"{report.path}: {report.kind or 'unreadable'}, {verdict}")
    for problem in report.problems:
        message = problem.message.removeprefix(f"{report.path}: ").removeprefix(f"{problem.check}: ")
        _print_line(f"  {problem.check}: {message}")
    for note in report.notes if report.ok else ():
        _print_line(f"  note: {note}")


def _print_line(text: str) -> None:
    print(terminal_safe(" ".join(text.rstrip().split("\n"))))
