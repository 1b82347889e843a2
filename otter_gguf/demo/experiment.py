"""The demo's experiment: continue story beginnings plainly and guided, let an independent judge read both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import ConfigError
from ..guidance.args import ARGS
from ..guidance.base import Policy
from ..model import Otter
from ..options import NO_CUTS
from .assets import Pair
from .judge import Judge

_GRAM = 3


@dataclass(frozen=True)
class Settings:
    """What is run. Both sides draw from the same number of candidates at the same temperature."""

    n_prompts: int = 200
    max_tokens: int = 48
    """At most so many tokens a continuation; a story may end earlier."""
    temperature: float = 0.8
    n_candidates: int = 10
    """Plain decoding: ``top_k``. Guided decoding: candidates whose rewards are looked at."""
    weight: float = 2.0
    """Logits per unit of reward."""
    seed: int = 1
    """Prompt i is continued with seed + i, on both sides."""

    def __post_init__(self) -> None:
        if self.n_prompts < 2:
            raise ConfigError(f"--prompts {self.n_prompts}: a standard error needs at least 2")
        if self.max_tokens < 1:
            raise ConfigError(f"-n {self.max_tokens}: expected at least 1 token")
        if self.n_candidates < 1:
            raise ConfigError(f"--candidates {self.n_candidates}: expected at least 1")


@dataclass(frozen=True)
class Continuation:
    """One generated text."""

    pieces: tuple[str, ...]
    """Text of each token."""
    rewards: tuple[float, ...]
    """Reward of the text up to each token."""
    seconds: float
    """Time for all tokens, without the prompt."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Side:
    """All continuations of one way of decoding, with the judge's scores."""

    continuations: tuple[Continuation, ...]
    scores: tuple[float, ...]
    """The judge's, -1 to 1, one a continuation."""
    unseen_scores: tuple[float, ...]
    """The judge's by those words only that the preference pairs never contain."""

    @property
    def n_tokens(self) -> int:
        """Generated tokens."""
        return sum(len(continuation.pieces) for continuation in self.continuations)

    @property
    def ms_per_token(self) -> float:
        """Mean wall time of a generated token."""
        return 1000 * sum(continuation.seconds for continuation in self.continuations) / max(1, self.n_tokens)

    @property
    def final_rewards(self) -> list[float]:
        """Reward of each whole continuation."""
        return [continuation.rewards[-1] for continuation in self.continuations if continuation.rewards]

    @property
    def distinct(self) -> float:
        """Share of different three-word sequences among all: guidance must not buy its score with monotony."""
        grams = [
            tuple(words[index : index + _GRAM])
            for words in (continuation.text.split() for continuation in self.continuations)
            for index in range(len(words) - _GRAM + 1)
        ]
        return len(set(grams)) / max(1, len(grams))

    def to_dict(self) -> dict[str, float | int]:
        """For ``--json``."""
        return {
            "judge_mean": statistics.fmean(self.scores),
            "judge_se": standard_error(self.scores),
            "judge_unseen_mean": statistics.fmean(self.unseen_scores),
            "judge_unseen_se": standard_error(self.unseen_scores),
            "reward_mean": statistics.fmean(self.final_rewards),
            "distinct_3": self.distinct,
            "tokens": self.n_tokens,
            "ms_per_token": self.ms_per_token,
        }


@dataclass(frozen=True)
class Difference:
    """Guided minus plain, over the same prompts."""

    mean: float
    error: float
    """Standard error of the mean, from the differences prompt by prompt."""

    @classmethod
    def of(cls, guided: Sequence[float], plain: Sequence[float]) -> Difference:
        """Paired by position."""
        differences = [after - before for after, before in zip(guided, plain, strict=True)]
        return cls(statistics.fmean(differences), standard_error(differences))

    @property
    def in_errors(self) -> float:
        """How many standard errors the mean is away from 0."""
        return self.mean / self.error if self.error else math.copysign(math.inf, self.mean) if self.mean else 0.0


@dataclass(frozen=True)
class Experiment:
    """Prompts with both sides' continuations."""

    settings: Settings
    prompts: tuple[str, ...]
    plain: Side
    guided: Side

    @property
    def difference(self) -> Difference:
        """By all of the judge's words."""
        return Difference.of(self.guided.scores, self.plain.scores)

    @property
    def unseen_difference(self) -> Difference:
        """By the judge's words that the preference pairs never contain."""
        return Difference.of(self.guided.unseen_scores, self.plain.unseen_scores)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "prompts": len(self.prompts),
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
            "n_candidates": self.settings.n_candidates,
            "weight": self.settings.weight,
            "plain": self.plain.to_dict(),
            "guided": self.guided.to_dict(),
            "difference": self.difference.mean,
            "difference_se": self.difference.error,
            "difference_in_se": self.difference.in_errors,
            "unseen_difference": self.unseen_difference.mean,
            "unseen_difference_se": self.unseen_difference.error,
            "ms_per_token_ratio": self.guided.ms_per_token / self.plain.ms_per_token,
        }


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def run_experiment(
    llm: Otter, prompts: Sequence[str], settings: Settings, progress: Callable[[], object] = lambda: None
) -> Experiment:
    """Continue every prompt plainly, then guided; ``progress`` is called after each continuation.

    The sides alternate prompt by prompt, so that a busy moment of the machine falls on both.
    """
    if settings.n_prompts > len(prompts):
        raise ConfigError(f"--prompts {settings.n_prompts}: the demo ships {len(prompts)}")
    chosen = tuple(prompts[: settings.n_prompts])
    guidance = ARGS(weight=settings.weight, n_candidates=settings.n_candidates)
    plain: list[Continuation] = []
    guided: list[Continuation] = []
    for index, prompt in enumerate(chosen):
        for policy, side in ((None, plain), (guidance, guided)):
            side.append(continue_prompt(llm, prompt, settings, policy, settings.seed + index))
            progress()
    return Experiment(settings, chosen, _judged(plain), _judged(guided))


def continue_prompt(llm: Otter, prompt: str, settings: Settings, policy: Policy | None, seed: int) -> Continuation:
    """One continuation; the clock runs from the fed prompt to the last token."""
    sampling: dict[str, Any] = {"temperature": settings.temperature, "seed": seed}
    if policy is None:
        sampling |= {**NO_CUTS, "top_k": settings.n_candidates}
    steps = llm.generate(llm.tokenize(prompt), guidance=policy, **sampling)
    begin = time.perf_counter()
    taken = list(islice(steps, settings.max_tokens))
    seconds = time.perf_counter() - begin
    return Continuation(
        pieces=tuple(llm.model.token_bytes(step.token).decode("utf-8", "replace") for step in taken),
        rewards=tuple(float(step.rewards[0]) for step in taken),
        seconds=seconds,
    )


def rank_pairs(llm: Otter, pairs: Sequence[Pair]) -> float:
    """Share of the pairs whose kind continuation gets the higher reward."""
    right = sum(
        llm.score(pair.prompt, pair.chosen).reward > llm.score(pair.prompt, pair.rejected).reward for pair in pairs
    )
    return right / len(pairs)


def _judged(continuations: Sequence[Continuation]) -> Side:
    everything, unseen = Judge.load("all"), Judge.load("unseen")
    return Side(
        continuations=tuple(continuations),
        scores=tuple(everything.score(continuation.text) for continuation in continuations),
        unseen_scores=tuple(unseen.score(continuation.text) for continuation in continuations),
    )
