"""A caller's own hands in the choice: logits processors, stopping criteria, logit bias; with and without guidance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Otter, Policy, Signal, Vocabulary
from otter_gguf.engine import LogitsProcessor
from otter_gguf.steps import Float32, Int32
from tests.completions import chat_pair, choice_of, choices_of, joined, tokens_of, without_end
from tests.guidance.reference import Text, open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT

GUIDANCE = {"plain": None, "args": ARGS(4.0), "vocabulary": Vocabulary(5.0), "search": BestOfN(3)}

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_seq_max=64) as llm:
        yield llm


@pytest.fixture(params=GUIDANCE)
def guidance(request: pytest.FixtureRequest) -> Any:
    """Every way in which tokens are chosen."""
    return GUIDANCE[request.param]


def only(*tokens: int) -> Any:
    """A processor that leaves these tokens alone."""

    def processor(ids: Int32, logits: Float32) -> Float32:
        kept = np.full_like(logits, -np.inf)
        kept[list(tokens)] = logits[list(tokens)]
        return kept

    return processor


# ---- logits processors -----------------------------------------------------------------------------------------


def test_a_processor_decides_which_tokens_there_are(llm: Otter, guidance: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1, "seed": 1, "guidance": guidance}
    assert not set(tokens_of(llm.create_completion(TEXT, **options))) <= {65, 66, 67}
    tokens = tokens_of(llm.create_completion(TEXT, logits_processor=only(65, 66, 67), **options))
    assert len(tokens) == 30
    assert set(tokens) == {65, 66, 67}


def test_a_processor_that_changes_nothing_changes_nothing(llm: Otter, guidance: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1, "seed": 1, "guidance": guidance}
    out = choice_of(llm.create_completion(TEXT, logits_processor=[lambda ids, logits: logits], **options))
    assert out == choice_of(llm.create_completion(TEXT, **options))


def test_it_sees_the_tokens_so_far_and_the_bases_logits(llm: Otter) -> None:
    seen: list[tuple[Int32, Float32]] = []

    def look(ids: Int32, logits: Float32) -> Float32:
        seen.append((ids, logits.copy()))
        logits[:] = 0  # its own copy: nothing but what is returned counts
        return seen[-1][1]

    prompt = llm.tokenize(TEXT)
    tokens = tokens_of(llm.create_completion(prompt, max_tokens=6, temperature=0, logits_processor=look))
    assert tokens == tokens_of(llm.create_completion(prompt, max_tokens=6, temperature=0))
    text = Text(llm, prompt)
    assert len(seen) == 6
    for index, (ids, logits) in enumerate(seen):
        assert ids.dtype == np.int32
        assert ids.tolist() == [*prompt, *tokens[:index]]
        np.testing.assert_allclose(logits, text.logits, atol=1e-4)
        text.append(tokens[index])


def test_processors_work_one_after_another_and_before_bias_and_penalties(llm: Otter) -> None:
    def first(ids: Int32, logits: Float32) -> Float32:
        return np.zeros_like(logits)

    def second(ids: Int32, logits: Float32) -> Float32:
        assert not logits.any()
        logits[[70, 80]] = 2.0, 1.0
        return logits

    def tokens(**options: Any) -> list[int]:
        out = llm.create_completion("a", max_tokens=3, temperature=0, logits_processor=[first, second], **options)
        return tokens_of(out)

    assert tokens() == [70, 70, 70]
    assert tokens(logit_bias={80: 1.5}) == [80, 80, 80]
    assert tokens(presence_penalty=1.5) == [70, 80, 70]


def test_float64_and_lists_are_taken(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    plain = tokens_of(llm.create_completion(TEXT, **options))
    kinds: tuple[LogitsProcessor, ...] = (
        lambda _, logits: logits.astype(np.float64),
        lambda _, logits: logits.tolist(),
    )
    for kind in kinds:
        out = llm.create_completion(TEXT, logits_processor=kind, **options)
        assert tokens_of(out) == plain


def test_every_text_of_a_batch_has_its_own_tokens(llm: Otter) -> None:
    def repeat(ids: Int32, logits: Float32) -> Float32:
        return np.asarray(only(int(ids[0]))(ids, logits))

    out = choices_of(llm.create_completion([[70], [71], [72]], max_tokens=3, logits_processor=repeat))
    assert [choice["rewards"]["tokens"] for choice in out] == [[70] * 3, [71] * 3, [72] * 3]


def test_chat_takes_them_too(llm: Otter) -> None:
    messages = [{"role": "user", "content": "a"}]
    out = llm.create_chat_completion(messages, max_tokens=5, logits_processor=only(70), stopping_criteria=ends_at(3))
    assert (tokens_of(out), choice_of(out)["finish_reason"]) == ([70] * 3, "stop")


def ends_at(count: int) -> Any:
    """A criterion that lets a text have so many tokens 70."""
    return lambda ids, logits: int((ids == 70).sum()) >= count


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (np.zeros(3, np.float32), ("shape", (3,), (320,))),
        (np.zeros((1, 320), np.float32), ("shape", (1, 320), (320,))),
        (None, ("shape", (), (320,))),
        ("text", ("str", 320)),
        (np.full(320, np.nan), ("NaN",)),
        (np.full(320, np.inf), ("infinity",)),
    ],
)
def test_what_is_no_row_of_logits_is_refused(llm: Otter, guidance: Any, result: Any, names: tuple[object, ...]) -> None:
    with refused(ConfigError, "logits processor", *names):
        llm.create_completion(TEXT, logits_processor=lambda ids, logits: result, guidance=guidance)
    assert tokens_of(llm.create_completion(TEXT, max_tokens=2, guidance=guidance))


def test_forbidding_everything_is_refused(llm: Otter, guidance: Any) -> None:
    with refused(ConfigError, "token", "logit"):
        llm.create_completion(TEXT, logits_processor=lambda ids, logits: logits - np.inf, guidance=guidance)


# ---- stopping criteria -----------------------------------------------------------------------------------------


def test_a_criterion_ends_the_text_behind_its_token(llm: Otter, guidance: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1, "seed": 1, "guidance": guidance}
    options |= {"logit_bias": without_end(llm)}
    n_prompt = len(llm.tokenize(TEXT, special=True))
    free = choice_of(llm.create_completion(TEXT, **options))

    out = choice_of(llm.create_completion(TEXT, stopping_criteria=lambda ids, _: len(ids) >= n_prompt + 7, **options))
    assert free["finish_reason"] == "length"
    assert out["finish_reason"] == "stop"
    assert len(out["rewards"]["tokens"]) == 7
    if not isinstance(guidance, BestOfN):  # a search chooses among other texts then
        assert out["rewards"]["tokens"] == free["rewards"]["tokens"][:7]


def test_any_of_several_criteria_ends_the_text(llm: Otter) -> None:
    never, always = (lambda ids, logits: False), (lambda ids, logits: np.bool_(True))
    assert len(tokens_of(llm.create_completion(TEXT, max_tokens=9, stopping_criteria=[never, always]))) == 1
    assert len(tokens_of(llm.create_completion(TEXT, max_tokens=9, stopping_criteria=[never, never]))) > 1


def test_a_criterion_sees_the_logits_of_the_next_token(llm: Otter) -> None:
    seen: list[tuple[Int32, Float32]] = []

    def look(ids: Int32, logits: Float32) -> bool:
        seen.append((ids, logits.copy()))
        return len(seen) == 3

    prompt = llm.tokenize(TEXT)
    llm.create_completion(prompt, max_tokens=6, temperature=0, stopping_criteria=look)
    for ids, logits in seen:
        np.testing.assert_allclose(logits, Text(llm, ids.tolist()).logits, atol=1e-4)
    assert [len(ids) for ids, _ in seen] == [len(prompt) + 1, len(prompt) + 2, len(prompt) + 3]


def test_a_criterion_ends_one_text_of_a_batch(llm: Otter) -> None:
    prompts = [[70, 71], [72, 73]]
    options: dict[str, Any] = {"max_tokens": 9, "logit_bias": without_end(llm)}
    chunks = llm.create_completion(prompts, stopping_criteria=lambda ids, _: ids[0] == 72, stream=True, **options)
    parts = list(chunks)
    counts = [len(joined(parts, index)["tokens"]) for index in (0, 1)]
    assert counts == [9, 1]
    assert [joined(parts, index)["finish_reasons"][-1] for index in (0, 1)] == ["length", "stop"]


# ---- what goes wrong in them -----------------------------------------------------------------------------------


class OwnError(Exception):
    """A caller's own."""


@pytest.mark.parametrize("hook", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("stream", [False, True])
def test_exceptions_pass_through_and_the_object_stays_usable(
    llm: Otter, guidance: Any, hook: str, stream: bool
) -> None:
    calls = 0

    def fail(ids: Int32, logits: Float32) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OwnError("fourth")
        return logits if hook == "logits_processor" else False

    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1, "seed": 6, "guidance": guidance}
    fresh = choice_of(llm.create_completion(TEXT, **options))
    with pytest.raises(OwnError, match="fourth"):
        list(llm.create_completion([TEXT, "a"], stream=stream, **(options | {hook: fail})))
    assert choice_of(llm.create_completion(TEXT, **options)) == fresh
    again = choice_of(llm.create_completion(TEXT, cache_prompt=True, **options))
    assert again["rewards"]["tokens"] == fresh["rewards"]["tokens"]


@pytest.mark.parametrize("hook", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("given", [3, "text", [None], [float, 3], {1: 2}])
def test_what_cannot_be_called_is_refused(llm: Otter, hook: str, given: Any) -> None:
    with refused(ConfigError, hook, repr(given)):
        llm.create_completion(TEXT, **{hook: given})


# ---- logit bias ------------------------------------------------------------------------------------------------


def test_a_hundred_forces_a_token(llm: Otter, guidance: Any) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 1, "seed": 1, "guidance": guidance}
    assert tokens_of(llm.create_completion(TEXT, logit_bias={90: 100}, **options)) == [90] * 10
    assert tokens_of(llm.create_completion(TEXT, logit_bias={90: 0.0}, **options)) != [90] * 10


def test_minus_infinity_forbids_a_token(llm: Otter, guidance: Any) -> None:
    """Whatever its reward: the most likely tokens of a text are forbidden in the next one."""
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "guidance": guidance}
    free = tokens_of(llm.create_completion(TEXT, **options))
    forbidden = {token: float("-inf") for token in free[:5]}
    tokens = tokens_of(llm.create_completion(TEXT, logit_bias=forbidden, **options))
    assert tokens
    assert not set(tokens) & set(forbidden)


class Prefers(Policy):
    """For this policy one token alone is good."""

    n_candidates = 320

    def __init__(self, token: int) -> None:
        self.token = token

    def signal(self) -> Signal:
        return Signal.NONE

    def scores(self, candidates: Any) -> Float32:
        return np.where(candidates.tokens == self.token, 1000, candidates.logits).astype(np.float32)


def test_a_forbidden_token_is_no_candidate(llm: Otter) -> None:
    """So no policy can take it, however it scores; and a token that is allowed is taken."""
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1, "guidance": Prefers(70)}
    assert tokens_of(llm.create_completion(TEXT, **options)) == [70] * 8
    out = llm.create_completion(TEXT, logit_bias={70: float("-inf")}, step_records=True, **options)
    steps = choice_of(out)["steps"]
    assert all(70 not in step["candidates"] and len(step["candidates"]) == 319 for step in steps)


def test_candidates_of_args_never_hold_a_forbidden_token(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1, "seed": 2, "step_records": True}
    steps = choice_of(llm.create_completion(TEXT, guidance=ARGS(9.0), **options))["steps"]
    forbidden = {token: float("-inf") for token in steps[0]["candidates"]}
    steps = choice_of(llm.create_completion(TEXT, guidance=ARGS(9.0), logit_bias=forbidden, **options))["steps"]
    assert all(len(step["candidates"]) == 10 and not set(step["candidates"]) & set(forbidden) for step in steps)


def test_keys_may_be_text_as_in_json(llm: Otter) -> None:
    out = llm.create_completion(TEXT, logit_bias={"90": 100}, max_tokens=4)
    assert tokens_of(out) == [90] * 4
