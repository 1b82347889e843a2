"""ARGS natively against ARGS in torch: the demo model in F32, the same candidates and weight, the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from otter_gguf import ARGS
from otter_gguf.demo import demo_files
from otter_gguf.training import OtterModel
from otter_gguf.training.base import load_base
from tests.demo_f32 import load_demo_f32

WEIGHT, N_CANDIDATES, N_TOKENS = 3.0, 10, 64


@pytest.fixture(scope="module")
def otter() -> OtterModel:
    return OtterModel.from_pretrained(load_base(demo_files().base), demo_files().adapter)


@torch.no_grad()
def args_in_torch(model: OtterModel, prompt: Sequence[int], weight: float, end: int) -> list[int]:
    """Greedy ARGS: the candidates of a step are the rows of a batch, fed behind a cache of the text."""
    cache = DynamicCache()
    output: Any = model(torch.tensor([list(prompt)]), cache=cache, use_cache=True)
    last = output.logits[0, -1]
    cache.batch_repeat_interleave(N_CANDIDATES)
    text: list[int] = []
    while len(text) < N_TOKENS:
        logits, tokens = torch.topk(last, N_CANDIDATES)
        output = model(tokens[:, None], cache=cache, use_cache=True)
        winner = int(torch.argmax(logits + weight * output.rewards[:, -1, 0]))
        if int(tokens[winner]) == end:
            break
        text.append(int(tokens[winner]))
        last = output.logits[winner, -1]
        cache.batch_select_indices(torch.full((N_CANDIDATES,), winner))
    return text


def compare(otter: OtterModel, n_prompts: int, weight: float) -> list[bool]:
    """Whether the tokens are the same, prompt by prompt; the native side always guides with ``WEIGHT``."""
    torch.set_num_threads(1)
    same = []
    with load_demo_f32() as llm:
        for prompt in demo_files().load_prompts()[:n_prompts]:
            tokens = llm.tokenize(prompt)
            out = llm.create_completion(
                tokens, max_tokens=N_TOKENS, temperature=0, guidance=ARGS(WEIGHT, n_candidates=N_CANDIDATES)
            )
            expected = args_in_torch(otter, tokens, weight, llm.model.eos_token)
            same.append(out["choices"][0]["rewards"]["tokens"] == expected)  # type: ignore[index]
    return same


def test_the_same_tokens_as_in_torch(otter: OtterModel) -> None:
    assert all(compare(otter, 2, WEIGHT))


def test_another_weight_gives_other_tokens(otter: OtterModel) -> None:
    assert not all(compare(otter, 2, -WEIGHT))


@pytest.mark.slow
def test_the_same_tokens_as_in_torch_for_20_prompts(otter: OtterModel) -> None:
    assert all(compare(otter, 20, WEIGHT))
