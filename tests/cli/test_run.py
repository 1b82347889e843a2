"""``otter-gguf run``: text in the colours of its rewards."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import GEOMETRIES
from otter_gguf.cli import main as cli
from otter_gguf.cli._colour import HIGH, LOW, MIDDLE, Painter, RewardScale, colour_at, head_of_column, wants_colour
from otter_gguf.completion import Rewards
from otter_gguf.config import HeadConfig, InsertionConfig
from tests.refusals import assert_names
from tests.synthetic_models import TEXT, pair

ESCAPE = re.compile("\x1b\\[[0-9;]*m")


def run(capsys: pytest.CaptureFixture[str], *arguments: str, files: Any = None) -> tuple[int, str, str]:
    files = files or pair()
    code = cli.main(["run", "-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "256", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_continues_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "-p", "The otter", "-n", "10", "--temp", "0")
    assert code == 0
    assert out.startswith("The otter")
    assert len(out) > len("The otter\n")
    assert "\x1b" not in out
    assert err == ""


def test_colours_change_nothing_but_the_colours(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-p", "The otter", "-n", "30", "--temp", "1", "-s", "3"]
    plain = run(capsys, *arguments, "--color", "never")[1]
    coloured = run(capsys, *arguments, "--color", "always")[1]
    assert ESCAPE.sub("", coloured) == plain
    assert len(set(ESCAPE.findall(coloured))) > 3


def test_json_holds_all_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "-p", "The otter", "-n", "7", "--temp", "0", "--json")
    choice = json.loads(out)["choices"][0]
    assert code == 0
    assert len(choice["rewards"]["token_rewards"]) == 7
    assert choice["prompt_rewards"]["tokens"]
    assert out.isascii()


def test_guidance_flags(capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*arguments: str) -> list[int]:
        out = run(capsys, "-p", TEXT, "-n", "20", "--temp", "0", "--json", *arguments)[1]
        return list(json.loads(out)["choices"][0]["rewards"]["tokens"])

    assert tokens() == tokens("-w", "0") != tokens("--weight", "5", "--candidates", "20")


def test_sampler_options_act_on_guided_scores(capsys: pytest.CaptureFixture[str]) -> None:
    def text(*arguments: str) -> str:
        return run(capsys, "-p", TEXT, "-n", "20", "-w", "5", "-s", "3", *arguments)[1]

    assert text("--temp", "2", "--top-k", "1") == text("--temp", "0") != text("--temp", "2")


def test_prompt_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Once, an otter")
    assert run(capsys, "-f", str(tmp_path / "prompt.txt"), "-n", "3")[1].startswith("Once, an otter")


def test_interactive_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one otter\n\n/reset\ntwo otters\n/exit\nnever read\n"))
    code, out, _ = run(capsys, "-n", "3", "--temp", "0")
    assert code == 0
    assert "one otter" in out
    assert "two otters" in out
    assert "never read" not in out


def test_plain_model_runs_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", str(pair().base), "-t", "1", "-p", "x", "-n", "3", "--color", "always"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--json"], ("--json", "-p", "-f")),
        (["-p", "x", "-f", "y"], ("-p", "-f")),
        (["-p", "x", "--candidates", "3"], ("--candidates", "--weight")),
        (["-p", "x", "-w", "1", "--label", "unknown"], ("'unknown'", "reward")),
        (["-p", "x", "--temp", "-1"], ("temperature", -1.0)),
        (["-f", "/no/such/prompt"], ("/no/such/prompt",)),
        (["-p", "x" * 2000], (2001, 256, "n_ctx")),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], names: tuple[object, ...]
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert_names(err, *names)
    assert err.count("\n") == 1


def test_no_utf8_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert_names(run(capsys, "-f", str(tmp_path / "latin"))[2], tmp_path / "latin", "byte 3")


# ---- colours ---------------------------------------------------------------------------------------------------


def insertion(activation: Any = "none", scale: float = 1.0, shift: float = 0.0) -> InsertionConfig:
    heads = (
        HeadConfig("first", ("a", "b"), activation=activation, scale=(scale, 1.0), shift=(shift, 0.0)),
        HeadConfig("second", ("c",)),
    )
    return InsertionConfig.uniform(GEOMETRIES["tiny"].base, 32, 1, 0, heads=heads)


def test_colours_run_from_low_to_high() -> None:
    assert [colour_at(place) for place in (0, 0.5, 1)] == [LOW, MIDDLE, HIGH]
    assert LOW[0] > colour_at(0.25)[0] > MIDDLE[0]


def test_scale_of_an_unbounded_head_is_relative_to_the_prompt() -> None:
    scale = RewardScale(insertion(), 0, prompt_reward=2.0)
    assert scale.place(2.0) == 0.5
    assert scale.place(1.0) < 0.5 < scale.place(3.0)
    assert scale.place(1e9) == 1.0


def test_scale_of_a_bounded_head_is_its_range() -> None:
    sigmoid = RewardScale(insertion("sigmoid", scale=2.0, shift=-1.0), 0, 0.0)
    assert [sigmoid.place(reward) for reward in (-1.0, 0.0, 1.0)] == [0.0, 0.5, 1.0]
    assert sigmoid.ends == ("-1", "1")
    tanh = RewardScale(insertion("tanh"), 0, 0.0)
    assert [tanh.place(reward) for reward in (-1.0, 0.0, 1.0)] == [0.0, 0.5, 1.0]


def test_columns_belong_to_heads_in_order() -> None:
    assert [head_of_column(insertion(), column)[0].name for column in range(3)] == ["first", "first", "second"]
    with pytest.raises(IndexError):
        head_of_column(insertion(), 3)


def rewards(tokens: list[int], offsets: list[int], values: list[float]) -> Rewards:
    return {
        "labels": ["r"],
        "tokens": tokens,
        "text_offset": offsets,
        "token_rewards": [[value] for value in values],
        "reward": values[-1],
    }


def test_painter_gives_each_token_its_own_colour() -> None:
    out = io.StringIO()
    painter = Painter(out, RewardScale(insertion(), 0, 0.0), 0)
    painter.write("ab", rewards([1, 2], [0, 1], [-9.0, 9.0]))
    painter.write("cd", rewards([3], [3], [-9.0]))
    runs = re.findall("(\x1b\\[38[0-9;]*m)([^\x1b]*)\x1b\\[0m", out.getvalue())
    assert [text for _, text in runs] == ["a", "b", "c", "d"]
    low, high = runs[0][0], runs[1][0]
    assert [colour for colour, _ in runs] == [low, high, high, low], "c still belongs to the second token"


def test_painter_defuses_control_characters() -> None:
    for scale in (None, RewardScale(insertion(), 0, 0.0)):
        out = io.StringIO()
        Painter(out, scale, 0).write("a\x1b]0;title\x07b", rewards([1], [0], [0.0]))
        assert "\x07" not in out.getvalue()
        assert "\\x1b]0;title" in out.getvalue()


def test_auto_colour_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour("auto", Terminal())
    assert not wants_colour("auto", io.StringIO())
    assert wants_colour("always", io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour("auto", Terminal())
