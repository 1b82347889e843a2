"""The measurement of the vocabulary head (benchmarks/vocabulary_head.py), in its smallest size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import vocabulary_head
from otter_gguf import Otter
from otter_gguf.demo import demo_files
from otter_gguf.demo.experiment import Settings
from otter_gguf.errors import ConfigError


def test_every_figure_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    sizes = ["--pairs", "48", "--rate", "1e-2", "--held-out", "2", "--guide", "2", "--rank", "8"]
    monkeypatch.setattr(sys, "argv", ["vocabulary_head.py", *sizes, "--output", str(output)])
    vocabulary_head.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    for variant in ("distilled", "observed"):
        for group in ("A", "B"):
            assert found[variant][group]["all"]["positions"] == 4 * 12
            assert -1 <= found[variant][group]["all"]["rank"] <= 1
        assert set(found[variant]["guided"]) == {"plain", "ARGS", "vocabulary head"}
    assert found["distilled"]["A"]["all"] != found["observed"]["A"]["all"]
    assert "observed, words of group B" in capsys.readouterr().out


def test_a_sidecar_without_such_a_head_cannot_guide_by_it() -> None:
    files = demo_files()
    with (
        Otter(files.base, otter=files.sidecar, n_ctx=128, n_threads=1) as llm,
        pytest.raises(ConfigError, match="vocabulary head 0, the model has 0"),
    ):
        vocabulary_head.continue_by_scores(llm, files.load_prompts()[0], Settings(n_prompts=2), 0)
