"""Contrast of prompts against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_gguf import Candidates, ConfigError, ContextFullError, Contrast, Otter, Signal
from otter_gguf.guidance.base import Capabilities, State
from tests.guidance.reference import END, Float64, Int64, Rule, Text, best, guided_tokens, open_exact, write
from tests.refusals import refused
from tests.synthetic_models import TEXT, load, pair

N, K = 200, 30
OTHER = "Quite another text, and a longer one: 4 5 6."


@pytest.fixture(scope="module")
def llm() -> Otter:
    return open_exact(pair())


def contrast_rule(other: Text, weight: float, n_candidates: int = K) -> Rule:
    """Top-k of the logits, then logit + weight * (logit - other logit)."""

    def rule(text: Text) -> tuple[Int64, Float64]:
        tokens = best(text.logits, n_candidates)
        logits = text.logits[tokens]
        return tokens, logits + weight * (logits - other.logits[tokens])

    return rule


def written(llm: Otter, other_prompt: list[int], weight: float, temperature: float, n: int = N) -> list[int]:
    prompt, other = llm.tokenize(TEXT), Text(llm, other_prompt)
    return write(Text(llm, prompt), contrast_rule(other, weight), n, temperature, 3, [other])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_tokens_are_those_of_the_definition(llm: Otter, weight: float, temperature: float) -> None:
    policy = Contrast(OTHER, weight=weight, n_candidates=K)
    tokens = guided_tokens(llm, llm.tokenize(TEXT), N, temperature=temperature, seed=3, guidance=policy)
    assert len(tokens) == N
    assert written(llm, llm.tokenize(OTHER), weight, temperature) == tokens


def test_a_prefix_stands_behind_the_begin_of_text(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    policy = Contrast(prefix=OTHER, n_candidates=K)
    tokens = guided_tokens(llm, prompt, 60, temperature=1, seed=3, guidance=policy)
    begin, *rest = prompt
    assert begin == llm.model.bos_token
    other = [begin, *llm.tokenize(OTHER, add_bos=False), *rest]
    assert written(llm, other, 0.5, 1, 60) == tokens
    assert written(llm, [*llm.tokenize(OTHER), *prompt], 0.5, 1, 60) != tokens


def test_other_definitions_give_other_tokens(llm: Otter) -> None:
    tokens = guided_tokens(llm, llm.tokenize(TEXT), 60, temperature=0, guidance=Contrast(OTHER, n_candidates=K))
    assert written(llm, llm.tokenize(OTHER), 0.5, 0, 60) == tokens
    assert written(llm, llm.tokenize(OTHER), -0.5, 0, 60) != tokens
    assert written(llm, llm.tokenize(OTHER)[:-1], 0.5, 0, 60) != tokens


def test_tokens_do_as_text_does(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    options: dict[str, Any] = {"temperature": 0, "guidance": Contrast(OTHER)}
    tokens = guided_tokens(llm, prompt, 40, **options)
    given = np.asarray(llm.tokenize(OTHER), np.int32)
    assert guided_tokens(llm, prompt, 40, temperature=0, guidance=Contrast(given.tolist())) == tokens
    assert guided_tokens(llm, prompt, 40, temperature=0, guidance=Contrast(given)) == tokens  # type: ignore[arg-type]


def test_the_texts_own_prompt_changes_nothing(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    plain = guided_tokens(llm, prompt, 60, temperature=0)
    assert guided_tokens(llm, prompt, 60, temperature=0, guidance=Contrast(prompt, weight=2.0)) == plain
    assert guided_tokens(llm, prompt, 60, temperature=0, guidance=Contrast(prompt[:-1], weight=2.0)) != plain


def test_the_empty_prompt_is_classifier_free_guidance(llm: Otter) -> None:
    """uncond + 3 * (cond - uncond), over the whole vocabulary."""
    prompt, other = llm.tokenize(TEXT), Text(llm, llm.tokenize(""))

    def rule(text: Text) -> tuple[Int64, Float64]:
        tokens = np.arange(END)
        return tokens, (other.logits + 3.0 * (text.logits - other.logits))[tokens]

    expected = write(Text(llm, prompt), rule, 60, 0, 0, [other])
    policy = Contrast("", weight=2.0, n_candidates=320)
    assert guided_tokens(llm, prompt, 60, temperature=0, guidance=policy) == expected


def test_weight_zero_is_plain_decoding(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    plain = llm.create_completion(TEXT, **options)["choices"]
    assert llm.create_completion(TEXT, guidance=Contrast(OTHER, weight=0), **options)["choices"] == plain
    assert llm.create_completion(TEXT, guidance=Contrast(OTHER, weight=1), **options)["choices"] != plain


def test_a_model_without_rewards_will_do() -> None:
    with Otter(pair().base, n_ctx=256, n_threads=1) as plain:
        out = plain.create_completion(TEXT, max_tokens=10, temperature=0, guidance=Contrast(OTHER))
        assert out["usage"] is not None
        assert out["usage"]["completion_tokens"] == 10


def test_both_texts_grow_until_the_context_is_full() -> None:
    with load(n_ctx=128) as small:
        prompt = small.tokenize(TEXT)[:20]
        out = small.create_completion(prompt, max_tokens=None, temperature=0, guidance=Contrast("Other."))
        assert out["choices"][0]["finish_reason"] == "length"
        assert out["usage"] is not None
        assert out["usage"]["completion_tokens"] > 30
        with pytest.raises(ContextFullError):
            small.create_completion(prompt, max_tokens=5, guidance=Contrast(TEXT * 3))


# ---- the parts -------------------------------------------------------------------------------------------------


def bytes_after_begin(text: str) -> list[int]:
    """A tokenizer that puts 300 in front."""
    return [300, *text.encode()]


def other_prompt(policy: Contrast, tokens: list[int]) -> list[int]:
    bound = policy.with_tokens(bytes_after_begin)
    (auxiliary,) = bound.auxiliary_streams()
    assert auxiliary.model is None
    assert auxiliary.prompt is not None
    return auxiliary.prompt(tokens)


def test_other_prompts() -> None:
    assert other_prompt(Contrast("ab"), [300, 1, 2]) == [300, 97, 98]
    assert other_prompt(Contrast([7, 8]), [300, 1, 2]) == [7, 8]
    assert other_prompt(Contrast(prefix="ab"), [300, 1, 2]) == [300, 97, 98, 1, 2]
    assert other_prompt(Contrast(prefix="ab"), [1, 2]) == [97, 98, 1, 2]
    assert other_prompt(Contrast(prefix=[7]), [300, 1, 2]) == [300, 7, 1, 2]
    assert other_prompt(Contrast(""), [300, 1, 2]) == [300]


def test_binding_leaves_the_policy_as_it_was() -> None:
    policy = Contrast(prefix="ab", weight=0.3, n_candidates=5)
    bound = policy.with_tokens(bytes_after_begin)
    assert policy.prefix == "ab"
    assert isinstance(bound, Contrast)
    assert (bound.prefix, bound.weight, bound.n_candidates) == ((97, 98), 0.3, 5)
    assert bound.with_tokens(bytes_after_begin) == bound


def test_scores_weigh_the_models_own_logits() -> None:
    """A logit bias of 4 on the second counts once, not 1 + weight times."""
    state = State(np.asarray([9.0, 3.0, 2.0, 1.0], np.float32), np.empty(0, np.float32), 0)
    step = Candidates(
        np.asarray([1, 2], np.int32),
        np.asarray([7.0, 2.0], np.float32),
        auxiliary={"other": np.asarray([1.0, 4.0], np.float32)},
        state=state,
    )
    np.testing.assert_array_equal(Contrast([1], weight=0.5).scores(step), [8.0, 1.0])


def test_what_is_asked_for() -> None:
    policy = Contrast([1])
    assert (policy.signal(), policy.reads(("reward",)), policy.is_noop) == (Signal.NONE, (), False)
    assert Contrast([1], weight=0).is_noop
    policy.check(Capabilities((), n_vocab=2))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("prompt", "prefix")),
        ({"prompt": "a", "prefix": "b"}, ("prompt", "prefix")),
        ({"prompt": "a", "weight": float("nan")}, ("weight", float("nan"))),
        ({"prompt": "a", "n_candidates": -1}, ("n_candidates", -1, 1)),
        ({"prompt": [1.5]}, ("prompt", [1.5])),
        ({"prefix": b"a"}, ("prefix", b"a")),
        ({"prompt": 7}, ("prompt", 7)),
    ],
)
def test_wrong_policies_are_refused(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, "Contrast", *names):
        Contrast(**options)


def test_wrong_tokens_are_refused(llm: Otter) -> None:
    for policy, token in ((Contrast([320]), 320), (Contrast([-1]), -1), (Contrast(prefix=[5, 400]), 400)):
        with refused(ConfigError, "Contrast", f"token {token}", 320):
            llm.create_completion(TEXT, guidance=policy)
    for policy in (Contrast([]), Contrast(prefix=""), Contrast(prefix=[])):
        with refused(ConfigError, "Contrast", "prompt", "prefix", "token"):
            llm.create_completion(TEXT, guidance=policy)
    with refused(ConfigError, "Contrast", "with_tokens(tokenize)"):
        Contrast("a").check(Capabilities((), n_vocab=320))
