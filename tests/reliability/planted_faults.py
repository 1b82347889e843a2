"""Tests of the tests: plant mistakes in the sources, one at a time, and see whether the tests that should fail do.

    python -m tests.reliability.planted_faults             all of them, with the module of `make native`
    python -m tests.reliability.planted_faults entropy     those with the word in their name or file

A copy of the work tree is changed, never the tree itself. Tests are first run without a fault, where they must pass.
A fault in C++ costs one compilation and one link: both commands are those of the build folder, with other files.

Exit status: 0 if at least 95% are caught, 1 if fewer are, 2 if an entry is stale or a test fails without a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .fault_table import FAULTS, Fault
from .tree import ROOT, copy_module, copy_tree

REQUIRED = 0.95
BUILD = ROOT / "build" / "dev"
TIMEOUT_SECONDS = 900
_FAILED, _NOT_RUN = 1, 2  # pytest: some tests failed; they could not be run


class StaleError(Exception):
    """An entry of the table that does not fit the sources, or a test that fails without a fault."""


# ---- the copy --------------------------------------------------------------------------------------------------


@contextmanager
def planted(tree: Path, fault: Fault) -> Iterator[Path]:
    """The file of a fault with the fault in it. ``StaleError`` unless its text stands there once."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1 or fault.old == fault.new:
        raise StaleError(f"{fault.name}: {fault.file} has its text {text.count(fault.old)} times, expected once")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        yield path
    finally:
        path.write_text(text, encoding="utf-8")


def bare_python(folder: Path) -> Path:
    """An interpreter with the dependencies of this one, without its editable install of the work tree.

    That would be imported before any copy. Of a folder that a ``.pth`` file names, its own ``.pth`` files are not read.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin" / "python"


def run_tests(tree: Path, tests: Sequence[str], python: Path = Path(sys.executable)) -> tuple[int, str]:
    """pytest in a copy, up to the first failure: its exit status, and the test that failed."""
    command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    # Without compiled files: two versions of a source within one second would share theirs.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _FAILED, "(no end)"
    if ran.returncode < 0:
        return _FAILED, f"(signal {-ran.returncode})"
    failed = [line.split(" - ")[0] for line in ran.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if ran.returncode == _FAILED and failed and "::" in failed[0]:
        return _FAILED, failed[0].split(" ", 1)[1]
    # An error without the name of a test is one of importing its file, whatever the status says.
    return 0 if ran.returncode == 0 else _NOT_RUN, ran.stdout[-2000:] + ran.stderr[-2000:]


# ---- C++ -------------------------------------------------------------------------------------------------------


class NativeBuild:
    """The commands that made the native module, for other sources and another result."""

    def __init__(self, folder: Path) -> None:
        """``StaleError`` if there is no finished build of Ninja in the folder."""
        if not (folder / "build.ninja").is_file():
            raise StaleError(f"{folder}: no build; run make native first")
        self.folder = folder
        self.compile = {
            Path(entry["file"]): shlex.split(entry["command"])
            for entry in json.loads((folder / "compile_commands.json").read_text())
        }
        listed = subprocess.run(["ninja", "-t", "commands", "_native"], cwd=folder, check=True, capture_output=True)
        self.link = listed.stdout.decode().splitlines()[-1]

    def module(self, tree: Path, file: str) -> None:
        """Build the module of a copy from the copy's version of one source, and of the others as they were built."""
        command = self.compile[ROOT / file]
        place = command.index("-o") + 1
        object_file, own = command[place], str(tree / "planted.o")
        arguments = [own if part == object_file else part for part in command]
        arguments = [part.replace(str(ROOT / "csrc"), str(tree / "csrc")) for part in arguments]
        subprocess.run(arguments, cwd=self.folder, check=True, capture_output=True)
        (module,) = tree.glob("otter_gguf/_native*.so")
        link = self.link.replace(object_file, own).replace(f"-o {module.name}", f"-o {shlex.quote(str(module))}")
        module.unlink()  # never written through: a process may have it open
        subprocess.run(link, shell=True, cwd=self.folder, check=True, capture_output=True)


# ---- the run ---------------------------------------------------------------------------------------------------


class Planter:
    """Plants faults in a copy of the work tree."""

    def __init__(self, tree: Path, build: Path, python: Path = Path(sys.executable)) -> None:
        self.tree = tree
        self.build = build
        self.python = python
        self._passed: set[str] = set()
        self._native: NativeBuild | None = None

    def try_fault(self, fault: Fault) -> str | None:
        """The test that catches a fault; None if it survives. ``StaleError`` as above."""
        self._check_passing(fault.tests)
        with planted(self.tree, fault):
            if not fault.file.endswith(".cpp"):
                return self._catch(fault)
            with self._kept_module():
                self._native = self._native or NativeBuild(self.build)
                self._native.module(self.tree, fault.file)
                return self._catch(fault)

    def _catch(self, fault: Fault) -> str | None:
        status, caught_by = run_tests(self.tree, fault.tests, self.python)
        if status not in (0, _FAILED):
            raise StaleError(f"{fault.name}: its tests cannot be run: {caught_by}")
        return caught_by if status == _FAILED else None

    def _check_passing(self, tests: Sequence[str]) -> None:
        """Tests that fail without a fault would catch anything."""
        new = [test for test in tests if test not in self._passed]
        if new:
            status, found = run_tests(self.tree, new, self.python)
            if status != 0:
                raise StaleError(f"without a fault: {found}")
            self._passed.update(new)

    @contextmanager
    def _kept_module(self) -> Iterator[None]:
        (module,) = self.tree.glob("otter_gguf/_native*.so")
        kept = self.tree / "kept.so"
        shutil.copy2(module, kept)
        try:
            yield
        finally:
            kept.replace(module)


def run(faults: Sequence[Fault], build: Path) -> list[Fault]:
    """Plant each fault, say on stderr what came of it, and return those that survived."""
    survivors = []
    with tempfile.TemporaryDirectory(prefix="otter-gguf-faults-") as folder:
        tree = Path(folder, "tree")
        copy_tree(tree)
        copy_module(ROOT / "otter_gguf", tree)
        planter = Planter(tree, build, bare_python(Path(folder, "python")))
        for fault in faults:
            begin = time.monotonic()
            caught_by = planter.try_fault(fault)
            if caught_by is None:
                survivors.append(fault)
            line = f"{time.monotonic() - begin:6.1f} s  {caught_by or 'SURVIVED':70}  {fault.name}"
            print(line, file=sys.stderr, flush=True)
    return survivors


def too_many(survivors: Sequence[Fault], faults: Sequence[Fault]) -> bool:
    """Whether fewer than 95% were caught."""
    return len(survivors) > (1 - REQUIRED) * len(faults)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Plant faults in a copy and see whether the tests notice.")
    parser.add_argument("words", nargs="*", help="only faults with one of these words in their name or file")
    parser.add_argument("--build", type=Path, default=BUILD, help="build folder of the native module")
    given = parser.parse_args(arguments)
    words = [word.lower() for word in given.words] or [""]
    faults = [fault for fault in FAULTS if any(word in f"{fault.name} {fault.file}".lower() for word in words)]
    try:
        survivors = run(faults, given.build)
    except StaleError as error:
        print(f"planted faults: {error}", file=sys.stderr)
        return 2
    caught = len(faults) - len(survivors)
    print(f"{caught} of {len(faults)} caught ({caught / len(faults):.1%})")
    return int(too_many(survivors, faults))


if __name__ == "__main__":
    sys.exit(main())
