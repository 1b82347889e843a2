"""A full context that is shifted, so that the text goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Contrast, Otter, Vocabulary
from tests.completions import choice_of, choices_of, joined, tokens_of, without_end
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

N_CTX = 48
GUIDANCE = {"plain": None, "args": ARGS(4.0, n_candidates=5), "vocabulary": Vocabulary(5.0)}
PROMPT = [*range(70, 82)]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_ctx=N_CTX) as llm:
        yield llm


def last_tokens(llm: Otter) -> list[int]:
    """Of the last text, as its cells hold them."""
    last = llm.session.streams.last
    assert last is not None
    return list(last.tokens)


def options_of(llm: Otter, guidance: str, **more: Any) -> dict[str, Any]:
    """A text that does not end by itself."""
    given = {"temperature": 1, "seed": 3, "guidance": GUIDANCE[guidance], "logit_bias": without_end(llm)}
    return {**given, "context_shift": True, **more}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("n_keep", [0, 1, 12, 46])
def test_a_text_goes_on_past_the_context(llm: Otter, guidance: str, n_keep: int) -> None:
    options = options_of(llm, guidance, n_keep=n_keep)
    out = llm.create_completion(PROMPT, max_tokens=3 * N_CTX, **options)
    choice = choice_of(out)
    assert (choice["finish_reason"], len(choice["rewards"]["tokens"])) == ("length", 3 * N_CTX)
    assert np.isfinite(choice["rewards"]["token_rewards"]).all()
    held = last_tokens(llm)
    assert len(held) <= N_CTX
    assert held[:n_keep] == [*PROMPT, *choice["rewards"]["tokens"]][:n_keep], "these stay"
    assert held[n_keep:] == choice["rewards"]["tokens"][-len(held) + n_keep :], "and the last ones"
    assert llm.context.sequence_max_position(0) == len(held) - 1

    again = choice_of(llm.create_completion(PROMPT, max_tokens=3 * N_CTX, **options))
    assert again == choice


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_up_to_the_first_shift_nothing_differs(llm: Otter, guidance: str) -> None:
    shifted = tokens_of(llm.create_completion(PROMPT, max_tokens=100, **options_of(llm, guidance)))
    ended = choice_of(llm.create_completion(PROMPT, max_tokens=100, **options_of(llm, guidance, context_shift=False)))
    assert ended["finish_reason"] == "length"
    assert len(ended["rewards"]["tokens"]) == N_CTX - len(PROMPT)
    assert shifted[: N_CTX - len(PROMPT)] == ended["rewards"]["tokens"]
    assert len(shifted) == 100


def test_what_is_kept_matters(llm: Otter) -> None:
    texts = [
        tuple(tokens_of(llm.create_completion(PROMPT, max_tokens=100, **options_of(llm, "plain", n_keep=n_keep))))
        for n_keep in (0, 12)
    ]
    n_same = N_CTX - len(PROMPT)
    assert texts[0][:n_same] == texts[1][:n_same]
    assert texts[0] != texts[1]


def test_candidates_behind_a_shift_have_the_rewards_of_the_shifted_text(llm: Otter) -> None:
    """A lane of one sequence and one with siblings are shifted alike: the same token has the same reward."""
    plain = choice_of(llm.create_completion(PROMPT, max_tokens=90, **options_of(llm, "plain", temperature=0)))
    one = ARGS(4.0, n_candidates=1)
    guided = choice_of(
        llm.create_completion(PROMPT, max_tokens=90, **options_of(llm, "plain", temperature=0) | {"guidance": one})
    )
    assert guided["rewards"]["tokens"] == plain["rewards"]["tokens"]
    many = options_of(llm, "plain", temperature=0, step_records=True) | {"guidance": ARGS(1e-9, n_candidates=6)}
    siblings = choice_of(llm.create_completion(PROMPT, max_tokens=90, **many))
    assert siblings["rewards"]["tokens"] == plain["rewards"]["tokens"]
    np.testing.assert_allclose(
        siblings["rewards"]["token_rewards"], plain["rewards"]["token_rewards"], rtol=1e-4, atol=1e-4
    )


def test_a_prompt_of_the_contexts_length_goes_on_too(llm: Otter) -> None:
    assert len(tokens_of(llm.create_completion([70] * N_CTX, max_tokens=60, **options_of(llm, "args")))) == 60


def test_streams_shift_too(llm: Otter) -> None:
    stream = llm.create_completion(PROMPT, max_tokens=60, stream=True, **options_of(llm, "plain"))
    assert len(joined(stream)["tokens"]) == 60


# ---- several texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_text_of_a_batch_is_shifted(llm: Otter, guidance: str) -> None:
    prompts = [PROMPT, PROMPT[3:], [90, 91]]
    options = options_of(llm, guidance, max_tokens=2 * N_CTX, n_keep=2)
    batch = choices_of(llm.create_completion(prompts, **options))
    for prompt, choice in zip(prompts, batch, strict=True):
        single = choice_of(llm.create_completion(prompt, **options))
        assert choice["rewards"]["tokens"] == single["rewards"]["tokens"]
        assert len(choice["rewards"]["tokens"]) == 2 * N_CTX


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_where_the_cache_is_too_small_for_all_the_longest_is_shifted(guidance: str) -> None:
    with open_exact(n_ctx=240) as large:
        assert large.context.n_ctx == 256
        prompts = [[70] * 60, [80] * 100, [90] * 80]
        options = options_of(large, guidance, max_tokens=60, n_keep=3)
        batch = choices_of(large.create_completion(prompts, **options))
        for prompt, choice, n_same in zip(prompts, batch, (20, 1, 1), strict=True):
            assert len(choice["rewards"]["tokens"]) == 60
            assert np.isfinite(choice["rewards"]["token_rewards"]).all()
            single = tokens_of(large.create_completion(prompt, **options))
            assert single[:n_same] == choice["rewards"]["tokens"][:n_same]


# ---- what comes after ------------------------------------------------------------------------------------------


def test_cells_behind_a_shift_are_not_taken_for_a_fresh_text(llm: Otter) -> None:
    """They were computed when more tokens stood in front of them."""
    llm.create_completion(PROMPT, max_tokens=60, **options_of(llm, "plain", n_keep=4))
    held = last_tokens(llm)
    assert llm.save_state().tokens == tuple(held[:4])
    cached = choice_of(llm.create_completion(held, max_tokens=3, temperature=0, cache_prompt=True))
    fresh = choice_of(llm.create_completion(held, max_tokens=3, temperature=0))
    np.testing.assert_allclose(cached["rewards"]["token_rewards"], fresh["rewards"]["token_rewards"], atol=1e-4)


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_keep", [-1, N_CTX - 1, 10**6, 1.5, "4", True])
def test_a_wrong_number_of_kept_tokens_is_refused(llm: Otter, n_keep: Any) -> None:
    with refused(ConfigError, "n_keep", repr(n_keep)):
        llm.create_completion(PROMPT, **options_of(llm, "plain", n_keep=n_keep))


def test_second_readings_and_searches_cannot_be_shifted(llm: Otter) -> None:
    with open_exact(pair(seed=4, base_of=0)) as judge:
        for more in (
            {"guidance": ARGS(), "reward_model": judge},
            {"guidance": Contrast("a")},
            {"guidance": BestOfN(2)},
        ):
            with refused(ConfigError, "context_shift"):
                list(llm.create_completion(TEXT[:20], stream=True, **options_of(llm, "plain") | more))
