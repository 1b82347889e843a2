"""What of the native code the fuzzer reaches: ``make fuzz-coverage``, with the fuzzer's own options in ``FUZZ``.

Counted are ``csrc/`` and what of llama.cpp reads texts, grammars and schemas, by GCC's counters (``OTTER_COVERAGE`` in
``CMakeLists.txt``), which each process writes when it ends: a trial that ends badly takes those of its process along.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.reliability.tree import ROOT, copy_module, copy_tree

LLAMA_CPP = [
    *(f"src/{name}.cpp" for name in ("llama-vocab", "unicode", "llama-grammar")),
    *(f"common/{name}.cpp" for name in ("json-schema-to-grammar", "json-schema", "json", "trie", "unicode")),
]
LARGE = 10
"""Lines of a function that is named if it never ran."""


class Reached:
    """Lines, branches and functions, each with whether it ran; templates count once, however often compiled."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, int], bool] = {}
        self.branches: dict[tuple[str, int, int], bool] = {}
        self.functions: dict[tuple[str, int, str], tuple[bool, int]] = {}

    def add(self, path: str, file: dict[str, Any]) -> None:
        """What gcov says of a source file in one object file."""
        for line in file["lines"]:
            place = path, line["line_number"]
            self.lines[place] = self.lines.get(place, False) or line["count"] > 0
            # An exception may leave nearly every call: those branches would be half of all.
            for index, branch in enumerate(branch for branch in line["branches"] if not branch["throw"]):
                way = *place, index
                self.branches[way] = self.branches.get(way, False) or branch["count"] > 0
        for function in file["functions"]:
            name = path, function["start_line"], function["demangled_name"]
            ran, _ = self.functions.get(name, (False, 0))
            size = function["end_line"] - function["start_line"] + 1
            self.functions[name] = ran or function["execution_count"] > 0, size

    def table(self) -> Iterator[str]:
        """A row for each folder of csrc/ and each file of llama.cpp, then the large functions that never ran."""
        lines, branches = _by_part(self.lines), _by_part(self.branches)
        for part, ran in sorted(lines.items()):
            yield f"{part:45} lines {_share(ran)}   branches {_share(branches[part])}"
        for (path, line, name), (ran_once, size) in sorted(self.functions.items()):
            if not ran_once and size >= LARGE:
                short = name.replace("(anonymous namespace)::", "").partition("(")[0]
                yield f"never ran: {path}:{line} {short} ({size} lines)"


def _by_part(ran: dict[Any, bool]) -> dict[str, list[bool]]:
    parts: dict[str, list[bool]] = collections.defaultdict(list)
    for (path, *_), once in ran.items():
        parts[path.rpartition("/")[0] if path.startswith("csrc/") else path].append(once)
    return parts


def _share(ran: list[bool]) -> str:
    return f"{sum(ran):5,} of {len(ran):5,} ({sum(ran) / max(len(ran), 1):5.1%})"


def reached(build: Path) -> Reached:
    """What the counters in a build folder say."""
    found = Reached()
    counters = sorted(map(str, build.glob("**/*.gcda")))
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", "--demangled-names", *counters]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        for file in json.loads(line)["files"]:
            path = file["file"].removeprefix(f"{ROOT}/")
            path = next((f"llama.cpp/{name}" for name in LLAMA_CPP if path.endswith(f"/{name}")), path)
            if path.startswith(("csrc/", "llama.cpp/")):
                found.add(path, file)
    return found


def main() -> int:
    """Exit code 1 if a trial ended badly."""
    build, tree = Path(sys.argv[1]).resolve(), Path(sys.argv[1]).resolve() / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    copy_tree(tree)
    copy_module(build, tree)
    for counters in build.glob("**/*.gcda"):
        counters.unlink()
    command = [sys.executable, "-m", "tests.fuzz", *sys.argv[2:]]
    status = subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}).returncode
    print(*reached(build).table(), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
