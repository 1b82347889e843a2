"""Experiments with made-up texts, for what is computed from them and how it is shown."""

from __future__ import annotations

from otter_gguf.demo.experiment import Continuation, Experiment, Settings, Side


def continuation(text: str, *rewards: float, seconds: float = 0.01) -> Continuation:
    """A text whose tokens are its words with the space before them; the last reward is repeated."""
    pieces = tuple(f" {word}" for word in text.split())
    filled = (*rewards, *([rewards[-1] if rewards else 0.0] * len(pieces)))[: len(pieces)]
    return Continuation(pieces, filled, seconds)


def side(texts: list[str], scores: list[float], reward: float = 0.0) -> Side:
    return Side(tuple(continuation(text, reward) for text in texts), tuple(scores), tuple(scores))


def experiment(n_prompts: int = 4) -> Experiment:
    plain = side(["Mia pushed Tom into the mud."] * n_prompts, [-1.0, 1.0] * (n_prompts // 2), -1.0)
    guided = side(["Mia helped Tom and they laughed together."] * n_prompts, [1.0] * n_prompts, 1.0)
    prompts = tuple(f"Mia met Tom {index} times." for index in range(n_prompts))
    return Experiment(Settings(n_prompts=n_prompts), prompts, plain, guided)
