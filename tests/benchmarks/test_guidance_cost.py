"""What guidance costs (benchmarks/guidance_cost), on the tiny geometry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import synthetic
from benchmarks.guidance_cost.__main__ import main
from benchmarks.guidance_cost.clock import Token, native_clock
from benchmarks.guidance_cost.memory import buffers
from benchmarks.guidance_cost.report import HEADING, with_section
from benchmarks.guidance_cost.settings import (
    CANDIDATES,
    MOST_CANDIDATES,
    WARM_UP,
    Files,
    Settings,
    insertion,
    make_files,
)
from benchmarks.guidance_cost.sides import Guided, Stock
from benchmarks.guidance_cost.timing import ARMS, Bench, Timing, loaded, python_share, ratio, saved
from benchmarks.report import config_1b
from otter_gguf import ConfigError, Otter, _native
from otter_gguf.options import SamplingOptions
from tests.refusals import assert_names, refused

SETTINGS = Settings(steps=4, rounds=2, prompt=5, texts=3, batch_tokens=3, turns=1, context=64, threads=1)
ARGUMENTS = [
    f"--{name.replace('_', '-')}={getattr(SETTINGS, name)}"
    for name in ("steps", "rounds", "prompt", "texts", "batch_tokens", "turns", "context", "threads")
]
PROMPT = [5, 99, 20, 300, 7]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def files(work: Path) -> Files:
    return make_files(work, SETTINGS)


@pytest.fixture
def bench(files: Files) -> Iterator[Bench]:
    with loaded(files, "Q4_0", SETTINGS, reverse=False) as bench:
        yield bench


def token(seconds: float, tokens: int = 1, native: float = 0.0) -> Token:
    return Token(seconds, {"decode": native}, tokens)


# ---- models ----------------------------------------------------------------------------------------------------


def test_models_are_what_is_claimed(bench: Bench) -> None:
    assert bench.otter.vocabulary_heads == ("next",)
    assert bench.otter.reward_labels == bench.second.reward_labels == ("reward",)
    assert bench.stock.n_rewards == 0
    assert bench.second.model.n_params > bench.stock.model.n_params  # its head
    assert bench.otter.insertion is not None
    assert bench.second.insertion is not None
    assert (bench.otter.insertion.width, bench.second.insertion.width) == (64, 0)


def test_models_are_made_once(files: Files, work: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in files.folder.iterdir()}
    assert len(times) == 5
    assert files.base.read_bytes() != files.second.read_bytes()
    make_files(work, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in files.folder.iterdir()} == times
    assert make_files(work, replace(SETTINGS, seed=3)).folder != files.folder


@pytest.mark.parametrize(("rank", "heads"), [(32, ("next",)), (0, ())])
def test_synthetic_sidecar_with_a_vocabulary_head(
    rank: int, heads: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--vocabulary-rank", str(rank), "--labels", "kind,safe", "--width", "32", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["synthetic", *options])
    assert synthetic.main() == 0
    with Otter(tmp_path / "base.gguf", otter=tmp_path / "synthetic.otter.gguf", n_ctx=64, n_threads=1) as llm:
        assert (llm.reward_labels, llm.vocabulary_heads) == (("reward.kind", "reward.safe"), heads)
        llm.create_completion("a", max_tokens=1)
        if heads:
            scores = llm.context.vocabulary_scores(0, 0)
            assert scores.shape == (llm.n_vocab,)
            assert scores.std() > 0.01


# ---- the clock -------------------------------------------------------------------------------------------------


def test_the_clock_runs_within_its_block_alone(files: Files) -> None:
    original = _native.Context.decode
    tokens, sequences, outputs = np.array([1, 2, 3], np.int32), np.zeros(3, np.int32), np.ones(3, np.bool_)
    with Otter(files.base, n_ctx=64, n_threads=1) as llm:
        with native_clock() as clock:
            llm.context.decode(tokens, np.arange(3, dtype=np.int32), sequences, outputs)
            assert llm.context.logits().shape == (3, llm.n_vocab)
            assert clock.tokens == 3
            assert set(clock.seconds) == {"decode", "logits"}
            assert clock.seconds["decode"] > clock.seconds["logits"] > 0
            clock.reset()
            assert (clock.tokens, dict(clock.seconds)) == (0, {})
        llm.context.decode(tokens, np.arange(3, 6, dtype=np.int32), sequences, outputs)
        assert clock.tokens == 0
    assert _native.Context.decode is original


def test_the_clock_lets_errors_through() -> None:
    with native_clock() as clock:
        with refused(ConfigError, "NaN"):
            _native.entropy(np.array([np.nan], np.float32))
        assert clock.seconds["entropy"] > 0


# ---- sides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}])
def test_plain_decoding_without_otter_writes_the_same_text(bench: Bench, options: dict[str, Any]) -> None:
    """Both sides of a pair do the same work, greedily and by llama.cpp's default chain."""
    stock = Stock(bench.stock.model, bench.stock_context, SamplingOptions(**options))
    guided = Guided(bench.otter, None, options)
    for side in (stock, guided):
        side.begin(PROMPT)
        for _ in range(6):
            assert side.step()
    np.testing.assert_array_equal(stock.context.logits()[0], bench.otter.context.logits()[0])
    stock.step()
    assert not np.array_equal(stock.context.logits()[0], bench.otter.context.logits()[0])


def test_a_text_that_has_ended_says_so(bench: Bench) -> None:
    ending = Guided(bench.otter, None, {"temperature": 0.0, "logit_bias": {bench.otter.model.eos_token: 1000.0}})
    ending.begin(PROMPT)
    assert not ending.step()


def test_the_second_model_follows_the_text_without_logits(bench: Bench) -> None:
    side = Guided(bench.stock, ARMS["second"].guidance, {"temperature": 0.0}, bench.second)
    side.begin(PROMPT)
    for _ in range(3):
        side.step()
    context = bench.second.context
    assert {context.sequence_max_position(sequence) for sequence in range(CANDIDATES)} == {len(PROMPT) + 3 - 1}
    assert context.sequence_max_position(CANDIDATES) == -1
    assert len(context.logits()) == 0
    assert len(bench.stock.context.logits()) == 1


def test_what_each_arm_computes(bench: Bench) -> None:
    """Tokens that models compute for one token of text: what the cost comes from."""
    expected = dict.fromkeys(ARMS, 1.0) | {"contrast": 2.0, "args": CANDIDATES, "rad": MOST_CANDIDATES}
    expected |= {"second": CANDIDATES + 1, "gated": (CANDIDATES + 1) / 2}
    for name, arm in ARMS.items():
        pairs = bench.measure(arm)
        assert len(pairs) == SETTINGS.steps
        assert np.mean([ours.tokens for ours, _ in pairs]) == expected[name], name
        assert {plain.tokens for _, plain in pairs} == {1}
        assert all(ours.python > 0 for ours, _ in pairs)
        assert all("decode" in side.native for pair in pairs for side in pair)


def test_the_last_text_may_be_as_long_as_was_asked_for() -> None:
    """The context has room for a prompt, all steps and the warm-up."""
    options = replace(SETTINGS, steps=200).load_options
    assert options["n_ctx"] >= SETTINGS.prompt + 200 + WARM_UP
    assert options["n_seq_max"] >= MOST_CANDIDATES


# ---- figures ---------------------------------------------------------------------------------------------------


def test_ratio_is_the_median_of_neighbours() -> None:
    pairs = [(token(2.0), token(1.0)), (token(9.0), token(3.0)), (token(4.0), token(0.1))]
    assert ratio(pairs) == pytest.approx(3.0)


def test_ratio_of_a_gate_weighs_its_kinds_of_steps() -> None:
    guided = [(token(8.0, 10), token(1.0))] * 2
    plain = [(token(1.1), token(1.0))] * 6
    assert ratio([*guided, *plain]) == pytest.approx((2 * 8.0 + 6 * 1.1) / 8)


def test_share_of_python_is_that_of_the_worst_kind() -> None:
    guided, plain = [token(10.0, 10, 9.9)] * 5, [token(1.0, 1, 0.95)] * 2
    assert python_share(guided) == pytest.approx(0.01)
    assert python_share([*guided, *plain]) == pytest.approx(0.05)


def test_figures_of_an_arm() -> None:
    timing = Timing(ARMS["args"], [[(token(4.0, 10, 3.0), token(2.0))], [(token(6.0, 10, 5.0), token(1.5))]])
    figures = timing.to_dict()
    assert figures["ratio_rounds"] == [2.0, 4.0]
    assert figures["ratio"] == 3.0
    assert (figures["pairs"], figures["tokens_computed"]) == (2, 10)
    assert figures["native_ms"] == {"decode": 4000.0}
    assert figures["python_ms"] == 1000.0


def test_saved_compares_extra_times() -> None:
    rows = {"vocabulary": {"ratio": 1.05}, "args": {"ratio": 7.0}, "second": {"ratio": 6.0}}
    times = {"Q4_0": rows, "Q8_0": {"vocabulary": {"ratio": 1.1}}}
    found = saved(times)
    assert found["Q4_0"] == {"vocabulary": pytest.approx(0.99), "args": pytest.approx(-0.2)}
    assert found["Q8_0"] == {"vocabulary": pytest.approx(0.98)}


def test_buffers_of_the_log() -> None:
    lines = [
        "load_tensors:          CPU model buffer size =   210.50 MiB",
        "load_tensors:   CPU_REPACK model buffer size =   544.25 MiB",
        "llama_context:        CPU  output buffer size =     7.75 MiB",
        "llama_kv_cache:        CPU KV buffer size =    81.00 MiB",
        "llama_kv_cache: size =   81.00 MiB (  2304 cells,  32 layers, 16/1 seqs)",
        "sched_reserve:        CPU compute buffer size =    62.25 MiB",
    ]
    expected = {"weights": 754.75, "KV cache": 81.0, "compute": 70.0}
    assert buffers(lines) == {**expected, "counted": 905.75}
    assert buffers(lines[4:5])["counted"] == 0


# ---- document --------------------------------------------------------------------------------------------------


def test_a_section_takes_the_place_of_its_old_self() -> None:
    document = "# Title\n\n## One\n\ntext\n\n## Two\n\nmore\n"
    assert with_section(document, "## One\n\nnew\n") == "# Title\n\n## One\n\nnew\n\n## Two\n\nmore\n"
    assert with_section(document, "## Two\n\nnew\n") == "# Title\n\n## One\n\ntext\n\n## Two\n\nnew\n"
    added = with_section(document, "## Three\n\nnew\n")
    assert added == document + "\n## Three\n\nnew\n"
    assert with_section(added, "## Three\n\nnew\n") == added


def test_everything(work: Path, files: Files, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document, figures = tmp_path / "benchmarks.md", tmp_path / "figures.json"
    document.write_text("# Benchmarks\n\n## GPU\n\nnone\n")
    (tmp_path / "images").mkdir()
    run = ["--work", str(work), "--json", str(figures), "--document", str(document)]
    assert main([*run, *ARGUMENTS]) == 0

    result = json.loads(figures.read_text())
    assert set(result["time"]["Q4_0"]) == set(ARMS)
    assert result["time"]["Q4_0"]["args"]["tokens_computed"] == CANDIDATES
    assert "args" not in result["time"]["Q8_0"]
    assert result["time"]["Q8_0"]["vocabulary"]["pairs"] == SETTINGS.steps * SETTINGS.rounds
    assert [row["texts"] for row in result["batch"]] == [3, 3, 6, 6]
    memory = result["memory"]
    assert memory["second"]["weights"] == pytest.approx(memory["plain"]["weights"], abs=0.02)
    for type in ("Q4_0", "Q8_0"):
        assert 0 < memory[type]["KV cache"] < memory["second"]["KV cache"]
    assert memory["plain"]["resident"] > memory["plain"]["counted"]  # Python and its libraries are in it

    text = document.read_text()
    assert text.startswith("# Benchmarks\n\n## GPU\n\nnone\n\n" + HEADING)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + len(ARMS) + 6 + 2 + 4 + 2 + 5
    assert "second model" in (tmp_path / "images" / "guidance-cost.svg").read_text()

    assert main(["--work", str(work), "--read", str(figures), "--document", str(document)]) == 0
    assert document.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--geometry", "2b"], ("geometry", "'2b'", "tiny, 1b, 8b")),
        (["--steps", "0"], ("steps", 0, 1)),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], names: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--work", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert_names(error, "guidance_cost", *names)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_document_needs_all_parts(
    work: Path, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n")
    run = ["--work", str(work), "--parts", "batch", "--document", str(document)]
    assert main([*run, *ARGUMENTS]) == 2
    streams = capsys.readouterr()
    assert_names(streams.err.splitlines()[-1], "guidance_cost", "time, memory")
    assert set(json.loads(streams.out)) > {"batch", "settings"}
    assert document.read_text() == "# Benchmarks\n"


def test_geometry_of_the_insertion() -> None:
    """That of the report's first section, so that the tables can be compared."""
    made = insertion(synthetic.GEOMETRIES["1b"])
    assert replace(made, heads=config_1b().heads) == config_1b()
