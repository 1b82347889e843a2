"""The measurement of the vocabulary head (benchmarks/vocabulary_head.py), in its smallest size."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from otter_gguf.converters.adapter import convert_adapter
from safetensors.numpy import load_file, save_file

from benchmarks import vocabulary_head
from otter_gguf import Otter
from otter_gguf.adapter_format import CONFIG_NAME, TENSORS_NAME
from otter_gguf.demo import DemoFiles, Judge, demo_files
from otter_gguf.demo.experiment import Difference, Settings
from otter_gguf.errors import ConfigError
from otter_gguf.gguf.base import BaseFiles
from tests.refusals import refused


def test_every_figure_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    sizes = [
        "--pairs",
        "48",
        "--rate",
        "1e-2",
        "--held-out",
        "2",
        "--guide",
        "2",
        "--guide-candidates",
        "5",
        "--rank",
        "8",
    ]
    monkeypatch.setattr(sys, "argv", ["vocabulary_head.py", *sizes, "--output", str(output)])
    vocabulary_head.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    for variant in ("distilled", "observed"):
        for group in ("A", "B"):
            assert found[variant][group]["all"]["positions"] == 4 * 12
            assert -1 <= found[variant][group]["all"]["rank"] <= 1
        assert set(found[variant]["guided"]["5"]) == {"plain", "ARGS", "vocabulary head"}
    assert found["distilled"]["A"]["all"] != found["observed"]["A"]["all"]
    assert "observed, words of group B" in capsys.readouterr().out


def test_the_shipped_heads_are_measured_without_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vocabulary_head.py", "--variants", "shipped", "--pairs", "1", "--held-out", "5"])
    vocabulary_head.main()
    rank = re.findall(r"  all +120 positions  rank +(\S+)", capsys.readouterr().out)
    assert len(rank) == 2
    assert min(map(float, rank)) > 0.6


def test_the_shipped_head_guides_either_way() -> None:
    """The same prompts and draws; only the sign of the weight differs."""
    files, judge = demo_files(), Judge.load()
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1) as llm:
        kind, unkind = (
            [
                judge.score(vocabulary_head.continue_by_scores(llm, prompt, Settings(weight=weight), index).text)
                for index, prompt in enumerate(files.load_prompts()[:32])
            ]
            for weight in (2.0, -2.0)
        )
    difference = Difference.of(kind, unkind)
    assert difference.mean > 1
    assert difference.in_errors > 5


def test_a_sidecar_without_such_a_head_cannot_guide_by_it(tmp_path: Path) -> None:
    files = demo_files()
    sidecar = without_vocabulary_head(files, tmp_path)
    with (
        Otter(files.base, otter=sidecar, n_ctx=128, n_threads=1) as llm,
        refused(ConfigError, "vocabulary head", 0),
    ):
        vocabulary_head.continue_by_scores(llm, files.load_prompts()[0], Settings(n_prompts=2), 0)


def without_vocabulary_head(files: DemoFiles, folder: Path) -> Path:
    """The demo's sidecar with its value head alone."""
    record = json.loads((files.adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    record["insertion"]["heads"] = record["insertion"]["heads"][:1]
    (folder / CONFIG_NAME).write_text(json.dumps(record), encoding="utf-8")
    tensors = load_file(files.adapter / TENSORS_NAME)
    save_file({name: x for name, x in tensors.items() if not name.startswith("heads.next.")}, folder / TENSORS_NAME)
    with BaseFiles.open(files.base) as base:
        convert_adapter(folder, folder / "value.otter.gguf", base)
    return folder / "value.otter.gguf"
