"""What guidance looked at in each step, and what the units of its numbers are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks import synthetic
from otter_gguf import ARGS, BestOfN, Candidates, Contrast, Gated, Otter, Policy, Vocabulary
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.guidance.search import Search, Workspace
from otter_gguf.steps import Float32
from tests.completions import choice_of, choices_of, tokens_of, without_end
from tests.guidance.reference import Text, open_exact
from tests.synthetic_models import TEXT, Pair, pair

N = 20
SAMPLED: dict[str, Any] = {"max_tokens": N, "temperature": 1, "seed": 7, "step_records": True}

COMMON = {"kind", "step", "guided", "token"}
LOOKED_AT = {"candidates", "logits", "scores", "choice"}


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def judge() -> Iterator[Otter]:
    """Another model of the same vocabulary."""
    with open_exact(pair(seed=4, base_of=0), n_seq_max=64) as judge:
        yield judge


def steps_of(llm: Otter, guidance: Any, **options: Any) -> list[dict[str, Any]]:
    """Read back from JSON."""
    choice = choice_of(llm.create_completion(TEXT, guidance=guidance, **{**SAMPLED, **options}))
    assert [step["token"] for step in choice["steps"]] == choice["rewards"]["tokens"], "one a token"
    assert [step["step"] for step in choice["steps"]] == list(range(len(choice["steps"])))
    records: list[dict[str, Any]] = json.loads(json.dumps(choice["steps"], allow_nan=False))
    assert records == choice["steps"], "plain JSON types"
    return records


# ---- entries ---------------------------------------------------------------------------------------------------


def test_plain_steps(llm: Otter) -> None:
    for step in steps_of(llm, None):
        assert set(step) == COMMON
        assert (step["kind"], step["guided"]) == ("token", False)


@pytest.mark.parametrize(
    ("guidance", "more", "k"),
    [
        (ARGS(2.0), {"labels", "rewards"}, 10),
        (Vocabulary(2.0, n_candidates=7), {"vocabulary"}, 7),
        (Contrast("An otter.\n", n_candidates=5), {"auxiliary"}, 5),
    ],
    ids=["args", "vocabulary", "contrast"],
)
def test_guided_steps(llm: Otter, guidance: Any, more: set[str], k: int) -> None:
    for step in steps_of(llm, guidance):
        assert set(step) >= COMMON | LOOKED_AT | more
        assert step["guided"] is True
        assert step["candidates"][step["choice"]] == step["token"]
        for key in ("candidates", "logits", "scores", "rewards", "vocabulary"):
            assert len(step.get(key, range(k))) == k
        assert step["logits"] == sorted(step["logits"], reverse=True)


def test_steps_behind_a_gate_have_no_rewards(llm: Otter) -> None:
    steps = steps_of(llm, Gated(ARGS(2.0), entropy=5.3), max_tokens=60)
    guided = [step for step in steps if step["guided"]]
    assert 0 < len(guided) < len(steps)
    assert all("rewards" in step for step in guided)
    for step in steps:
        if not step["guided"]:
            assert "rewards" not in step
            assert step["scores"] == step["logits"]


def test_numbers_are_those_of_the_text_before_the_step(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT, special=True)
    text = Text(llm, prompt)
    for step in steps_of(llm, ARGS(2.0)):
        order = np.argsort(-text.logits, kind="stable")[:10]
        assert step["candidates"] == order.tolist()
        np.testing.assert_allclose(step["logits"], text.logits[order], atol=1e-4)
        rewards = text.rewards(order)
        np.testing.assert_allclose(step["rewards"], rewards, atol=1e-4)
        np.testing.assert_allclose(step["scores"], text.logits[order] + 2.0 * rewards[:, 0], atol=1e-3)
        text.append(step["token"])


def test_rewards_of_several_models_stand_under_their_labels(llm: Otter, judge: Otter) -> None:
    steps = steps_of(llm, ARGS(2.0, label="judge:reward"), reward_model={"judge": judge})
    prompt = llm.tokenize(TEXT, special=True)
    text = [*prompt]
    for step in steps[:4]:
        assert step["labels"] == ["reward", "judge:reward"]
        own, theirs = np.asarray(step["rewards"], object).T
        assert set(own) == {None}, "nobody asked for them"
        np.testing.assert_allclose(
            theirs.astype(float), [judge.score([*text, token]).reward for token in step["candidates"]], atol=1e-4
        )
        text.append(step["token"])


@dataclass(frozen=True)
class Removes(Policy):
    """Takes all candidates away but the third, and says so."""

    n_candidates: int = 5

    def scores(self, candidates: Candidates) -> Float32:
        return np.where(np.arange(len(candidates.tokens)) == 2, 0, -np.inf).astype(np.float32)

    def note(self, candidates: Candidates) -> dict[str, Any]:
        return {"removed": 4}


def test_removed_candidates_have_no_score_and_notes_stand_beside(llm: Otter) -> None:
    for step in steps_of(llm, Removes()):
        assert step["scores"] == [None, None, 0.0, None, None]
        assert (step["choice"], step["removed"]) == (2, 4)


def test_records_of_a_search_are_of_texts(llm: Otter) -> None:
    choice = choice_of(llm.create_completion(TEXT, guidance=BestOfN(3), **SAMPLED))
    (record,) = json.loads(json.dumps(choice["steps"], allow_nan=False))
    assert record["kind"] == "text"
    assert record["candidates"][record["choice"]] == choice["rewards"]["tokens"]


class SaysAtTheEnd(Search):
    """Plain text, and a record behind the last token."""

    n_sequences = 1

    async def run(self, work: Workspace) -> None:
        await work.grow([work.root])
        await work.give(work.root)
        work.record("text", tokens=list(work.root.tokens))


@pytest.mark.parametrize("stream", [False, True])
def test_records_behind_the_last_token_stay_with_their_text(llm: Otter, stream: bool) -> None:
    given: dict[str, Any] = {**SAMPLED, "guidance": SaysAtTheEnd(), "stream": stream}
    out = llm.create_completion([TEXT, "The otter", "a"], **given)
    choices = [choice for chunk in out for choice in chunk["choices"]] if stream else choices_of(out)
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        tokens = [token for choice in mine for token in choice["rewards"]["tokens"]]
        assert [record["tokens"] for choice in mine for record in choice["steps"]] == [tokens]


def test_a_batch_keeps_records_apart(llm: Otter) -> None:
    prompts = [TEXT, "The otter", "a"]
    for guidance in (None, ARGS(2.0), BestOfN(2)):
        singles = [choice_of(llm.create_completion(p, guidance=guidance, **SAMPLED)) for p in prompts]
        batch = choices_of(llm.create_completion(prompts, guidance=guidance, **SAMPLED))
        for choice, single in zip(batch, singles, strict=True):
            assert [step["kind"] for step in choice["steps"]] == [step["kind"] for step in single["steps"]]
            assert [step.get("token") for step in choice["steps"]] == [step.get("token") for step in single["steps"]]


def test_chunks_carry_the_records_of_their_tokens(llm: Otter) -> None:
    whole = choice_of(llm.create_completion(TEXT, guidance=ARGS(2.0), **SAMPLED))
    chunks = [choice_of(c) for c in llm.create_completion(TEXT, guidance=ARGS(2.0), stream=True, **SAMPLED)]
    assert [step for chunk in chunks for step in chunk["steps"]] == whole["steps"]
    assert sum(bool(chunk["steps"]) for chunk in chunks) > 3
    assert "steps" not in choice_of(llm.create_completion(TEXT, max_tokens=1))


# ---- weight 0 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [ARGS(0), Vocabulary(0), Gated(ARGS(0), entropy=1.0)])
@pytest.mark.parametrize("temperature", [0, 1.1])
def test_weight_zero_is_plain_decoding(llm: Otter, policy: Policy, temperature: float) -> None:
    options: dict[str, Any] = {"max_tokens": 200, "temperature": temperature, "seed": 3, "logit_bias": without_end(llm)}
    plain = choice_of(llm.create_completion(TEXT, **options))
    assert choice_of(llm.create_completion(TEXT, guidance=policy, **options)) == plain
    assert len(plain["rewards"]["tokens"]) == 200
    assert tokens_of(llm.create_completion(TEXT, guidance=ARGS(1.0), **options)) != plain["rewards"]["tokens"]


def test_a_policy_of_weight_zero_needs_nothing(judge: Otter) -> None:
    """No head, no label, no sequences."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    plain = tokens_of(judge.create_completion(TEXT, **options))
    assert tokens_of(judge.create_completion(TEXT, guidance=Vocabulary(0, head="none"), **options)) == plain
    assert tokens_of(judge.create_completion(TEXT, guidance=ARGS(0, n_candidates=300), **options)) == plain


# ---- units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "bonus"), [(ARGS, "rewards"), (Vocabulary, "vocabulary")])
def test_centring_moves_scores_and_no_choice(llm: Otter, policy: Any, bonus: str) -> None:
    plain, centred = (steps_of(llm, policy(3.0, center=center)) for center in (False, True))
    for step, other in zip(plain, centred, strict=True):
        assert (step["token"], step["candidates"]) == (other["token"], other["candidates"])
        assert step[bonus] == other[bonus], "records hold what was read"
        mean = float(np.mean(step[bonus]))
        np.testing.assert_allclose(np.subtract(step["scores"], other["scores"]), 3.0 * mean, atol=1e-3)
        added = np.subtract(other["scores"], other["logits"])
        assert added.mean() == pytest.approx(0, abs=1e-4)
    assert abs(mean) > 0.01


SCALE, SHIFT = 4.0, -7.0


@pytest.fixture(scope="module")
def calibrated() -> Iterator[Otter]:
    """The model of ``pair()``, whose rewards are four times as large, less seven."""
    files, geometry = pair(), synthetic.GEOMETRIES["tiny"]
    head = HeadConfig(scale=(SCALE,), shift=(SHIFT,))
    config = InsertionConfig.uniform(geometry.base, 32, 1, 64, heads=(head,))
    sidecar = files.base.with_name("calibrated.otter.gguf")
    synthetic.write_sidecar(sidecar, files.base, config, "F32", 0)
    with open_exact(Pair(files.base, sidecar)) as llm:
        yield llm


def test_calibration_is_part_of_every_reward(calibrated: Otter) -> None:
    with open_exact(pair()) as raw:
        np.testing.assert_allclose(
            calibrated.score(TEXT).rewards, SCALE * raw.score(TEXT).rewards + SHIFT, rtol=1e-4, atol=1e-4
        )
        steps, others = steps_of(calibrated, ARGS(1.0)), steps_of(raw, ARGS(SCALE))
    for step, other in zip(steps, others, strict=True):
        assert step["token"] == other["token"], "a weight is in logits per calibrated unit"
        np.testing.assert_allclose(step["rewards"], SCALE * np.asarray(other["rewards"]) + SHIFT, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.asarray(step["scores"]) - SHIFT, other["scores"], rtol=1e-4, atol=1e-3)


def test_an_uncalibrated_weight_chooses_otherwise(calibrated: Otter) -> None:
    with open_exact(pair()) as raw:
        tokens = [tokens_of(llm.create_completion(TEXT, guidance=ARGS(2.0), **SAMPLED)) for llm in (calibrated, raw)]
    assert tokens[0] != tokens[1]
