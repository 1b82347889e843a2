"""The table of planted faults fits the sources, and the tool that plants them tells caught from survived."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.refusals import refused
from tests.reliability import planted_faults
from tests.reliability.fault_table import FAULTS, NATIVE, Fault
from tests.reliability.planted_faults import Planter, StaleError, bare_python, planted, run_tests
from tests.reliability.tree import ROOT

SOURCE = "def double(x: int) -> int:\n    return 2 * x\n"
TEST = "from source import double\n\n\ndef test_double() -> None:\n    assert double({}) == {}\n"
FAULT = Fault("sum", "source.py", "2 * x", "2 + x", ("test_source.py",))


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 50
    assert len(NATIVE) >= 12
    assert all(fault.file.endswith(".cpp") for fault in NATIVE)
    assert len({fault.name + fault.file for fault in FAULTS}) == len(FAULTS)


@pytest.mark.slow  # it pins source text, and fails with every edit of a line in the table
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_entry_is_stale(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.old != fault.new
    assert fault.tests
    assert all((ROOT / test.split("::")[0]).exists() for test in fault.tests)


def tree(folder: Path, argument: int, expected: int) -> Planter:
    """A project of one source and one test."""
    (folder / "source.py").write_text(SOURCE)
    (folder / "test_source.py").write_text(TEST.format(argument, expected))
    (folder / "conftest.py").write_text("import sys\nsys.path.insert(0, '.')\n")
    return Planter(folder, folder)


def test_a_fault_is_caught(tmp_path: Path) -> None:
    assert tree(tmp_path, 3, 6).try_fault(FAULT) == "test_source.py::test_double"
    assert (tmp_path / "source.py").read_text() == SOURCE


def test_the_copy_is_tested_where_the_package_is_installed_too(tmp_path: Path) -> None:
    """An editable install, as `make test` makes one, comes before every path."""
    package = tmp_path / "tree" / "otter_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("PLANTED = True\n")
    (package.parent / "test_source.py").write_text("import otter_gguf\n\ndef test_it(): assert otter_gguf.PLANTED\n")
    python = bare_python(tmp_path / "python")
    assert run_tests(package.parent, ["test_source.py"], python) == (0, ANY)


def test_a_fault_survives_a_weak_test(tmp_path: Path) -> None:
    assert tree(tmp_path, 2, 4).try_fault(FAULT) is None


def test_a_test_that_fails_by_itself_catches_nothing(tmp_path: Path) -> None:
    with refused(StaleError, "test_source.py::test_double"):
        tree(tmp_path, 3, 7).try_fault(FAULT)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_file_that_cannot_be_imported_catches_nothing(tmp_path: Path, copies: int) -> None:
    planter = tree(tmp_path, 3, 6)
    (tmp_path / "test_other.py").write_text(TEST.format(3, 6))
    with refused(StaleError, FAULT.name, "ERROR", "test_source.py"):
        planter.try_fault(FAULT._replace(new="2 *", tests=("test_source.py", "test_other.py")[:copies]))


@pytest.mark.parametrize(("old", "count"), [("3 * x", 0), ("x", 2)], ids=["gone", "more than once"])
def test_a_stale_entry_is_an_error(tmp_path: Path, old: str, count: int) -> None:
    tree(tmp_path, 3, 6)
    with refused(StaleError, FAULT.name, FAULT.file, count), planted(tmp_path, FAULT._replace(old=old)):
        pass


def test_too_many_survivors_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for survivors, status in (([], 0), ([FAULT] * 3, 0), ([FAULT] * 5, 1)):
        monkeypatch.setattr(planted_faults, "run", lambda faults, build, found=survivors: found)
        assert planted_faults.main([]) == status
