"""``otter-gguf demo``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from tests.refusals import assert_names

SMALL = ["--prompts", "4", "-n", "8"]


def test_json_is_all_of_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "demo.png"
    assert main(["demo", "--json", *SMALL, "-o", str(plot)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] == 4
    assert result["base_logits_identical"] is True
    assert result["logits_compared"] >= 1_000_000
    assert result["sidecar_reproduced"] is True
    assert result["unseen_pairs_ranked"] > 0.8
    assert result["guided"]["ms_per_token"] > 0
    assert result["plain"]["ms_per_token"] > 0
    assert result["plot"] == str(plot)
    assert plot.stat().st_size > 10_000


def test_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *SMALL, "--no-plot", "--examples", "1"]) == 0
    out = capsys.readouterr().out
    assert "identical, bit for bit" in out
    assert "the shipped file, byte for byte" in out
    assert out.count("guided (judge") == 1
    assert "\x1b" not in out


def test_colour_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *SMALL, "--no-plot", "--color", "always"]) == 0
    assert "\x1b[38;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (["--prompts", "1"], ("--prompts", 1, 2)),
        (["--prompts", "100000"], ("--prompts", 100000)),
        (["-n", "0"], ("-n", 0, 1)),
        (["-o", "no/such/folder/x.png"], ("no/such/folder",)),
        (["--candidates", "0"], ("--candidates", 0, 1)),
    ],
)
def test_wrong_input_is_one_line_and_2(
    wrong: list[str], names: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *SMALL, *wrong]) == 2
    captured = capsys.readouterr()
    assert_names(captured.err.splitlines()[-1], *names)
    assert captured.out == ""


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from otter_gguf.cli.main import main; "
        "sys.exit(main(['demo', '--prompts', '2', '-n', '4', '--no-plot', '--json']))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0


@pytest.mark.slow
def test_the_whole_demo_keeps_its_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--no-plot"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] >= 100
    assert result["difference"] > 2 * result["difference_se"]
    assert result["unseen_difference"] > 2 * result["unseen_difference_se"]
    assert result["seconds"] < 90
