"""The script behind the section "Measured" of docs/guidance.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import guidance_quality
from otter_gguf.guidance import spec

DOCUMENT = Path(__file__).parents[2] / "docs" / "guidance.md"


def test_every_policy_can_be_parsed() -> None:
    for line in (*guidance_quality.POLICIES, *guidance_quality.SECOND_POLICIES):
        guidance = spec.parse(line)
        assert guidance is not None
        assert not guidance.is_noop


def test_the_page_has_a_row_for_each() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text[text.index(guidance_quality.HEADING) :]
    names = [
        "plain",
        *guidance_quality.POLICIES,
        *(f"{line} (second model)" for line in guidance_quality.SECOND_POLICIES),
    ]
    assert [name for name in names if f"| `{name}` " not in section] == []


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance_quality, "POLICIES", (guidance_quality.ARGS, guidance_quality.GATED))
    document, figures = tmp_path / "guidance.md", tmp_path / "figures.json"
    (tmp_path / "images").mkdir()
    document.write_text("# Page\n\n## Measured\n\nyesterday\n\n## Next\n\nstays\n", encoding="utf-8")
    small = ["--prompts", "3", "--seeds", "1", "-n", "4", "--pairs", "16", "--work", str(tmp_path / "work")]
    assert guidance_quality.main([*small, "--document", str(document), "--json", str(figures)]) == 0
    text = document.read_text(encoding="utf-8")
    assert "| `args:weight=2.0 (second model)` " in text
    assert "yesterday" not in text
    assert text.endswith("## Next\n\nstays\n")
    arms = json.loads(figures.read_text())["arms"]
    assert [arm["name"] for arm in arms][:2] == ["plain", "args:weight=2.0"]
    assert arms[1]["cost"]["fed_per_token"] == 10
    assert (tmp_path / "images" / "guidance-quality.png").read_bytes().startswith(b"\x89PNG")
