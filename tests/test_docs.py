"""The code in the documents runs as it stands."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from otter_gguf.options import LoadOptions, SamplingOptions
from tests.documents import DOCS, fenced
from tests.synthetic_models import pair


@pytest.mark.parametrize("name", ["python-api.md", "guidance.md"])
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pair()
    shutil.copy(files.base, tmp_path / "base.gguf")
    shutil.copy(files.otter, tmp_path / "harmless.otter.gguf")
    monkeypatch.chdir(tmp_path)
    # Several threads wait for each other by spinning, which is slow where other tests run beside this one.
    monkeypatch.setattr("otter_gguf.model.LoadOptions", functools.partial(LoadOptions, n_threads=1))
    blocks = fenced(DOCS / name, "python")
    assert len(blocks) >= 2
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, name, "exec", dont_inherit=True), names)


@pytest.mark.parametrize("options", [LoadOptions, SamplingOptions])
def test_every_option_is_described(options: type) -> None:
    text = (DOCS / "python-api.md").read_text(encoding="utf-8")
    missing = [field for field in options.__dataclass_fields__ if f"`{field}`" not in text]  # type: ignore[attr-defined]
    assert not missing
