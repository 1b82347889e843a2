"""BestOfN: the same texts and the same choice as its formula; errors; what it leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.guidance.best_of_n import BestOfN
from otter_gguf.guidance.ensemble import Ensemble
from tests.guidance.search_reference import PROMPT, World, best_of_n, complete, never_ending, open_exact, tokens_of
from tests.refusals import refused
from tests.synthetic_models import pair


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as model:
        yield model


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 40}])
def test_same_texts_and_choice_as_the_formula(llm: Otter, options: dict[str, Any]) -> None:
    bias = never_ending(llm)
    out = complete(llm, BestOfN(4), 200, logit_bias=bias, **options)
    world = World(llm, 200, bias=bias, **options)
    expected = best_of_n(world, 4)
    (record,) = out["steps"]
    assert record["kind"] == "text"
    assert record["candidates"] == expected["candidates"]
    np.testing.assert_allclose(record["rewards"], expected["rewards"], atol=1e-4)
    assert record["choice"] == expected["choice"]
    assert tokens_of(out) == expected["candidates"][expected["choice"]]
    assert len(tokens_of(out)) == 200
    assert out["finish_reason"] == "length"
    worst = best_of_n(world.again(), 4, pick=np.argmin)
    assert worst["choice"] != record["choice"]


def test_texts_that_end_by_themselves(llm: Otter) -> None:
    out = complete(llm, BestOfN(6), 200)
    expected = best_of_n(World(llm, 200), 6)
    (record,) = out["steps"]
    assert record["candidates"] == expected["candidates"]
    assert record["choice"] == expected["choice"]
    lengths = [len(text) for text in record["candidates"]]
    assert min(lengths) < 200
    assert out["finish_reason"] == ("length" if lengths[record["choice"]] == 200 else "stop")


def test_first_text_is_that_of_plain_decoding(llm: Otter) -> None:
    plain = complete(llm, None, 60)
    out = complete(llm, BestOfN(5), 60)
    assert out["steps"][0]["candidates"][0] == tokens_of(plain)
    assert out["rewards"]["reward"] == max(out["steps"][0]["rewards"])
    assert out["rewards"]["reward"] > plain["rewards"]["reward"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_best_of_one_is_plain_decoding(llm: Otter, temperature: float) -> None:
    plain = complete(llm, None, 80, temperature=temperature)
    assert tokens_of(complete(llm, BestOfN(1), 80, temperature=temperature)) == tokens_of(plain)


def test_stop_strings_end_each_text(llm: Otter) -> None:
    free = complete(llm, BestOfN(4), 80)
    stop = free["text"][10:12]
    out = complete(llm, BestOfN(4), 80, stop=[stop])
    assert stop not in out["text"]
    assert [len(text) for text in out["steps"][0]["candidates"]] != [len(t) for t in free["steps"][0]["candidates"]]


def test_label_and_ensemble_say_which_reward_counts() -> None:
    with open_exact(pair(labels=("kind", "true"))) as llm:
        first = complete(llm, BestOfN(6, label="reward.kind"), 40)["steps"][0]
        second = complete(llm, BestOfN(6, label="reward.true"), 40)["steps"][0]
        both = complete(llm, BestOfN(6, label=Ensemble({"reward.kind": 1, "reward.true": -2})), 40)["steps"][0]
        assert first["candidates"] == second["candidates"] == both["candidates"]
        np.testing.assert_allclose(both["rewards"], np.subtract(first["rewards"], np.multiply(second["rewards"], 2)))
        assert both["choice"] == int(np.argmax(both["rewards"]))
        assert len({tuple(first["rewards"]), tuple(second["rewards"]), tuple(both["rewards"])}) == 3
        with refused(ConfigError, "label", "reward.kind, reward.true"):
            complete(llm, BestOfN(6), 5)


def test_rewards_of_another_model(llm: Otter) -> None:
    with open_exact(pair(seed=3, base_of=0)) as judge:
        out = complete(llm, BestOfN(4), 50, reward_model=judge)
        record = out["steps"][0]
        prompt = llm.tokenize(PROMPT, special=True)
        expected = [judge.score([*prompt, *text]).rewards[-1, 0] for text in record["candidates"]]
        np.testing.assert_allclose(record["rewards"], expected, atol=1e-4)
        assert tokens_of(out) == record["candidates"][int(np.argmax(expected))]
        assert record["rewards"] != pytest.approx(complete(llm, BestOfN(4), 50)["steps"][0]["rewards"], abs=1e-3)


def test_errors_are_one_clear_line(llm: Otter) -> None:
    for n in (0, -3, 2.5, True):
        with refused(ConfigError, "BestOfN", "n", n, 1):
            BestOfN(n)  # type: ignore[arg-type]
    with refused(ConfigError, "'kindness'", "reward"):
        complete(llm, BestOfN(2, label="kindness"), 5)
    with refused(ConfigError, "BestOfN", "n_seq_max=17", "-np", 16):
        complete(llm, BestOfN(17), 5)
