"""Speed measurements: their arithmetic, and that they run."""

from __future__ import annotations

import pytest

from otter_gguf import ConfigError
from otter_gguf.bench import BenchOptions, Measurement, Rate, bench, bytes_read
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.options import LoadOptions
from tests.refusals import refused
from tests.synthetic_models import pair


def test_bench_measures_both_sides() -> None:
    lines: list[str] = []
    what = BenchOptions(n_prompt=64, n_gen=16, repetitions=3)
    result = bench(*pair(), what=what, options=LoadOptions(n_threads=1), progress=lines.append)
    data = result.to_dict()
    assert data["decode"]["test"] == "tg16"
    assert data["prefill"]["test"] == "pp64"
    assert data["decode"]["pairs"] == 96  # two rounds
    assert data["prefill"]["pairs"] == 6
    assert data["decode"]["ratio"] > 0
    assert 0 < data["python"]["share"] < 1
    assert data["n_rewards"] == 1
    assert data["otter_n_params"] > 0
    assert data["floor"] > 1
    assert len(lines) == 5


@pytest.mark.parametrize(("n_prompt", "n_gen", "present"), [(0, 4, {"decode"}), (8, 0, {"prefill"})])
def test_a_test_can_be_left_out(n_prompt: int, n_gen: int, present: set[str]) -> None:
    what = BenchOptions(n_prompt=n_prompt, n_gen=n_gen, repetitions=1)
    result = bench(*pair(), what=what, options=LoadOptions(n_threads=1))
    assert set(result.tests) == present
    assert (result.python_share is None) == ("decode" not in present)


@pytest.mark.parametrize(
    ("options", "flags"),
    [({"n_prompt": -1}, ["-p"]), ({"repetitions": 0}, ["-r"]), ({"n_prompt": 0, "n_gen": 0}, ["-p 0", "-n 0"])],
)
def test_wrong_options_are_refused(options: dict[str, int], flags: list[str]) -> None:
    with refused(ConfigError, "bench", *flags):
        BenchOptions(**options)


def test_without_an_insertion_there_is_nothing_to_measure() -> None:
    with refused(ConfigError, pair().base, "--otter"):
        bench(pair().base)


def test_rates_and_ratios() -> None:
    rate = Rate((1.0, 0.5), 10)
    assert rate.tokens_per_second == 15.0
    assert rate.deviation == pytest.approx(7.0710678)
    assert Rate((2.0,), 10).deviation == 0
    test = Measurement("tg10", Rate((1.0,), 10), Rate((1.1,), 10), (1.0, 1.2, 1.1))
    assert test.ratio == 1.1


def test_bytes_read_leave_out_the_embedding_unless_it_is_the_output() -> None:
    files = pair()
    with BaseFiles.open(files.base) as base:
        total = sum(tensor.n_bytes for tensor in base.tensors)
        embedding = base.tensor("token_embd.weight")
    assert embedding is not None
    assert bytes_read(str(files.base), inserted=False) == total - embedding.n_bytes
    assert bytes_read(str(files.otter), inserted=True) > 0
    assert bytes_read(str(files.otter), inserted=False) == 0
