"""What the demo computes: standard errors, differences, figures of a side, and the experiment on the shipped model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from otter_gguf import ARGS, ConfigError, Otter
from otter_gguf.demo import DemoFiles, Settings, demo_files, run_experiment
from otter_gguf.demo.experiment import Difference, continue_prompt, rank_pairs, standard_error
from tests.demo.made_up import continuation, experiment, side
from tests.demo_f32 import load_demo_f32
from tests.refusals import refused


@pytest.fixture(scope="module")
def files() -> DemoFiles:
    return demo_files()


@pytest.fixture(scope="module")
def llm(files: DemoFiles) -> Iterator[Otter]:
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1, n_seq_max=10) as model:
        yield model


def test_standard_error_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert standard_error(values.tolist()) == pytest.approx(values.std(ddof=1) / math.sqrt(30))


def test_difference_is_paired() -> None:
    plain = [0.0, 1.0, 2.0, 3.0]
    assert Difference.of([value + 1 for value in plain], plain) == Difference(1.0, 0.0)
    assert Difference.of([value + 1 for value in plain], plain).in_errors == math.inf
    assert Difference.of(plain, plain).in_errors == 0
    assert Difference.of([1.0, 0.0], [0.0, 0.0]) == Difference(0.5, 0.5)
    assert Difference.of([1.0, 0.0], [0.0, 0.0]).in_errors == 1


def test_difference_refuses_unequal_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Difference.of([1.0, 2.0], [1.0])


def test_ms_per_token_counts_tokens_not_texts() -> None:
    two = side(["a b c", "d"], [0.0, 0.0])
    assert two.n_tokens == 4
    assert two.ms_per_token == pytest.approx(5.0)  # 2 * 10 ms over 4 tokens


def test_distinct_sees_repetition() -> None:
    assert side(["a b c d e"], [0.0]).distinct == 1
    assert side(["a b c a b c a b c"], [0.0]).distinct == pytest.approx(3 / 7)


def test_final_reward_is_the_last_and_empty_texts_have_none() -> None:
    both = replace(side(["a b"], [0.0]), continuations=(continuation("a b", 1.0, 3.0), continuation("")))
    assert both.final_rewards == [3.0]


def test_json_has_the_promised_keys() -> None:
    result = json.loads(json.dumps(experiment().to_dict()))
    assert result["prompts"] == 4
    assert result["difference"] == pytest.approx(result["guided"]["judge_mean"] - result["plain"]["judge_mean"])
    for name in ("plain", "guided"):
        assert {"judge_mean", "judge_se", "judge_unseen_mean", "ms_per_token", "reward_mean"} <= result[name].keys()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"n_prompts": 1}, ("--prompts", 1, 2)),
        ({"max_tokens": 0}, ("-n", 0)),
        ({"n_candidates": 0}, ("--candidates", 0)),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        Settings(**wrong)


def test_more_prompts_than_shipped_are_refused(llm: Otter, files: DemoFiles) -> None:
    with refused(ConfigError, "--prompts", 4, 3):
        run_experiment(llm, files.load_prompts()[:3], Settings(n_prompts=4))


def test_same_seed_same_text_and_another_seed_another(llm: Otter, files: DemoFiles) -> None:
    prompt = files.load_prompts()[0]
    for policy in (None, ARGS(weight=2.0)):
        first, again, other = (continue_prompt(llm, prompt, Settings(), policy, seed).text for seed in (1, 1, 2))
        assert first == again != other


def test_pieces_and_rewards_belong_together(files: DemoFiles) -> None:
    """In F32 throughout: else the batch's shape decides how a key, a value or an activation is rounded to F16 or Q8_0,
    and rewards differ by up to 0.026. What is left is 2.6e-6 at most, over 40 prompts, plain and guided."""
    prompt = files.load_prompts()[1]
    with load_demo_f32(n_ctx=256, n_seq_max=10) as exact:
        made = continue_prompt(exact, prompt, Settings(max_tokens=48), ARGS(weight=2.0), 1)
        scored = exact.score(prompt, made.text).response_rewards[:, 0]
    assert len(made.pieces) == len(made.rewards) <= 48
    np.testing.assert_allclose(made.rewards, scored, atol=5e-6)
    assert np.abs(np.diff(made.rewards)).max() > 0.1, "a reward could be its neighbour's"


def test_guidance_raises_the_judges_score(llm: Otter, files: DemoFiles) -> None:
    result = run_experiment(llm, files.load_prompts(), Settings(n_prompts=48, max_tokens=32))
    assert result.difference.in_errors > 4
    assert result.unseen_difference.in_errors > 2
    assert result.guided.distinct > 0.5 * result.plain.distinct


def test_without_weight_the_judge_sees_no_difference(llm: Otter, files: DemoFiles) -> None:
    result = run_experiment(llm, files.load_prompts(), Settings(n_prompts=32, max_tokens=32, weight=0.0))
    assert abs(result.difference.in_errors) < 3


def test_negative_weight_lowers_the_judges_score(llm: Otter, files: DemoFiles) -> None:
    result = run_experiment(llm, files.load_prompts(), Settings(n_prompts=16, max_tokens=32, weight=-2.0))
    assert result.difference.in_errors < -2


def test_reward_ranks_pairs_in_words_it_never_saw(llm: Otter, files: DemoFiles) -> None:
    pairs = files.load_pairs()
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    assert rank_pairs(llm, pairs) > 0.8
    assert rank_pairs(llm, swapped) < 0.2
