"""ARGS against its definition, and the step loop around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, Candidates, ConfigError, Otter, Policy, Signal
from otter_gguf.guidance.base import Float32, draw, reward_index
from tests.synthetic_models import TEXT, load, pair


@pytest.fixture(scope="module")
def llm() -> Otter:
    return load(type_k="f32", type_v="f32", flash_attn=False, n_ctx=1024)


def rewards_of(response: Any) -> Any:
    return response["choices"][0]["rewards"]


def args_by_definition(llm: Otter, prompt: list[int], n_tokens: int, policy: ARGS) -> list[int]:
    """Slow and obvious: every candidate of every step is scored as a text of its own, from an empty context."""
    text = list(prompt)
    while len(text) < len(prompt) + n_tokens:
        llm.generate(text, temperature=0)
        tokens, logits = llm.context.top_k(0, policy.n_candidates)
        rewards = [llm.score([*text, token]).reward for token in tokens.tolist()]
        text.append(int(tokens[np.argmax(logits + policy.weight * np.asarray(rewards))]))
    return text[len(prompt) :]


@pytest.mark.parametrize("weight", [0.5, 2.0, -3.0])
def test_greedy_is_the_definition(llm: Otter, weight: float) -> None:
    prompt = llm.tokenize(TEXT)
    policy = ARGS(weight=weight, n_candidates=6)
    out = llm.create_completion(prompt, max_tokens=25, temperature=0, guidance=policy)
    assert rewards_of(out)["tokens"] == args_by_definition(llm, prompt, 25, policy)


def test_guided_rewards_are_those_of_the_text(llm: Otter) -> None:
    """The siblings' cells leave no trace: scoring the finished text afresh gives the same rewards."""
    prompt = llm.tokenize(TEXT)
    out = rewards_of(llm.create_completion(prompt, max_tokens=100, temperature=0, guidance=ARGS(weight=2.0)))
    score = llm.score([*prompt, *out["tokens"]])
    np.testing.assert_allclose(score.rewards[len(prompt) :], out["token_rewards"], atol=1e-4)


def test_weight_zero_is_plain_greedy_decoding_over_500_tokens(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 500, "temperature": 0}
    plain = rewards_of(llm.create_completion(TEXT, **options))
    guided = rewards_of(llm.create_completion(TEXT, guidance=ARGS(weight=0), **options))
    assert len(plain["tokens"]) == 500
    assert guided == plain


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


def test_end_of_text_ends_a_guided_text() -> None:
    @dataclass(frozen=True)
    class EndAfter(Policy):
        """Prefers the end-of-text token from a length on."""

        end: int
        n_candidates: int = 320

        def signal(self) -> Signal:
            return Signal.NONE

        def scores(self, candidates: Candidates, labels: Sequence[str]) -> Float32:
            scores: Float32 = (candidates.tokens == self.end).astype(np.float32)
            return scores

    with load() as llm:
        out = llm.create_completion(TEXT, max_tokens=30, temperature=0, guidance=EndAfter(llm.model.eos_token))
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
        with pytest.raises(ConfigError, match=r"no label.*reward.kind, reward.true"):
            llm.create_completion(TEXT, guidance=ARGS())
        with pytest.raises(ConfigError, match="no reward 'true'"):
            llm.create_completion(TEXT, guidance=ARGS(label="true"))


def test_centering_changes_no_choice(llm: Otter) -> None:
    tokens = []
    for center in (False, True):
        policy = ARGS(2.0, center=center)
        tokens.append(rewards_of(llm.create_completion(TEXT, max_tokens=30, temperature=0, guidance=policy))["tokens"])
    assert tokens[0] == tokens[1]


def test_a_model_without_rewards_cannot_be_guided() -> None:
    with Otter(pair().base, n_threads=1, n_ctx=64) as llm, pytest.raises(ConfigError, match="no reward"):
        llm.create_completion(TEXT, guidance=ARGS())


def test_more_candidates_than_sequences_are_refused(llm: Otter) -> None:
    with pytest.raises(ConfigError, match="n_seq_max=17"):
        llm.create_completion(TEXT, guidance=ARGS(n_candidates=17))
    with load(n_seq_max=40) as wide:
        out = rewards_of(wide.create_completion(TEXT, max_tokens=5, temperature=0, guidance=ARGS(n_candidates=40)))
        assert len(out["tokens"]) == 5


@pytest.mark.parametrize("options", [{"top_k": 40}, {"top_p": 0.5}, {"repeat_penalty": 1.1}])
def test_sampling_options_that_would_do_nothing_are_refused(llm: Otter, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        llm.create_completion(TEXT, guidance=ARGS(), **options)


@pytest.mark.parametrize("options", [{"weight": float("nan")}, {"weight": float("inf")}, {"n_candidates": 0}])
def test_wrong_policies_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ARGS"):
        ARGS(**options)


# ---- the formula -----------------------------------------------------------------------------------------------


def candidates(logits: list[float], rewards: list[list[float]]) -> Candidates:
    return Candidates(
        np.arange(len(logits), dtype=np.int32), np.asarray(logits, np.float32), np.asarray(rewards, np.float32)
    )


def test_scores_are_logit_plus_weighted_reward() -> None:
    step = candidates([3.0, 2.0, 1.0], [[0.0], [1.0], [3.0]])
    np.testing.assert_array_equal(ARGS(1.5).scores(step, ["r"]), [3.0, 3.5, 5.5])
    np.testing.assert_array_equal(ARGS(-1.0).scores(step, ["r"]), [3.0, 1.0, -2.0])
    np.testing.assert_allclose(ARGS(1.5, center=True).scores(step, ["r"]), [1.0, 1.5, 3.5], atol=1e-6)


def test_temperature_divides_the_whole_score() -> None:
    scores = np.asarray([3.0, 3.5, 5.5], np.float32)
    rng = np.random.default_rng(0)
    counts = np.bincount([draw(scores, 2.0, rng) for _ in range(20_000)], minlength=3)
    expected = np.exp(scores / 2.0) / np.exp(scores / 2.0).sum()
    np.testing.assert_allclose(counts / 20_000, expected, atol=0.01)


def test_draw_at_temperature_zero_takes_the_first_of_the_best() -> None:
    assert draw(np.asarray([1.0, 2.0, 2.0], np.float32), 0, np.random.default_rng(0)) == 1


def test_draw_survives_huge_scores() -> None:
    scores = np.asarray([1e30, -1e30, 0.0], np.float32)
    assert draw(scores, 0.1, np.random.default_rng(0)) == 0


def test_reward_index() -> None:
    assert reward_index(["only"], None) == 0
    assert reward_index(["a", "b"], "b") == 1
    with pytest.raises(ConfigError, match="no reward"):
        reward_index([], None)
