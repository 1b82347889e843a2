"""The test suite on a native module that was built with AddressSanitizer and UndefinedBehaviorSanitizer.

    make asan                                        builds build/asan and runs the tests that are not slow
    make asan PYTEST='tests/native -m ""'            others

Run in a copy of the work tree, whose package holds the instrumented module, so that no test can find the other one.
AddressSanitizer writes its reports to files, also in processes that tests start and whose output they read;
UndefinedBehaviorSanitizer knows stderr alone, and its report ends the process, so that the test that started it fails.
Exit status 0 if all tests pass and there is no report.

Linux and GCC. Leaks are not looked for here, for Python frees little at its end; ``tests.reliability.leaks`` does that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .tree import ROOT, copy_module, copy_tree

BUILD = ROOT / "build" / "asan"
SUPPRESSIONS = Path(__file__).with_name("ubsan.supp")

ASAN = {
    "detect_leaks": "0",
    "halt_on_error": "1",
    "allocator_may_return_null": "1",  # tests ask for more memory than there is, and expect an error
    "handle_segv": "0",  # a test that kills its process on purpose is no report; any other crash fails its test
    "handle_sigbus": "0",
    "handle_abort": "0",
    "alloc_dealloc_mismatch": "0",  # between torch's libraries, which are not instrumented
}
UBSAN = {"halt_on_error": "1", "print_stacktrace": "1", "suppressions": str(SUPPRESSIONS)}

LEFT_OUT = {
    "tests/reliability/test_memory.py": "resident memory of freed blocks is kept on purpose",
    "tests/reliability/test_planted_faults.py": "runs no native code",
    "tests/test_build.py": "about the build folder",
}
"""Test files and why they are not run."""


def runtime_libraries() -> list[str]:
    """What must be loaded before the interpreter: the sanitizers, and the library whose exceptions they watch."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        path = subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout
        if not Path(path.strip()).is_absolute():
            raise FileNotFoundError(f"gcc has no {name}")
        found.append(str(Path(path.strip()).resolve()))
    return found


def environment(tree: Path, reports: Path) -> dict[str, str]:
    """Variables for the tests and all that they start."""

    def options(given: dict[str, str]) -> str:
        return ":".join(f"{name}={value}" for name, value in {**given, "log_path": str(reports / "report")}.items())

    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_PRELOAD": " ".join(runtime_libraries()),
        "ASAN_OPTIONS": options(ASAN),
        "UBSAN_OPTIONS": options(UBSAN),
    }


def _has_report(file: Path) -> bool:
    text = file.read_text(errors="replace")
    return any(mark in text for mark in ("runtime error:", "ERROR: AddressSanitizer", "Assertion '"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pytest with the given arguments; see the module's text."""
    tree, reports = BUILD / "tree", BUILD / "reports"
    for folder in (tree, reports):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    copy_tree(tree)
    copy_module(BUILD, tree)
    given = sys.argv[1:] if arguments is None else list(arguments)
    # pytest leaves the descriptor of stderr alone, so that what a process says last is not lost with it.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *given]
    command += [f"--ignore={file}" for file in LEFT_OUT]
    with open(reports / "stderr", "w") as stderr:
        status = subprocess.run(command, cwd=tree, env=environment(tree, reports), stderr=stderr).returncode
    found = [report for report in sorted(reports.iterdir()) if _has_report(report)]
    for report in found:
        print(f"---- {report}\n{report.read_text(errors='replace')}", file=sys.stderr)
    print(f"{len(found)} reports, pytest's exit status {status}")
    return int(bool(found) or status != 0)


if __name__ == "__main__":
    sys.exit(main())
