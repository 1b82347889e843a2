"""Texts and results that no model made, for what is computed from them and how it is shown."""

from __future__ import annotations

import math
from typing import Any

from otter_gguf import ARGS, Otter
from otter_gguf.evaluation.memory import Memory
from otter_gguf.evaluation.readings import Reading
from otter_gguf.evaluation.results import Judged, Results, summarize
from otter_gguf.evaluation.runner import PLAIN, SECOND, Arm
from otter_gguf.evaluation.store import Generation
from tests.synthetic_models import pair

MIB = 2**20


def bare(**options: Any) -> Otter:
    """The tiny base without its insertion."""
    return Otter(pair().base, **{"n_ctx": 512, "n_threads": 1, "seed": 1, **options})


def generation(arm: str = PLAIN, prompt: int = 0, round: int = 0, **fields: Any) -> Generation:
    """A text of ten tokens that took a second."""
    made: dict[str, Any] = {
        "text": f"text {prompt} of {arm}",
        "tokens": 10,
        "finish_reason": "length",
        "seconds": 1.0,
        "prompt_seconds": 0.0,
        "passes": 10,
        "fed": 10,
    }
    return Generation(arm, prompt, round, **{**made, **fields})


def judged(
    arm: str = PLAIN, prompt: int = 0, round: int = 0, *, judge: float = 0.0, reward: float | None = 0.0, **fields: Any
) -> Judged:
    """A judged text."""
    rewards = None if reward is None else (reward / 2, reward)
    reading = Reading(cross_entropy=1.0, token_rewards=rewards, reward=reward)
    return Judged(generation(arm, prompt, round, **fields), reading, judge, 0.5, 0.25)


def results(weights: tuple[float, ...] = (1.0, 3.0), *, second: bool = True, judge: bool = True) -> Results:
    """Plain decoding, ARGS with some weights, and a second model, over 4 prompts and 2 seeds."""
    arms = [Arm(PLAIN, "base"), *(Arm(f"args:weight={weight:g}", "otter", ARGS(weight)) for weight in weights)]
    arms += [Arm("args" + SECOND, "second", ARGS())] if second else []
    texts = []
    for place, arm in enumerate(arms):
        for prompt in range(4):
            for round in range(2):
                score = place + prompt / 10 if judge else math.nan
                reward = 0.3 * place + 0.01 * prompt
                seconds = 1.0 + place
                texts.append(judged(arm.name, prompt, round, judge=score, reward=reward, seconds=seconds))
    memory = {arm.name: Memory(100 * MIB + 10 * MIB * place, MIB, MIB, MIB) for place, arm in enumerate(arms)}
    header = {
        "model": {"name": "base.gguf"},
        "otter": {"name": "kind.otter.gguf"},
        "second_model": {"name": "second.gguf"} if second else None,
        "prompts": ["a", "b", "c", "d"],
        "seeds": 2,
        "max_tokens": 10,
        "temperature": 0.8,
        "top_k": 10,
        "ignore_eos": False,
    }
    return Results(header, "words", "final states", memory, summarize(arms, texts, 4, memory))
