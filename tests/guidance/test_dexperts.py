"""DExperts against its formula, with two more toy models of the same vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_gguf import Candidates, ConfigError, DExperts, MismatchError, Otter, Signal
from otter_gguf.guidance.base import Capabilities, State
from tests.guidance.reference import EXACT, Float64, Int64, Rule, Text, best, guided_tokens, open_exact, softmax, write
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

N = 200


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact(pair())


def open_plain(seed: int) -> Otter:
    """A base without an insertion."""
    return Otter(pair(seed=seed).base, n_ctx=512, n_threads=1, **EXACT)


@pytest.fixture(scope="module")
def expert() -> Otter:
    return open_plain(1)


@pytest.fixture(scope="module")
def antiexpert() -> Otter:
    return open_plain(2)


def dexperts_rule(
    plus: Text | None, minus: Text | None, weight: float, top_p: float = 0.9, n_candidates: int = 320
) -> Rule:
    """The base's best tokens until their probabilities reach top_p, then logit + weight * (plus - minus)."""

    def rule(text: Text) -> tuple[Int64, Float64]:
        logits = text.logits
        probabilities = softmax(logits)
        kept: list[int] = []
        for token in best(logits, n_candidates).tolist():
            kept.append(token)
            if probabilities[kept].sum() >= top_p:
                break
        difference = (plus or text).logits - (minus or text).logits
        tokens = np.asarray(kept)
        return tokens, (logits + weight * difference)[tokens]

    return rule


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("given", ["both", "expert", "antiexpert"])
def test_tokens_are_those_of_the_definition(
    llm: Otter, expert: Otter, antiexpert: Otter, given: str, temperature: float
) -> None:
    prompt = llm.tokenize(TEXT)
    plus, minus = expert if given != "antiexpert" else None, antiexpert if given != "expert" else None
    policy = DExperts(plus, minus, weight=1.0)
    tokens = guided_tokens(llm, prompt, N, temperature=temperature, seed=3, guidance=policy)
    assert len(tokens) == N
    texts: dict[Otter | None, Text] = {model: Text(model, prompt) for model in (plus, minus) if model}
    rule = dexperts_rule(texts.get(plus), texts.get(minus), 1.0)
    assert write(Text(llm, prompt), rule, N, temperature, 3, [*texts.values()]) == tokens


@pytest.mark.parametrize(
    ("weight", "top_p", "n_candidates"),
    [(-1.0, 0.9, 320), (1.0, 1.0, 320), (1.0, 0.5, 320), (1.0, 0.9, 20)],
    ids=["sign", "no nucleus", "another nucleus", "fewer candidates"],
)
def test_other_definitions_give_other_tokens(
    llm: Otter, expert: Otter, antiexpert: Otter, weight: float, top_p: float, n_candidates: int
) -> None:
    prompt = llm.tokenize(TEXT)
    options: dict[str, Any] = {"temperature": 1, "seed": 3}
    tokens = guided_tokens(llm, prompt, 60, guidance=DExperts(expert, antiexpert, weight=1.0), **options)
    plus, minus = Text(expert, prompt), Text(antiexpert, prompt)
    rule = dexperts_rule(plus, minus, weight, top_p, n_candidates)
    other = write(Text(llm, prompt), rule, 60, 1, 3, [plus, minus])
    assert other != tokens
    policy = DExperts(expert, antiexpert, weight, top_p, n_candidates)
    assert guided_tokens(llm, prompt, 60, guidance=policy, **options) == other


def test_an_expert_like_its_opposite_leaves_the_nucleus_alone(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    with open_plain(1) as first, open_plain(1) as second:
        policy = DExperts(first, second, weight=5.0, top_p=1e-6)
        plain = guided_tokens(llm, prompt, 40, temperature=0)
        assert guided_tokens(llm, prompt, 40, temperature=2, seed=1, guidance=policy) == plain
        wide = DExperts(first, second, weight=5.0)
        assert guided_tokens(llm, prompt, 40, temperature=2, seed=1, guidance=wide) != plain


def test_weight_zero_is_plain_decoding(llm: Otter, expert: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    plain = llm.create_completion(TEXT, **options)["choices"]
    assert llm.create_completion(TEXT, guidance=DExperts(expert, weight=0), **options)["choices"] == plain
    assert llm.create_completion(TEXT, guidance=DExperts(expert, weight=1), **options)["choices"] != plain


# ---- the formula -----------------------------------------------------------------------------------------------


PROBABILITIES = np.asarray([0.5, 0.25, 0.15, 0.1])


def step(auxiliary: dict[str, list[float]], bias: float = 0.0) -> Candidates:
    """All four tokens, best first; ``bias`` on the first."""
    logits = np.log(PROBABILITIES).astype(np.float32) + 7
    biased = logits + np.asarray([bias, 0, 0, 0], np.float32)
    given = {name: np.asarray(values, np.float32) for name, values in auxiliary.items()}
    state = State(logits, np.empty(0, np.float32), 0)
    return Candidates(np.arange(4, dtype=np.int32), biased, auxiliary=given, state=state)


@pytest.mark.parametrize(
    ("top_p", "n_kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.95, 4), (1.0, 4)]
)
def test_the_token_that_crosses_is_kept(llm: Otter, top_p: float, n_kept: int) -> None:
    scores = DExperts(llm, top_p=top_p - 1e-4).scores(step({"expert": [0, 0, 0, 0]}))
    assert np.isfinite(scores).tolist() == [index < n_kept for index in range(4)]


def test_scores(llm: Otter) -> None:
    given = {"expert": [1.0, 2.0, 0.0, 0.0], "antiexpert": [0.0, 5.0, 0.0, 0.0]}
    base = np.log(PROBABILITIES) + 7
    both = DExperts(llm, llm, weight=2.0, top_p=1.0).scores(step(given))
    np.testing.assert_allclose(both, base + np.asarray([2, -6, 0, 0]), atol=1e-5)
    alone = DExperts(llm, weight=2.0, top_p=1.0).scores(step({"expert": given["expert"]}))
    np.testing.assert_allclose(alone, base + 2 * (np.asarray([1, 2, 0, 0]) - base), atol=1e-5)
    against = DExperts(None, llm, weight=2.0, top_p=1.0).scores(step({"antiexpert": given["antiexpert"]}))
    np.testing.assert_allclose(against, base + 2 * (base - np.asarray([0, 5, 0, 0])), atol=1e-5)


def test_a_logit_bias_counts_once_and_may_fill_the_nucleus(llm: Otter) -> None:
    scores = DExperts(llm, weight=2.0, top_p=1.0).scores(step({"expert": [1, 0, 0, 0]}, bias=0.5))
    base = np.log(0.5) + 7
    np.testing.assert_allclose(scores[0], base + 0.5 + 2 * (1 - base), atol=1e-5)
    scores = DExperts(llm, weight=2.0).scores(step({"expert": [1, 0, 0, 0]}, bias=1000.0))
    assert np.isfinite(scores).tolist() == [True, False, False, False]


# ---- refusals --------------------------------------------------------------------------------------------------


def test_what_is_asked_for(llm: Otter, expert: Otter) -> None:
    policy = DExperts(expert, llm)
    assert (policy.signal(), policy.reads(("reward",)), policy.is_noop) == (Signal.NONE, (), False)
    assert [(f.name, f.model) for f in policy.auxiliary_streams()] == [("expert", expert), ("antiexpert", llm)]
    assert [f.name for f in DExperts(antiexpert=llm).auxiliary_streams()] == ["antiexpert"]
    assert DExperts(expert, weight=0).is_noop


def test_another_vocabulary_is_refused(llm: Otter) -> None:
    with refused(MismatchError, "antiexpert", 320, 321):
        DExperts(None, llm).check(Capabilities((), n_vocab=321))
    DExperts(None, llm).check(Capabilities((), n_vocab=320))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"expert": None}, ("expert", "antiexpert")),
        ({"weight": float("nan")}, ("weight", float("nan"))),
        ({"top_p": 0.0}, ("top_p", 0.0, 1)),
        ({"top_p": 1.5}, ("top_p", 1.5, 0, 1)),
        ({"n_candidates": -1}, ("n_candidates", -1, 1)),
    ],
)
def test_wrong_policies_are_refused(llm: Otter, options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "DExperts", *names):
        DExperts(**{"expert": llm, **options})
