"""ARGS and PARGS against their formula, and the step loop around a policy."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import otter_gguf
from otter_gguf import ARGS, PARGS, Candidates, ConfigError, Otter, Policy, Signal
from otter_gguf.guidance.base import Capabilities, State, reward_index
from otter_gguf.steps import Float32
from tests.guidance.reference import END, Float64, Int64, Rule, Text, best, guided_tokens, open_exact, softmax, write
from tests.refusals import refused
from tests.synthetic_models import TEXT, load, pair

N = 200


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact(pair(), n_ctx=1024)


def rewards_of(response: Any) -> Any:
    return response["choices"][0]["rewards"]


def args_rule(weight: float, n_candidates: int, forbidden: tuple[int, ...] = (END,)) -> Rule:
    """Top-k of the logits, then logit + weight * reward."""

    def rule(text: Text) -> tuple[Int64, Float64]:
        logits = text.logits
        tokens = best(logits, n_candidates, forbidden)
        return tokens, logits[tokens] + weight * text.reward(tokens)

    return rule


def pargs_rule(text: Text) -> tuple[Int64, Float64]:
    """Log-probabilities over the whole vocabulary in the place of logits."""
    logs = np.log(softmax(text.logits))
    tokens = best(logs, 10)
    return tokens, logs[tokens] + 2.0 * text.reward(tokens)


# ---- the definition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "rule", "temperature"),
    [
        (ARGS(2.0, n_candidates=6), args_rule(2.0, 6), 0.0),
        (ARGS(-3.0, n_candidates=6), args_rule(-3.0, 6), 0.0),
        (ARGS(1.5), args_rule(1.5, 10), 1.0),
        (ARGS(1.5, center=True), args_rule(1.5, 10), 0.7),
        (PARGS(), pargs_rule, 1.0),
    ],
    ids=["greedy", "away", "stochastic", "temperature", "pargs"],
)
def test_tokens_are_those_of_the_definition(llm: Otter, policy: ARGS, rule: Rule, temperature: float) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, N, temperature=temperature, seed=3, guidance=policy)
    assert len(tokens) == N
    assert write(Text(llm, prompt), rule, N, temperature, 3) == tokens


@pytest.mark.parametrize("seed", [3, 4])
def test_texts_end_where_those_of_the_definition_do(llm: Otter, seed: int) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, N, temperature=1, seed=seed, guidance=ARGS(1.5), logit_bias={})
    assert 0 < len(tokens) < N
    assert write(Text(llm, prompt), args_rule(1.5, 10, ()), N, 1, seed) == tokens


@pytest.mark.parametrize("wrong", [args_rule(-2.0, 6), args_rule(2.0, 1), args_rule(0.0, 6)])
def test_other_definitions_give_other_tokens(llm: Otter, wrong: Rule) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 60, temperature=0, guidance=ARGS(2.0, n_candidates=6))
    assert write(Text(llm, prompt), wrong, 60, 0, 0) != tokens


def test_other_draws_give_other_tokens(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 60, temperature=1, seed=3, guidance=ARGS(1.5))
    assert write(Text(llm, prompt), args_rule(1.5, 10), 60, 1, 4) != tokens


def test_every_candidate_has_the_reward_of_its_text_scored_afresh(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    out = llm.create_completion(prompt, max_tokens=5, temperature=0, guidance=ARGS(2.0), step_records=True)
    steps: Any = out["choices"][0]["steps"]
    text = list(prompt)
    for step in steps:
        afresh = [llm.score([*text, token]).reward for token in step["candidates"]]
        np.testing.assert_allclose(np.asarray(step["rewards"])[:, 0], afresh, atol=1e-4)
        text.append(step["token"])
    assert np.ptp(afresh) > 0.01


def test_scores_of_pargs_are_log_probabilities_of_the_text_before_the_step(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    out = llm.create_completion(prompt, max_tokens=5, temperature=0, guidance=PARGS(), step_records=True)
    steps: Any = out["choices"][0]["steps"]
    text = Text(llm, prompt)
    for step in steps:
        logs = np.log(softmax(text.logits))[step["candidates"]]
        np.testing.assert_allclose(step["scores"], logs + 2.0 * np.asarray(step["rewards"])[:, 0], atol=1e-4)
        text.append(step["token"])


# ---- the loop --------------------------------------------------------------------------------------------------


def test_guided_rewards_are_those_of_the_text(llm: Otter) -> None:
    """The siblings' cells leave no trace: scoring the finished text afresh gives the same rewards."""
    prompt = llm.tokenize(TEXT)
    out = rewards_of(llm.create_completion(prompt, max_tokens=100, temperature=0, guidance=ARGS(weight=2.0)))
    score = llm.score([*prompt, *out["tokens"]])
    np.testing.assert_allclose(score.rewards[len(prompt) :], out["token_rewards"], atol=1e-4)


@pytest.mark.parametrize("policy", [ARGS(0), PARGS(0)])
def test_weight_zero_is_plain_decoding_over_500_tokens(llm: Otter, policy: ARGS) -> None:
    for options in ({"temperature": 0}, {"temperature": 0.9, "seed": 4, "repeat_penalty": 1.1}):
        given: dict[str, Any] = {"max_tokens": 500, "logit_bias": {END: -100.0}, **options}
        plain = rewards_of(llm.create_completion(TEXT, **given))
        assert len(plain["tokens"]) == 500
        assert rewards_of(llm.create_completion(TEXT, guidance=policy, **given)) == plain
        given["max_tokens"] = 30
        other = rewards_of(llm.create_completion(TEXT, guidance=ARGS(1.0), **given))
        assert other["tokens"] != plain["tokens"][:30]


def test_weight_changes_the_text_and_raises_the_reward(llm: Otter) -> None:
    plain = rewards_of(llm.create_completion(TEXT, max_tokens=60, temperature=0))
    means = []
    for weight in (-5, 5):
        guided = llm.create_completion(TEXT, max_tokens=60, temperature=0, guidance=ARGS(weight=weight))
        means.append(np.mean(rewards_of(guided)["token_rewards"]))
    assert means[0] < np.mean(plain["token_rewards"]) < means[1]


def test_one_candidate_is_plain_greedy_decoding(llm: Otter) -> None:
    plain = rewards_of(llm.create_completion(TEXT, max_tokens=50, temperature=0))
    guided = rewards_of(llm.create_completion(TEXT, max_tokens=50, temperature=0, guidance=ARGS(5.0, n_candidates=1)))
    assert guided["tokens"] == plain["tokens"]


def test_stochastic_is_repeatable_and_varies_with_the_seed(llm: Otter) -> None:
    texts = [
        llm.create_completion(TEXT, max_tokens=30, temperature=1, seed=seed, guidance=ARGS(1.0))["choices"][0]["text"]
        for seed in (4, 4, 5)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_samplers_work_on_the_scores(llm: Otter) -> None:
    """The best of one is the best score, whatever the temperature."""
    prompt = llm.tokenize(TEXT)
    greedy = guided_tokens(llm, prompt, 40, temperature=0, guidance=ARGS(3.0))
    assert guided_tokens(llm, prompt, 40, temperature=5, top_k=1, guidance=ARGS(3.0)) == greedy
    assert guided_tokens(llm, prompt, 40, temperature=5, guidance=ARGS(3.0)) != greedy


def test_a_logit_bias_counts_before_the_cut(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = guided_tokens(llm, prompt, 10, temperature=0, guidance=ARGS(1.0), logit_bias={77: 100.0})
    assert tokens == [77] * 10
    assert 77 not in guided_tokens(llm, prompt, 30, temperature=1, guidance=ARGS(1.0), logit_bias={77: -100.0})


def test_end_of_text_ends_a_guided_text() -> None:
    @dataclass(frozen=True)
    class End(Policy):
        """Takes the end-of-text token."""

        end: int
        n_candidates: int = 320

        def signal(self) -> Signal:
            return Signal.NONE

        def scores(self, candidates: Candidates) -> Float32:
            scores: Float32 = (candidates.tokens == self.end).astype(np.float32)
            return scores

    with load() as llm:
        out = llm.create_completion(TEXT, max_tokens=30, temperature=0, guidance=End(llm.model.eos_token))
        assert (out["choices"][0]["text"], out["choices"][0]["finish_reason"]) == ("", "stop")
        assert rewards_of(out)["tokens"] == []


def test_guidance_up_to_the_last_cell_of_the_context() -> None:
    with load(n_ctx=64) as llm:
        out = llm.create_completion(TEXT[:20], max_tokens=None, temperature=0, guidance=ARGS(1.0, n_candidates=16))
        assert out["usage"] is not None
        assert (out["choices"][0]["finish_reason"], out["usage"]["total_tokens"]) == ("length", 64)


def test_plain_text_after_guided_text_is_untouched(llm: Otter) -> None:
    before = rewards_of(llm.create_completion(TEXT, max_tokens=20, temperature=0))
    llm.create_completion(TEXT, max_tokens=20, temperature=0, guidance=ARGS(3.0))
    assert rewards_of(llm.create_completion(TEXT, max_tokens=20, temperature=0)) == before
    llm.create_completion(TEXT, max_tokens=20, temperature=0, guidance=ARGS(3.0))
    cached = rewards_of(llm.create_completion(TEXT, max_tokens=20, temperature=0, cache_prompt=True))
    assert cached["tokens"] == before["tokens"]


def test_label_picks_the_reward_that_guides() -> None:
    with load(pair(labels=("kind", "true")), type_k="f32", type_v="f32") as llm:
        means = {}
        for label in ("reward.kind", "reward.true"):
            policy = ARGS(weight=6.0, label=label)
            out = rewards_of(llm.create_completion(TEXT, max_tokens=40, temperature=0, guidance=policy))
            means[label] = np.mean(out["token_rewards"], axis=0)
        assert means["reward.kind"][0] > means["reward.true"][0]
        assert means["reward.true"][1] > means["reward.kind"][1]
        with refused(ConfigError, "label", "reward.kind, reward.true"):
            llm.create_completion(TEXT, guidance=ARGS())
        with refused(ConfigError, "'true'", "reward.kind, reward.true"):
            llm.create_completion(TEXT, guidance=ARGS(label="true"))


# ---- refusals --------------------------------------------------------------------------------------------------


def test_a_model_without_rewards_cannot_be_guided() -> None:
    with Otter(pair().base, n_threads=1, n_ctx=64) as llm, refused(ConfigError, "label", "no reward"):
        llm.create_completion(TEXT, guidance=ARGS())


def test_more_candidates_than_sequences_are_refused(llm: Otter) -> None:
    with refused(ConfigError, "n_seq_max=17", "-np", 16):
        llm.create_completion(TEXT, guidance=ARGS(n_candidates=17))
    with load(n_seq_max=40) as wide:
        out = rewards_of(wide.create_completion(TEXT, max_tokens=5, temperature=0, guidance=ARGS(n_candidates=40)))
        assert len(out["tokens"]) == 5


@pytest.mark.parametrize("make", [ARGS, PARGS])
@pytest.mark.parametrize(
    "options",
    [
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "1"},
        {"n_candidates": 0},
        {"n_candidates": -3},
        {"n_candidates": 2.5},
    ],
)
def test_wrong_policies_are_refused(make: Callable[..., ARGS], options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with refused(ConfigError, make.__name__, name, repr(value)):
        make(**options)


# ---- the formula -----------------------------------------------------------------------------------------------


def candidates(logits: list[float], rewards: list[list[float]], state: State | None = None) -> Candidates:
    values, table = np.asarray(logits, np.float32), np.asarray(rewards, np.float32)
    labels = tuple("abc"[: table.shape[1]])
    return Candidates(np.arange(len(logits), dtype=np.int32), values, labels, table, state=state)


def test_scores_are_logit_plus_weighted_reward() -> None:
    step = candidates([3.0, 2.0, 1.0], [[0.0], [1.0], [3.0]])
    np.testing.assert_array_equal(ARGS(1.5).scores(step), [3.0, 3.5, 5.5])
    np.testing.assert_array_equal(ARGS(-1.0).scores(step), [3.0, 1.0, -2.0])
    np.testing.assert_allclose(ARGS(1.5, center=True).scores(step), [1.0, 1.5, 3.5], atol=1e-6)


def test_scores_are_float32_and_leave_the_rewards_alone() -> None:
    step = candidates([3.0, 2.0], [[1.0], [2.0]])
    assert ARGS(1.5, center=True).scores(step).dtype == np.float32
    np.testing.assert_array_equal(step.rewards, [[1.0], [2.0]])


def test_log_probabilities_are_of_the_whole_vocabulary() -> None:
    logits = np.asarray([3.0, 2.0, 1.0, 2.5], np.float32)
    step = candidates([3.0, 2.0, 1.0], [[0.0], [1.0], [3.0]], State(logits, np.empty(0, np.float32), 0))
    expected = np.log(softmax(logits.astype(np.float64)))[:3] + 2.0 * np.asarray([0, 1, 3])
    np.testing.assert_allclose(PARGS().scores(step), expected, atol=1e-5)


def test_what_is_asked_for() -> None:
    assert ARGS().signal() is Signal.VALUE
    assert (ARGS(0).is_noop, ARGS(0.1).is_noop, PARGS(0).is_noop) == (True, False, True)
    assert ARGS(label="b").reads(("a", "b")) == ("b",)
    assert ARGS().reads(("a",)) == ("a",)
    ARGS(label="b").check(Capabilities(("a", "b")))
    assert (PARGS().weight, PARGS().n_candidates, PARGS().log_probabilities) == (2.0, 10, True)


def test_reward_index() -> None:
    assert reward_index(["only"], None) == 0
    assert reward_index(["a", "b"], "b") == 1
    with refused(ConfigError, "label", "no reward"):
        reward_index([], None)


def test_every_name_can_be_imported() -> None:
    names = otter_gguf.__all__
    assert {"Otter", "ARGS", "PARGS", "FileError", "__version__"} <= set(names)
    for name in names:
        assert getattr(otter_gguf, name) is not None
        assert name in dir(otter_gguf)
    assert len(set(names)) == len(names)
    stub = ast.parse(Path(otter_gguf.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    typed = {name.asname for line in stub.body if isinstance(line, ast.ImportFrom) for name in line.names}
    assert typed == set(names) - {"__version__"}, "what type checkers see is what there is"
    with pytest.raises(AttributeError, match="'Args'"):
        _ = otter_gguf.Args  # type: ignore[attr-defined]
