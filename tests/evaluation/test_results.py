"""From texts to figures."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest

from otter_gguf import ARGS
from otter_gguf.evaluation.memory import Memory
from otter_gguf.evaluation.results import (
    Estimate,
    cost_of,
    decode_seconds,
    per_prompt,
    saved,
    summarize,
    time_ratio,
    weight_of,
)
from otter_gguf.evaluation.runner import PLAIN, SECOND, Arm
from otter_gguf.guidance import spec
from tests.evaluation.made_up import MIB, judged, results

ARMS = [Arm(PLAIN, "base"), Arm("args", "otter")]
MEMORY = {PLAIN: Memory(10, 1, 1, 1), "args": Memory(12, 1, 1, 1)}


def test_estimate_is_mean_and_standard_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    estimate = Estimate.of(np.array([*values, math.nan]))
    assert estimate.mean == pytest.approx(4)
    assert estimate.error == pytest.approx(statistics.stdev(values) / 2)
    single = Estimate.of(np.array([3.0]))
    assert single.mean == 3
    assert math.isnan(single.error)
    assert Estimate.of(np.array([math.nan])).to_dict() == {"mean": None, "se": None}


def test_seeds_are_averaged_before_prompts() -> None:
    # Two prompts with two seeds: prompt means 1 and 5. The four texts alone would give a smaller standard error.
    texts = [judged(prompt=p, round=r, judge=j) for p, r, j in [(0, 0, 0.0), (0, 1, 2.0), (1, 0, 4.0), (1, 1, 6.0)]]
    column = per_prompt(texts, 2)["judge"]
    assert column.tolist() == [1.0, 5.0]
    assert Estimate.of(column).error == pytest.approx(statistics.stdev([1.0, 5.0]) / math.sqrt(2))


def test_differences_are_paired() -> None:
    # Prompts differ much, arms by exactly 1: the difference has no error, unpaired it would.
    texts = [judged(PLAIN, p, judge=10.0 * p) for p in range(3)] + [
        judged("args", p, judge=10.0 * p + 1) for p in range(3)
    ]
    plain, guided = summarize(ARMS, texts, 3, MEMORY)
    assert guided.differences["judge"].mean == pytest.approx(1)
    assert guided.differences["judge"].error == pytest.approx(0, abs=1e-12)
    assert guided.metrics["judge"].error > 5
    assert plain.differences["judge"].mean == 0


def test_distinct_n_is_taken_over_a_prompts_seeds() -> None:
    same = [judged(round=r, text="a b") for r in range(2)]
    other = [judged(round=r, text=text) for r, text in enumerate(["a b", "c d"])]
    assert per_prompt(same, 1)["distinct_1"].tolist() == [0.5]
    assert per_prompt(other, 1)["distinct_1"].tolist() == [1.0]


def test_unknown_figures_are_left_out() -> None:
    texts = [judged(name, p, judge=math.nan, reward=None) for name in (PLAIN, "args") for p in range(2)]
    for arm in summarize(ARMS, texts, 2, MEMORY):
        assert "judge" not in arm.metrics
        assert "reward" not in arm.metrics
        assert "diversity" in arm.metrics
        assert arm.token_rewards == ()


def test_time_ratio_is_a_median_of_neighbours() -> None:
    plain = [judged(PLAIN, p, seconds=1.0) for p in range(3)]
    guided = [judged("args", p, seconds=s, tokens=t) for p, (s, t) in enumerate([(2.0, 10), (40.0, 10), (1.0, 5)])]
    assert time_ratio(guided, plain) == pytest.approx(2)  # ratios 2, 40, 2: one busy moment changes nothing
    empty = [judged("args", p, tokens=0) for p in range(3)]
    assert math.isnan(time_ratio(empty, plain))


def test_reading_the_prompt_is_taken_off() -> None:
    texts = [
        judged(round=r, seconds=s, prompt_seconds=p) for r, (s, p) in enumerate([(1.5, 0.5), (1.5, 0.5), (1.6, 9.0)])
    ]
    assert decode_seconds(texts) == pytest.approx({(0, 0): 1.0, (0, 1): 1.0, (0, 2): 1.1})  # 9 was a busy moment
    assert cost_of(texts, texts, 0).ms_per_token == pytest.approx(1000 * 3.1 / 30)


def test_cost() -> None:
    plain = [judged(PLAIN, p) for p in range(2)]
    counts = {"steps": 10, "guided_steps": 4, "changed_steps": 1}
    guided = [judged("args", p, seconds=2.0, passes=30, fed=100, **counts) for p in range(2)]
    cost = cost_of(guided, plain, 7)
    assert (cost.tokens, cost.extra_memory) == (20, 7)
    assert cost.ms_per_token == pytest.approx(200)
    assert cost.tokens_per_second == pytest.approx(5)
    assert (cost.passes_per_token, cost.fed_per_token) == (3, 10)
    assert (cost.guided_share, cost.changed_share) == (0.4, 0.25)
    unrecorded = cost_of(plain, plain, 0)
    assert (unrecorded.guided_share, unrecorded.time_ratio) == (None, 1)


def test_savings_are_shares_of_the_baselines_extra_cost() -> None:
    plain = [judged(PLAIN, 0)]
    cheap = cost_of([judged("args", 0, seconds=1.5)], plain, 10 * MIB)
    dear = cost_of([judged("second", 0, seconds=3.0)], plain, 100 * MIB)
    assert saved(cheap, dear).extra_time_saved == pytest.approx(0.75)
    assert saved(cheap, dear).extra_memory_saved == pytest.approx(0.9)
    assert saved(dear, dear).extra_time_saved == pytest.approx(0)
    assert saved(cheap, None) == cheap
    assert saved(dear, cost_of(plain, plain, 0)).extra_memory_saved is None


def test_second_model_is_the_baseline_of_all() -> None:
    arms = {arm.name: arm for arm in results().arms}
    assert arms["args (second model)"].cost.extra_time_saved == pytest.approx(0)
    assert arms["args:weight=1"].cost.extra_time_saved == pytest.approx(2 / 3)  # 1 second more against 3
    assert arms["args:weight=1"].cost.extra_memory_saved == pytest.approx(2 / 3)
    assert arms[PLAIN].cost.extra_time_saved is None
    assert all(arm.cost.extra_time_saved is None for arm in results(second=False).arms)


@pytest.mark.parametrize(
    ("name", "weight", "family"),
    [
        ("plain", None, "plain"),
        ("args", 1.0, "args"),
        ("args:weight=1.5", 1.5, "args"),
        ("args:weight=-2,n_candidates=20", -2.0, "args:n_candidates=20"),
        ("args:n_candidates=20,weight=1e-3", 1e-3, "args:n_candidates=20"),
        ("gated:entropy=1.0+args:weight=3", 3.0, "gated:entropy=1.0+args"),
        ("rad:beta=20", 20.0, "rad"),
        ("args:weight=3" + SECOND, 3.0, "args" + SECOND),
        ("cards:target=1,beta=0.5", None, "cards:target=1,beta=0.5"),
        ("best_of_n:n=3", None, "best_of_n:n=3"),
    ],
)
def test_weight_of_an_arm(name: str, weight: float | None, family: str) -> None:
    arm = Arm(name, "otter", spec.parse(name.removesuffix(SECOND)))
    assert weight_of(arm) == (weight, family)


def test_weight_of_a_policy_under_a_name_of_its_own() -> None:
    assert weight_of(Arm("mine", "otter", ARGS(weight=2.0))) == (2.0, "args")


def test_json_is_strict() -> None:
    data = results().to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["arms"][0]["name"] == PLAIN
    assert data["arms"][1]["weight"] == 1.0
    assert data["memory"][PLAIN]["total"] == 103 * MIB
    assert data["arms"][1]["cost"]["extra_memory"] == 10 * MIB
