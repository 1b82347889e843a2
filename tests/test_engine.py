"""The engine: texts that have nothing to do with each other, side by side in one context."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, CARDS, BestOfN, ConfigError, DExperts, EngineError, Gated, Otter, Vocabulary
from otter_gguf.context.session import sessions_by_name
from otter_gguf.context.streams import Stream
from otter_gguf.engine import Handle, News, Request
from otter_gguf.guidance.threshold import Threshold
from otter_gguf.options import SamplingOptions
from tests.completions import choice_of, joined, tokens_of, without_end
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT, pair


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=80) as llm:
        yield llm


@pytest.fixture(scope="module")
def judge() -> Iterator[Otter]:
    with open_exact(pair(seed=4, base_of=0), n_seq_max=80) as judge:
        yield judge


def requests(llm: Otter, judge: Otter) -> list[Request]:
    """Of every kind: other samplers, policies, searches, limits and lengths."""
    greedy, hot = SamplingOptions(temperature=0), SamplingOptions(temperature=1.2, seed=7)
    # A policy's own candidates are all there is to choose from, as calls of Otter have it.
    chosen = SamplingOptions(temperature=1, seed=3, top_k=0, top_p=1.0, min_p=0.0)
    tokens, models = llm.tokenize(TEXT, special=True), sessions_by_name(judge)
    return [
        Request(tokens, greedy, max_tokens=30),
        Request(tokens[:9], hot, max_tokens=21, stop=("e",), logprobs=2),
        Request(tokens[3:], chosen, ARGS(3.0, n_candidates=6), max_tokens=17),
        Request(tokens, chosen, Vocabulary(5.0), max_tokens=25),
        Request(tokens[:20], chosen, Gated(ARGS(3.0, n_candidates=5), probability=0.05), max_tokens=12),
        Request(tokens[5:], chosen, ARGS(3.0, n_candidates=4), models, max_tokens=14),
        Request(tokens, hot, BestOfN(3), max_tokens=11),
        Request(tokens[:7], hot, CARDS(target=1.0, n_tokens=16), max_tokens=19),
        Request(tokens[:12], hot, Threshold(0.0, "replace", n_candidates=3), models, max_tokens=9),
        Request(tokens[2:], chosen, DExperts(expert=judge), max_tokens=13),
        Request([70, 71, 72], SamplingOptions(temperature=0, grammar="root ::= [a-z]+"), max_tokens=6),
    ]


def tokens_by_text(handles: Sequence[Handle], news: Sequence[News]) -> list[list[int]]:
    return [[one.event.step.token for one in news if one.handle is handle and one.event] for handle in handles]


def run(llm: Otter, handles: Sequence[Handle]) -> list[News]:
    news: list[News] = []
    while not all(handle.done for handle in handles):
        news += llm.engine.step()
    return news


def single_runs(llm: Otter, asked: Sequence[Request]) -> list[list[int]]:
    found = []
    for request in asked:
        handles = llm.engine.submit([request])
        found += tokens_by_text(handles, run(llm, handles))
        assert handles[0].error is None
    return found


def test_texts_of_every_kind_together_are_those_of_single_runs(llm: Otter, judge: Otter) -> None:
    asked = requests(llm, judge)
    singles = single_runs(llm, asked)
    assert len({tuple(tokens) for tokens in singles}) == len(asked)
    handles = [handle for request in asked for handle in llm.engine.submit([request])]
    assert tokens_by_text(handles, run(llm, handles)) == singles
    assert [handle.error for handle in handles] == [None] * len(asked)


def test_texts_that_come_and_go_leave_the_others_unchanged(llm: Otter, judge: Otter) -> None:
    """Each is admitted some steps after the one before it, and every third one is cancelled in its middle."""
    asked = requests(llm, judge)
    singles = single_runs(llm, asked)
    handles: list[Handle] = []
    news: list[News] = []
    for request in asked:
        handles += llm.engine.submit([request])
        for _ in range(3):
            news += llm.engine.step()
        if len(handles) % 3 == 0:
            llm.engine.cancel(handles[-1])
    news += run(llm, handles)
    for index, (tokens, single) in enumerate(zip(tokens_by_text(handles, news), singles, strict=True)):
        assert tokens == (single[: len(tokens)] if index % 3 == 2 else single)


def n_cells(llm: Otter) -> int:
    """Positions in use, of all sequences."""
    return sum(llm.context.sequence_max_position(sequence) + 1 for sequence in range(llm.context.n_seq_max))


def test_cancelling_frees_the_cells_at_once(llm: Otter, judge: Otter) -> None:
    llm.reset()
    for request in requests(llm, judge):
        (handle,) = llm.engine.submit([request])
        for _ in range(3):
            llm.engine.step()
        assert n_cells(llm) > 0
        is_over = handle.done  # by itself, in these three steps: its text stays in the cache
        llm.engine.cancel(handle)
        assert handle.done
        if is_over:
            llm.reset()
        assert n_cells(llm) == 0
        assert llm.session.streams.live == judge.session.streams.live == []


def test_a_long_prompt_delays_no_text_by_more_than_a_piece() -> None:
    with open_exact(n_ctx=4200, n_seq_max=2, n_ubatch=64) as llm:
        sizes: list[int] = []
        feed = llm.session.streams.feed

        def counting(texts: Sequence[tuple[Stream, Sequence[int]]]) -> None:
            sizes.append(sum(len(tokens) for _, tokens in texts))
            feed(texts)

        llm.session.streams.feed = counting  # type: ignore[method-assign]
        options = SamplingOptions(temperature=0, logit_bias=without_end(llm))
        (running,) = llm.engine.submit([Request([70, 71], options, max_tokens=80)])
        llm.engine.step()
        (long,) = llm.engine.submit([Request([65 + i % 20 for i in range(4000)], options, max_tokens=3)])
        sizes.clear()
        news = []
        while long.prompt_rewards is None:
            step = llm.engine.step()
            news += step
            assert sum(one.handle is running and one.event is not None for one in step) == 1, "a token in every step"
        assert max(sizes) <= 64
        assert len(sizes) == -(-3999 // 64)
        news += run(llm, [running, long])
        alone = tokens_of(llm.create_completion([70, 71], max_tokens=80, temperature=0, logit_bias=without_end(llm)))
        told = tokens_by_text([running], news)[0]
        assert alone[-len(told) :] == told


def test_where_nothing_runs_beside_it_a_prompt_is_fed_at_once() -> None:
    """The negative twin."""
    with open_exact(n_ctx=4200, n_seq_max=2, n_ubatch=64) as llm:
        (long,) = llm.engine.submit([Request([65 + i % 20 for i in range(4000)], max_tokens=3)])
        llm.engine.step()
        assert long.prompt_rewards is not None


# ---- errors ----------------------------------------------------------------------------------------------------


def test_for_callers_who_come_and_go_every_prompt_is_fed_in_pieces() -> None:
    with open_exact(n_ubatch=32, n_ctx=512) as llm:
        tokens = llm.tokenize(TEXT * 5, special=True)[:200]
        (whole,) = llm.engine.submit([Request(tokens, SamplingOptions(temperature=0), max_tokens=4)])
        expected = tokens_by_text([whole], run(llm, [whole]))
        llm.engine.in_pieces = True
        (handle,) = llm.engine.submit([Request(tokens, SamplingOptions(temperature=0), max_tokens=4)])
        n_steps = 0
        while handle.prompt_rewards is None:
            before = llm.context.timing()["tokens"]
            llm.engine.step()
            assert llm.context.timing()["tokens"] - before <= 34
            n_steps += 1
        assert n_steps == 7
        assert tokens_by_text([handle], [*handle.take(), *run(llm, [handle])]) == expected


def test_the_error_of_one_text_is_not_the_others(llm: Otter) -> None:
    def fail(tokens: Any, logits: Any) -> Any:
        raise ZeroDivisionError

    good = Request([70, 71, 72], SamplingOptions(temperature=0), max_tokens=8)
    bad = Request([70, 71, 72], SamplingOptions(temperature=0), max_tokens=8, logits_processors=(fail,))
    (expected,) = single_runs(llm, [good])
    (first,), (second,) = llm.engine.submit([good]), llm.engine.submit([bad])
    assert tokens_by_text([first], run(llm, [first, second])) == [expected]
    assert first.error is None
    assert isinstance(second.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        llm.create_completion("a", logits_processor=fail)


# ---- threads ---------------------------------------------------------------------------------------------------


def test_calls_of_several_threads_run_side_by_side(llm: Otter) -> None:
    prompts = [TEXT[i : i + 20] for i in range(8)]
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 1, "seed": 5}
    ways: list[dict[str, Any]] = [
        {},
        {"guidance": ARGS(3.0, n_candidates=4)},
        {"guidance": BestOfN(2)},
        {"stream": True},
    ]

    def call(index: int) -> Any:
        given = options | ways[index % 4]
        out = llm.create_completion(prompts[index], **given)
        return joined(out)["tokens"] if "stream" in given else tokens_of(out)

    expected = [call(index) for index in range(8)]
    steps = [0]
    decode = llm.session.streams.decode

    def counting(entries: Any) -> Any:
        steps[0] += 1
        return decode(entries)

    llm.session.streams.decode = counting  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(8))) == expected
    finally:
        llm.session.streams.decode = decode  # type: ignore[method-assign]
    assert steps[0] < sum(map(len, expected)), "several texts a batch"


def test_a_callback_may_not_use_its_own_model(llm: Otter) -> None:
    def call(tokens: Any, logits: Any) -> Any:
        assert llm.tokenize("otter")  # needs no context
        llm.score("b")
        return logits

    for guidance in (None, ARGS(1.0, n_candidates=3)):
        with refused(EngineError, llm.model_path):
            llm.create_completion("a", max_tokens=4, logits_processor=call, guidance=guidance)
    assert choice_of(llm.create_completion("a", max_tokens=2))


def test_a_stream_may_go_on_in_another_thread(llm: Otter) -> None:
    expected = tokens_of(llm.create_completion("a", max_tokens=8, temperature=0))
    chunks = llm.create_completion("a", max_tokens=8, temperature=0, stream=True)
    first = [next(chunks)]
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(lambda: list(chunks)).result(30)
    assert joined([*first, *rest])["tokens"] == expected


def test_two_models_that_guide_each_other_do_not_wait_for_each_other(llm: Otter, judge: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "guidance": ARGS(3.0, n_candidates=3)}
    expected = [
        tokens_of(llm.create_completion("a", reward_model=judge, **options)),
        tokens_of(judge.create_completion("a", reward_model=llm, **options)),
    ]
    found: list[Any] = []

    def call(index: int) -> None:
        for _ in range(5):
            one, other = (llm, judge) if index else (judge, llm)
            found.append((index, tokens_of(one.create_completion("a", reward_model=other, **options))))

    threads = [threading.Thread(target=call, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 10
    assert all(tokens == expected[1 - index] for index, tokens in found)


# ---- what stays in the cache -----------------------------------------------------------------------------------


def test_a_beginning_that_is_in_the_cache_is_shared() -> None:
    beginning = [65 + i % 20 for i in range(60)]
    with open_exact(n_ctx=256, n_seq_max=4) as llm:
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
        expected = tokens_of(llm.create_completion([*beginning, 70], **options))
        llm.create_completion([*beginning, 80], **options)
        before = llm.context.timing()["tokens"]
        again = llm.create_completion([*beginning, 70], cache_prompt=True, **options)
        assert llm.context.timing()["tokens"] - before == 5
        assert tokens_of(again) == expected

        (running,) = llm.engine.submit([Request([*beginning, 90], max_tokens=9)])
        llm.engine.step()
        before = llm.context.timing()["tokens"]
        (beside,) = llm.engine.submit(
            [Request([*beginning, 70], SamplingOptions(temperature=0), max_tokens=0, cache_prompt=True)]
        )
        llm.engine.step()
        assert llm.context.timing()["tokens"] - before == 2, "the last token of the prompt, and one of the running text"
        assert beside.prompt_rewards is not None
        np.testing.assert_allclose(beside.prompt_rewards, llm.score([*beginning, 70]).rewards[-1:], atol=1e-5)
        assert not running.done
        llm.engine.cancel(running)


def test_a_text_that_nobody_asks_for_gives_way_and_says_so() -> None:
    with open_exact(n_ctx=64, n_seq_max=1) as llm:
        chunks = llm.create_completion("a", max_tokens=20, temperature=0, stream=True)
        next(chunks)
        llm.score("b")
        with refused(ConfigError, "stream"):
            list(chunks)


# ---- texts that are read -------------------------------------------------------------------------------------------


def test_texts_that_are_read_together_are_those_of_single_readings(llm: Otter, judge: Otter) -> None:
    tokens = llm.tokenize(TEXT * 4, special=True)
    texts = [tokens[begin : begin + length] for begin, length in ((0, 90), (3, 1), (7, 200), (0, 64), (20, 3))]
    for what in ("rewards", "log_probabilities"):
        singles = [llm.engine.read([text], what)[0] for text in texts]
        for single, together in zip(singles, llm.engine.read(texts, what), strict=True):
            np.testing.assert_allclose(together, single, atol=1e-4)
        running = llm.engine.submit([Request(tokens[:40], SamplingOptions(temperature=0), max_tokens=12)])
        reading = llm.engine.submit_reading(texts, what)
        run(llm, [*running, *reading])
        for single, handle in zip(singles, reading, strict=True):
            assert handle.result is not None
            np.testing.assert_allclose(handle.result, single, atol=1e-4)
    assert not llm.session.streams.live


def test_more_texts_than_sequences_are_read_one_after_the_other() -> None:
    with open_exact(n_seq_max=2, n_ctx=256) as small:
        texts = [small.tokenize(TEXT, special=True)[: 20 + 9 * index] for index in range(7)]
        assert [len(rewards) for rewards in small.engine.read(texts, "rewards")] == list(map(len, texts))
        long = [[65] * 250, [66] * 250, [67] * 250]  # each needs the cache for itself
        assert [len(rewards) for rewards in small.engine.read(long, "rewards")] == [250] * 3


def test_a_prompt_is_read_before_it_is_continued(llm: Otter) -> None:
    tokens = llm.tokenize(TEXT * 2, special=True)
    expected = llm.engine.read([tokens], "log_probabilities")[0]
    rewards = llm.engine.read([tokens], "rewards")[0]
    asked = Request(tokens, SamplingOptions(temperature=0), prompt_logprobs=2, prompt_rewards=True, max_tokens=5)
    without = llm.engine.submit([Request(tokens, SamplingOptions(temperature=0), max_tokens=5)])
    plain = tokens_by_text(without, run(llm, without))
    for others in ([], [Request(tokens[:30], SamplingOptions(temperature=0), max_tokens=9)]):
        handles = llm.engine.submit([asked, *others])
        assert tokens_by_text(handles, run(llm, handles))[0] == plain[0]
        places = handles[0].prompt_logprobs
        np.testing.assert_allclose([place.logprob for place in places], expected, atol=1e-5)
        assert [len(place.tokens) for place in places] == [2] * (len(tokens) - 1)
        assert all(place.logprobs[0] >= place.logprob for place in places)
        assert handles[0].prompt_rewards is not None
        np.testing.assert_allclose(handles[0].prompt_rewards, rewards, atol=1e-4)


def test_an_abandoned_text_ends_with_the_next_use(llm: Otter) -> None:
    handles = llm.engine.submit([Request(llm.tokenize(TEXT), max_tokens=200)])
    llm.engine.step()
    llm.engine.abandon(handles)
    llm.engine.abandon(handles)
    assert [handle.done for handle in handles] == [False]
    llm.engine.step()
    assert [handle.done for handle in handles] == [True]
    assert not llm.session.streams.live


def test_a_text_that_gave_way_says_so_also_where_another_is_abandoned_at_once() -> None:
    """Both give way to the saved state; the end of the second one may not make the engine forget the first."""
    with open_exact(n_ctx=64, n_seq_max=4) as llm:
        llm.create_completion("c", max_tokens=1)
        state = llm.save_state()
        first = llm.create_completion("a", max_tokens=20, temperature=0, stream=True)  # its prompt is fed, no more
        second = llm.create_completion("b", max_tokens=20, temperature=0, stream=True)
        next(second)
        llm.load_state(state)
        second.close()  # type: ignore[attr-defined]
        ends: list[BaseException] = []

        def follow() -> None:
            with pytest.raises(ConfigError) as found:
                list(first)
            ends.append(found.value)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        thread.join(20)
        assert len(ends) == 1, "it waits for a text that the engine no longer has"


def test_a_text_whose_handle_is_lost_ends() -> None:
    """As where an exception out of a signal handler comes between the submission and its assignment."""
    with open_exact(n_ctx=64, n_seq_max=4) as llm:
        llm.create_completion("c", max_tokens=1)
        state = llm.save_state()
        (handle,) = llm.engine.submit([Request(llm.tokenize("a"), max_tokens=40)])
        llm.engine.step()
        with refused(EngineError, "base.gguf"):
            llm.load_state(state)
        del handle
        llm.load_state(state)
        assert n_cells(llm) == len(state.tokens)
