"""The linter of layers sees what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.layers import ROOT, check

pytest.importorskip("importlinter", reason="of the lint group, which `make test` installs")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("steps.py", "from .model import Otter as _  # a layer above"),
        ("gguf/keys.py", "from . import sidecar as _  # a circle"),
    ],
)
def test_an_import_that_points_up_is_noticed(tmp_path: Path, module: str, line: str) -> None:
    package = tmp_path / "package"
    shutil.copytree(ROOT / "otter_gguf", package, ignore=shutil.ignore_patterns("llama_cpp", "*.so", "*.gguf"))
    changed = package / module
    changed.write_text(changed.read_text("utf-8") + f"\nif TYPE_CHECKING:\n    {line}\n", "utf-8")
    assert check(package).returncode == 1


def test_imports_point_one_way() -> None:
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
