"""AsyncOtter: the calls of Otter in an event loop, side by side, and ended as soon as nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, CARDS, AsyncOtter, BestOfN, ConfigError, ContextFullError, EngineError, Otter, Vocabulary
from tests.completions import choice_of, joined, without_end
from tests.guidance.reference import open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT

SCHEMA = {"type": "object", "properties": {"old": {"type": "boolean"}}, "required": ["old"]}


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=64, n_ctx=4096) as llm:
        yield llm


def calls() -> list[dict[str, Any]]:
    """Sixteen that have nothing in common."""
    kinds: list[dict[str, Any]] = [
        {},
        {"guidance": Vocabulary(3.0)},
        {"guidance": ARGS(2.0, n_candidates=4)},
        {"guidance": BestOfN(3)},
        {"guidance": CARDS(target=1.0, n_tokens=8)},
        {"json_schema": SCHEMA},
        {"temperature": 0.0, "logprobs": 2},
        {"stop": "e", "prompt_rewards": True},
    ]
    return [
        {"prompt": TEXT[3 * index :], "max_tokens": 6 + index, "seed": index, **kinds[index % len(kinds)]}
        for index in range(16)
    ]


def in_loop(llm: Otter, work: Callable[[AsyncOtter], Coroutine[Any, Any, Any]]) -> Any:
    """Run with the model in an event loop; the model stays open."""

    async def main() -> Any:
        model = AsyncOtter(llm)
        try:
            return await asyncio.wait_for(work(model), 120)
        finally:
            await asyncio.to_thread(model.driver.close)

    return asyncio.run(main())


def n_live(llm: Otter) -> int:
    return len(llm.session.streams.live)


def without_id(response: Any) -> Any:
    return {key: value for key, value in response.items() if key not in ("id", "created")}


def test_sixteen_calls_side_by_side_are_the_single_calls(llm: Otter) -> None:
    singles = [llm.create_completion(**call) for call in calls()]

    async def all_at_once(model: AsyncOtter) -> Any:
        return await asyncio.gather(*(model.create_completion(**call) for call in calls()))

    together = in_loop(llm, all_at_once)
    for single, found in zip(singles, together, strict=True):
        mine, theirs = choice_of(single), choice_of(found)
        assert theirs["text"] == mine["text"]
        assert theirs["rewards"]["tokens"] == mine["rewards"]["tokens"]
        assert theirs["finish_reason"] == mine["finish_reason"]
        np.testing.assert_allclose(theirs["rewards"]["token_rewards"], mine["rewards"]["token_rewards"], atol=1e-4)
        assert found["usage"] == single["usage"]
    assert n_live(llm) == 0


def test_chunks_add_up_to_the_whole(llm: Otter) -> None:
    options: dict[str, Any] = {"prompt": [TEXT, "The otter"], "max_tokens": 12, "seed": 3, "echo": True}
    whole = llm.create_completion(**options)

    async def stream(model: AsyncOtter) -> Any:
        return [chunk async for chunk in await model.create_completion(stream=True, **options)]

    chunks = in_loop(llm, stream)
    for index, choice in enumerate(whole["choices"]):
        parts = joined(chunks, index)
        assert parts["text"] == choice["text"]
        assert choice["rewards"] is not None
        assert parts["tokens"] == choice["rewards"]["tokens"]


def test_tokens_scores_and_rankings(llm: Otter) -> None:
    tokens = llm.tokenize("The otter", special=True)
    steps = [step for step, _ in zip(llm.generate(tokens, temperature=0), range(9), strict=False)]
    scores = [llm.score("The otter", text) for text in (" swims", " lives in the sea", " eats")]

    async def use(model: AsyncOtter) -> Any:
        found = []
        async for step in model.generate(tokens, temperature=0):
            found.append(step)
            if len(found) == 9:
                break
        many = await model.score_many(
            [("The otter", " swims"), ("The otter", " lives in the sea"), ("The otter", " eats")]
        )
        ranking = await model.rerank("The otter", [" swims", " lives in the sea", " eats"], top_n=2)
        return found, many, ranking, await model.tokenize("The otter", special=True)

    found, many, ranking, ids = in_loop(llm, use)
    assert ids == tokens
    assert [step.token for step in found] == [step.token for step in steps]
    for one, other in zip(many, scores, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-4)
    best = sorted(range(3), key=lambda index: -scores[index].reward)[:2]
    assert [one["index"] for one in ranking] == best
    with refused(ConfigError, "label", "kind", *llm.reward_labels):
        llm.rerank("a", ["b"], label="kind")


def test_a_cancelled_task_ends_its_text_within_a_step(llm: Otter) -> None:
    endless: dict[str, Any] = {"prompt": TEXT, "max_tokens": 400, "logit_bias": without_end(llm)}

    async def use(model: AsyncOtter) -> None:
        for index in range(50):
            n_begun = llm.context.timing()["calls"]
            if index % 2:
                task = asyncio.ensure_future(model.create_completion(**endless))
                while n_live(llm) == 0 or llm.context.timing()["calls"] < n_begun + 4:
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                stream = await model.create_completion(stream=True, **endless)
                await anext(stream)
                await stream.aclose()
            n_calls = llm.context.timing()["calls"]
            while n_live(llm):
                await asyncio.sleep(0.0005)
            assert llm.context.timing()["calls"] <= n_calls + 2  # the step under way, and none for this text

    in_loop(llm, use)


def test_a_call_that_is_cancelled_before_it_began_leaves_nothing(llm: Otter) -> None:
    async def use(model: AsyncOtter) -> None:
        for _ in range(10):
            task = asyncio.ensure_future(model.create_completion(TEXT, max_tokens=400, logit_bias=without_end(llm)))
            await asyncio.sleep(0)
            task.cancel()
        # Another text comes to its end, and with it all that nobody waits for.
        await model.create_completion("The", max_tokens=40)
        assert n_live(llm) == 0

    in_loop(llm, use)


def test_errors_reach_their_callers_alone(llm: Otter) -> None:
    def failing(tokens: Any, logits: Any) -> Any:
        raise ZeroDivisionError

    async def use(model: AsyncOtter) -> Any:
        return await asyncio.gather(
            model.create_completion(TEXT, max_tokens=8, temperature=0),
            model.create_completion(TEXT, max_tokens=8, logits_processor=failing),
            model.create_completion(TEXT, temperature=-1),
            model.create_completion([1] * 5000),
            return_exceptions=True,
        )

    good, *errors = in_loop(llm, use)
    assert choice_of(good)["text"] == choice_of(llm.create_completion(TEXT, max_tokens=8, temperature=0))["text"]
    assert [type(error) for error in errors] == [ZeroDivisionError, ConfigError, ContextFullError]


def test_closing_ends_what_runs_and_frees_the_model() -> None:
    async def main() -> None:
        async with AsyncOtter(open_exact()) as model:
            stream = await model.create_completion(TEXT, max_tokens=400, stream=True, logit_bias=without_end(model.llm))
            await anext(stream)
        with pytest.raises(EngineError):
            async for _ in stream:
                pass
        with pytest.raises(EngineError):
            await model.create_completion("a")

    asyncio.run(asyncio.wait_for(main(), 60))
