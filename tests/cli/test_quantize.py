"""`otter-gguf quantize`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from tests import quantizable
from tests.cli.test_main import listen_to_ctrl_c, wait_until_mapped
from tests.quantizable import types
from tests.refusals import assert_names


def run(*arguments: str | Path) -> int:
    return main(["quantize", *map(str, arguments), "-t", "1"])


@pytest.mark.parametrize(("source", "type"), [("base", "q4_k_m"), ("sidecar", "Q4_K"), ("merged", "Q4_0")])
def test_the_path_of_the_file_is_printed(
    tmp_path: Path, source: str, type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    assert run(getattr(quantizable, source)(), target, type) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert captured.err == ""
    assert any(found.startswith("Q4_") for found in types(target).values())


def test_a_dry_run_prints_sizes_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.gguf"
    arguments = (quantizable.merged(), target, "Q4_K_M", "--otter-type", "q8_0")
    assert run(*arguments, "--dry-run") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["before", "after"]
    assert [line[:2] for line in lines[1:-1]] == [
        ["base", "F32"],
        ["base", "Q4_K"],
        ["base", "Q6_K"],
        ["inserted", "F32"],
        ["inserted", "Q8_0"],
        ["inserted", "F16"],
    ]
    assert list(tmp_path.iterdir()) == []
    assert run(*arguments) == 0
    after = float(lines[-1][-2])
    assert target.stat().st_size / 2**20 == pytest.approx(after, abs=0.1)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (quantizable.merged(), tmp_path / "out", "Q8_0", "--json")
    assert run(*arguments, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out)
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert planned["old_bytes"] > planned["new_bytes"]
    assert {tensor["name"]: tensor["new_type"] for tensor in planned["tensors"]} == types(tmp_path / "out")
    assert sum(row["new_bytes"] for row in planned["sizes"]) == planned["new_bytes"]
    base, inserted = planned["sizes"][0], planned["sizes"][-1]
    assert (base["part"], base["type"], base["new_tensors"]) == ("base", "F32", 5)
    assert (inserted["part"], inserted["old_tensors"]) == ("inserted", inserted["new_tensors"])


def test_surprises_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.synthetic_models import pair

    assert run(pair().otter, tmp_path / "s", "Q6_K") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 's'}\n"
    assert_names(captured.err, "blk.0.attn_qkv.otter.weight", 160, "Q8_0", "9 more")
    values = quantizable.importance()
    del values["output.weight"]
    imatrix = quantizable.write_importance(tmp_path / "imatrix", values)
    assert run(quantizable.base(), tmp_path / "b", "Q4_0", "--imatrix", imatrix) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert_names(err, "importance", "token_embd.weight", "output.weight")


def test_wrong_input_is_one_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    out = tmp_path / "out"
    for arguments, names in (
        ((quantizable.base(), quantizable.base(), "Q8_0", "--force"), (quantizable.base(), "input")),
        ((quantizable.base(), out, "Q9"), ("Q9", "F32", "F16")),
        ((quantizable.sidecar(), out, "Q4_K_M"), ("Q4_K_M", "sidecar", "Q4_K")),
        (
            (quantizable.base("Q4_0"), out, "Q8_0"),
            (quantizable.base("Q4_0"), "output.weight", "Q6_K", "--allow-requantize"),
        ),
        ((quantizable.base(), out, "IQ1_S"), ("IQ1_S", "--imatrix")),
        ((quantizable.base(), out, "Q8_0", "--imatrix", text), (text, "importance")),
        ((text, out, "Q8_0"), (text, "GGUF")),
        ((tmp_path / "nowhere", out, "Q8_0"), (tmp_path / "nowhere",)),
        ((quantizable.base(), tmp_path / "no" / "folder", "Q8_0"), (tmp_path / "no" / "folder",)),
    ):
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert_names(captured.err, *names)
    assert [path.name for path in tmp_path.iterdir()] == ["text.gguf"]


SLOW = """
import sys
from benchmarks import synthetic
from otter_gguf.config import BaseGeometry
from pathlib import Path
geometry = synthetic.Geometry(BaseGeometry("llama", 4, 1024, 16, 16, 64, 2048, 320), False, 512, 10000.0, 0.0)
synthetic.write_base(Path(sys.argv[1]), geometry, "F16", 0)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_ctrl_c_is_exit_code_130_and_no_file(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    subprocess.run([sys.executable, "-c", SLOW, base], check=True, timeout=60)
    arguments = [str(base), str(tmp_path / "out.gguf"), "IQ3_S", "-t", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "otter_gguf.cli.main", "quantize", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        wait_until_mapped(process.pid, base)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "otter-gguf: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == [base.name]
