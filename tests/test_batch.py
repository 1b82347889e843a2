"""Several prompts in one call: each text is the one of a call of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Contrast, Gated, Otter, Vocabulary
from otter_gguf.context.streams import Stream
from otter_gguf.engine import Request
from otter_gguf.guidance.base import State
from tests.completions import choice_of, choices_of, joined, without_end
from tests.demo_f32 import load_demo_f32
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair

PROMPTS = [TEXT, TEXT[:30], "The otter", "The otter eats", "1 2 3 4", "水獺 🦦", "a", TEXT[10:]]

CELLS = 256
"""Of a small context: llama.cpp rounds up to this."""
LENGTHS = (60, 100, 80)
"""Of prompts for which it has room, but not for 40 tokens more of each."""

WAYS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.2},
    "greedy": {"temperature": 0},
    "penalties": {"temperature": 0.8, "repeat_penalty": 1.3},
    "args": {"temperature": 0, "guidance": ARGS(3.0)},
    "args sampled": {"temperature": 1, "guidance": ARGS(3.0, n_candidates=4)},
    "vocabulary": {"temperature": 1, "guidance": Vocabulary(5.0)},
    "gated": {"temperature": 1, "guidance": Gated(ARGS(3.0, n_candidates=5), probability=0.05)},
    "contrast": {"temperature": 1, "guidance": Contrast("An otter.\n")},
    "search": {"temperature": 1, "guidance": BestOfN(3)},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=80) as llm:
        yield llm


@pytest.fixture(scope="module")
def judge() -> Iterator[Otter]:
    """Another model of the same vocabulary."""
    with open_exact(pair(seed=4, base_of=0), n_seq_max=80) as judge:
        yield judge


def check_same(batch: Any, single: Any) -> None:
    """The same tokens, text and end; rewards up to rounding."""
    assert batch["rewards"]["tokens"] == single["rewards"]["tokens"]
    assert (batch["text"], batch["finish_reason"]) == (single["text"], single["finish_reason"])
    np.testing.assert_allclose(batch["rewards"]["token_rewards"], single["rewards"]["token_rewards"], atol=1e-4)
    assert batch["rewards"]["reward"] == pytest.approx(single["rewards"]["reward"], abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_gives_the_texts_of_single_calls(llm: Otter, way: str) -> None:
    options = {"max_tokens": 30, "seed": 11, **WAYS[way]}
    singles = [choice_of(llm.create_completion(prompt, **options)) for prompt in PROMPTS]
    batch = choices_of(llm.create_completion(PROMPTS, **options))
    assert [choice["index"] for choice in batch] == list(range(8))
    for choice, single in zip(batch, singles, strict=True):
        check_same(choice, single)
    assert len({choice["text"] for choice in batch}) > 4


def test_a_batch_with_reward_models_gives_the_texts_of_single_calls(llm: Otter, judge: Otter) -> None:
    for model, label in ((judge, None), ({"judge": judge}, "judge:reward")):
        given: dict[str, Any] = {"guidance": ARGS(3.0, n_candidates=6, label=label), "reward_model": model}
        options = {"max_tokens": 20, "seed": 3, "temperature": 1, **given}
        singles = [choice_of(llm.create_completion(prompt, **options)) for prompt in PROMPTS]
        for choice, single in zip(choices_of(llm.create_completion(PROMPTS, **options)), singles, strict=True):
            check_same(choice, single)
        own = choices_of(llm.create_completion(PROMPTS, **{**options, "guidance": ARGS(3.0, 6), "reward_model": None}))
        assert [choice["text"] for choice in own] != [single["text"] for single in singles]


def test_other_seeds_give_other_texts(llm: Otter) -> None:
    texts = [
        [
            choice["text"]
            for choice in choices_of(llm.create_completion(PROMPTS, max_tokens=30, temperature=1, seed=seed))
        ]
        for seed in (11, 11, 12)
    ]
    assert texts[0] == texts[1]
    assert all(first != other for first, other in zip(texts[0], texts[2], strict=True))


@pytest.mark.parametrize("guidance", [None, ARGS(1.5), Vocabulary(1.5)], ids=["plain", "args", "vocabulary"])
def test_the_demo_model_gives_the_texts_of_single_calls(guidance: Any) -> None:
    prompts = ["Once upon a time", "Tom saw a", "Lily", "The dog ran", "One day", "Sue had a red", "It was", "Mum"]
    with load_demo_f32(n_seq_max=80) as demo:
        options: dict[str, Any] = {"max_tokens": 32, "seed": 5, "guidance": guidance}
        singles = [choice_of(demo.create_completion(prompt, **options)) for prompt in prompts]
        for choice, single in zip(choices_of(demo.create_completion(prompts, **options)), singles, strict=True):
            check_same(choice, single)


# ---- streaming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sampled", "args", "search"])
def test_the_chunks_of_a_batch_add_up_to_its_choices(llm: Otter, way: str) -> None:
    options = {"max_tokens": 25, "seed": 2, "stop": ["e", "\n"], **WAYS[way]}
    whole = choices_of(llm.create_completion(PROMPTS, **options))
    chunks = list(llm.create_completion(PROMPTS, stream=True, **options))
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    for index, choice in enumerate(whole):
        parts = joined(chunks, index)
        assert parts["text"] == choice["text"]
        assert {key: parts[key] for key in ("tokens", "token_rewards", "text_offset")} == {
            key: choice["rewards"][key] for key in ("tokens", "token_rewards", "text_offset")
        }
        assert Counter(parts["finish_reasons"])[choice["finish_reason"]] == 1
        assert parts["finish_reasons"][-1] == choice["finish_reason"]
        assert not any(parts["finish_reasons"][:-1])


def test_a_text_that_is_over_says_so_while_others_go_on(llm: Otter) -> None:
    free = choice_of(llm.create_completion("a", max_tokens=40, temperature=1, seed=2, logit_bias=without_end(llm)))
    stop = free["text"][3:6]
    prompts = ["a", "The otter"]
    stream = llm.create_completion(
        prompts, max_tokens=40, temperature=1, seed=2, logit_bias=without_end(llm), stop=stop, stream=True
    )
    chunks = [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in stream]
    assert (0, "stop") in chunks[:-5]
    assert chunks[-1] == (1, "length")


# ---- ends and room ---------------------------------------------------------------------------------------------


def test_texts_end_at_different_times(llm: Otter) -> None:
    """By an end-of-text token that is made likely, each by draws of its own."""
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 1, "seed": 4, "logit_bias": {llm.model.eos_token: 2.0}}
    singles = [choice_of(llm.create_completion(prompt, **options)) for prompt in PROMPTS]
    batch = choices_of(llm.create_completion(PROMPTS, **options))
    for choice, single in zip(batch, singles, strict=True):
        check_same(choice, single)
    assert len({len(choice["rewards"]["tokens"]) for choice in batch}) > 3
    assert {choice["finish_reason"] for choice in batch} >= {"stop"}


@pytest.mark.parametrize("guidance", [None, ARGS(2.0, n_candidates=3), Vocabulary(2.0)], ids=["plain", "args", "head"])
def test_where_the_cache_is_too_small_for_all_the_longest_ends(guidance: Any) -> None:
    with open_exact(n_ctx=240, n_seq_max=9) as small:
        assert small.context.n_ctx == CELLS
        prompts = [[65 + i] * length for i, length in enumerate(LENGTHS)]
        out = small.create_completion(
            prompts, max_tokens=40, temperature=0, guidance=guidance, logit_bias=without_end(small)
        )
        counts = [len(choice["rewards"]["tokens"]) for choice in choices_of(out)]
        assert [choice["finish_reason"] for choice in choices_of(out)] == ["length"] * 3
        assert counts[1] < 6
        assert (counts[0], counts[2]) == (40, 40)
        for prompt, choice in zip(prompts, choices_of(out), strict=True):
            options: dict[str, Any] = {"temperature": 0, "guidance": guidance, "logit_bias": without_end(small)}
            single = choice_of(small.create_completion(prompt, max_tokens=40, **options))
            assert single["rewards"]["tokens"][: len(choice["rewards"]["tokens"])] == choice["rewards"]["tokens"]


def test_where_a_reward_models_cache_is_too_small_the_longest_ends(llm: Otter) -> None:
    prompts = [[65 + i] * length for i, length in enumerate(LENGTHS)]
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "logit_bias": without_end(llm)}
    options["guidance"] = Gated(ARGS(2.0, n_candidates=3), entropy=5.0)
    with open_exact(pair(seed=4, base_of=0), n_ctx=240, n_seq_max=9) as small, open_exact(n_ctx=480) as large:
        out = choices_of(large.create_completion(prompts, reward_model=small, **options))
        counts = [len(choice["rewards"]["tokens"]) for choice in out]
        assert [choice["finish_reason"] for choice in out] == ["length"] * 3
        assert counts[1] < 12
        assert (counts[0], counts[2]) == (40, 40)
        for prompt, choice in zip(prompts, out, strict=True):
            single = choice_of(large.create_completion(prompt, reward_model=small, **options))
            assert single["rewards"]["tokens"][: len(choice["rewards"]["tokens"])] == choice["rewards"]["tokens"]


@dataclass(frozen=True)
class EveryTwentieth(ARGS):
    """A policy that guides few steps, so that a reward model has much to catch up with."""

    def applies_to(self, state: State) -> bool:
        return state.n_generated % 20 == 19


def test_a_reward_model_catches_up_in_batches_of_its_own_size(llm: Otter, judge: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "logit_bias": without_end(llm)}
    options["guidance"] = EveryTwentieth(20.0, n_candidates=4)
    large = choices_of(llm.create_completion(PROMPTS[:2], reward_model=judge, **options))
    with open_exact(pair(seed=4, base_of=0), n_batch=8, n_ubatch=8, n_seq_max=8) as small:
        out = choices_of(llm.create_completion(PROMPTS[:2], reward_model=small, **options))
    assert [choice["rewards"]["tokens"] for choice in out] == [choice["rewards"]["tokens"] for choice in large]
    own = choices_of(llm.create_completion(PROMPTS[:2], **options))
    assert [choice["text"] for choice in own] != [choice["text"] for choice in out]


def test_prompts_that_do_not_fit_together_follow_each_other() -> None:
    with open_exact(n_ctx=240, n_seq_max=4) as small:
        options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logit_bias": without_end(small)}
        prompts = [[65] * 130, [66] * 130, [67] * 130]
        out = choices_of(small.create_completion(prompts, **options))
        for prompt, choice in zip(prompts, out, strict=True):
            check_same(choice, choice_of(small.create_completion(prompt, **options)))
        assert len(choices_of(small.create_completion([[65] * 130, [65] * 130], max_tokens=2))) == 2, (
            "a shared beginning"
        )


# ---- what is fed -----------------------------------------------------------------------------------------------


def test_a_shared_beginning_is_fed_once(llm: Otter) -> None:
    def fed(prompts: list[list[int]]) -> tuple[int, list[str]]:
        with open_exact(n_ctx=128, n_seq_max=8) as small:
            counted = Counter[str]()
            count_tokens(small, counted)
            out = small.create_completion(prompts, max_tokens=3, temperature=0)
            return counted["fed"], [choice["text"] for choice in choices_of(out)]

    beginning = llm.tokenize(TEXT)[:50]
    ends = [[70, 71], [72, 73], [74, 75, 76]]
    together, texts = fed([[*beginning, *end] for end in ends])
    assert together == 50 + 7 + 3 * 3
    singles = [choice_of(llm.create_completion([*beginning, *end], max_tokens=3, temperature=0)) for end in ends]
    assert texts == [single["text"] for single in singles]
    apart, _ = fed([[*end, *beginning] for end in ends])
    assert apart == 150 + 7 + 3 * 3


def count_tokens(llm: Otter, counted: Counter[str]) -> None:
    """Count what is fed from here on."""
    streams = llm.session.streams
    feed, decode = streams.feed, streams.decode

    def counting_feed(texts: Sequence[tuple[Stream, Sequence[int]]]) -> None:
        counted["fed"] += sum(len(tokens) for _, tokens in texts)
        feed(texts)

    def counting_decode(entries: Sequence[tuple[Stream, Any]]) -> Any:
        counted["fed"] += sum(len(tokens) for _, tokens in entries)
        return decode(entries)

    streams.feed, streams.decode = counting_feed, counting_decode  # type: ignore[method-assign]


class Counting:
    """A context that remembers how many tokens its batches had."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def decode(self, tokens: Any, *rest: Any, **options: Any) -> None:
        self.sizes.append(len(tokens))
        self.context.decode(tokens, *rest, **options)


@pytest.mark.parametrize(("n_batch", "sizes"), [(7, [7, 7, 7, 7, 6, 4]), (64, [34, 4])])
def test_prompts_share_batches_and_are_cut_where_a_batch_is_full(n_batch: int, sizes: list[int]) -> None:
    prompts = [[*range(20, 20 + size)] for size in (5, 23, 1, 9)]
    with open_exact(n_ctx=512, n_seq_max=4, n_batch=n_batch) as llm:
        alone = [choice_of(llm.create_completion([prompt], max_tokens=8, temperature=0)) for prompt in prompts]
        together = choices_of(llm.create_completion(prompts, max_tokens=8, temperature=0))
        assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]
        counting = Counting(llm.context)
        llm.session.streams.context = counting  # type: ignore[assignment]
        handles = llm.engine.submit([Request(prompt) for prompt in prompts])
        llm.engine.start(handles)
        assert counting.sizes == sizes
        streams = llm.session.streams.live
        assert [stream.tokens for stream in streams] == prompts
        assert [llm.context.sequence_max_position(stream.sequences[0]) + 1 for stream in streams] == [5, 23, 1, 9]


# ---- shapes ----------------------------------------------------------------------------------------------------


def test_a_list_of_one_prompt_is_that_prompt(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0}
    single = choice_of(llm.create_completion(TEXT, **options))
    assert choice_of(llm.create_completion([TEXT], **options)) == single
    tokens = llm.tokenize(TEXT, special=True)
    assert choice_of(llm.create_completion([tokens], **options)) == single
    assert choice_of(llm.create_completion(np.asarray([tokens]), **options)) == single  # type: ignore[call-overload]


def test_texts_and_tokens_may_be_mixed_and_echoed(llm: Otter) -> None:
    prompts: list[str | list[int]] = ["otter<|end|>", [65, 66]]
    out = choices_of(llm.create_completion(prompts, max_tokens=0, echo=True))
    assert [choice["text"] for choice in out] == ["otter<|end|>", "AB"]
    cases: list[tuple[Any, str]] = [(prompts[:1], "otter<|end|>"), (prompts[1:], "AB"), (prompts[1], "AB")]
    for prompt, text in cases:
        assert choice_of(llm.create_completion(prompt, max_tokens=0, echo=True))["text"] == text


def test_max_tokens_zero_gives_the_rewards_of_the_prompts(llm: Otter) -> None:
    out = llm.create_completion(PROMPTS, max_tokens=0)
    for prompt, choice in zip(PROMPTS, choices_of(out), strict=True):
        assert (choice["text"], choice["finish_reason"], choice["rewards"]["tokens"]) == ("", "length", [])
        assert choice["rewards"]["reward"] == pytest.approx(llm.score(prompt).reward, abs=1e-4)
    n_prompt = sum(len(llm.tokenize(prompt, special=True)) for prompt in PROMPTS)
    assert out["usage"] == {"prompt_tokens": n_prompt, "completion_tokens": 0, "total_tokens": n_prompt}


def test_usage_counts_all_texts(llm: Otter) -> None:
    out = llm.create_completion(PROMPTS, max_tokens=7, logit_bias=without_end(llm))
    assert out["usage"] is not None
    assert out["usage"]["completion_tokens"] == 7 * 8


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, ARGS(2.0, n_candidates=3)], ids=["plain", "args"])
def test_texts_without_a_free_sequence_wait(guidance: Any) -> None:
    with open_exact(n_seq_max=7) as small:
        options: dict[str, Any] = {"max_tokens": 6, "seed": 3, "guidance": guidance}
        singles = [choice_of(small.create_completion(prompt, **options)) for prompt in PROMPTS]
        for choice, single in zip(choices_of(small.create_completion(PROMPTS, **options)), singles, strict=True):
            check_same(choice, single)


@pytest.mark.parametrize(
    ("guidance", "needs"), [(ARGS(n_candidates=81), "n_seq_max=81"), (BestOfN(81), "n_seq_max=81")]
)
def test_a_text_that_needs_more_sequences_is_refused(llm: Otter, guidance: Any, needs: str) -> None:
    with refused(ConfigError, needs, "-np", 80):
        llm.create_completion("a", guidance=guidance)
    assert choice_of(llm.create_completion("a", max_tokens=1))


def test_an_empty_prompt_among_others_is_refused(llm: Otter) -> None:
    with refused(ConfigError, "prompt", "empty"):
        llm.create_completion([[65], []])
    with refused(ConfigError, "prompt", "empty"):
        llm.create_completion([])


def test_rewards_of_every_prompt_token_are_for_single_prompts(llm: Otter) -> None:
    with refused(ConfigError, "prompt_rewards"):
        llm.create_completion(PROMPTS, prompt_rewards=True)
