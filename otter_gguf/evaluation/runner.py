"""Texts by several ways of decoding, in turns, so that a busy moment of the machine falls on all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..guidance.base import Policy
from ..options import NO_CUTS
from .memory import Memory
from .store import Generation, Store

if TYPE_CHECKING:
    from ..completion import CompletionResponse
    from ..guidance.search import Search
    from ..model import Otter

PLAIN = "plain"
"""Name of plain decoding, the arm that the others are compared with."""
SECOND = " (second model)"
"""Ends the name of an arm whose rewards are a second model's."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all arms."""

    max_tokens: int = 128
    """Of a text."""
    seeds: int = 3
    """Rounds over all prompts."""
    seed: int = 1
    """Of the first prompt's first text."""
    temperature: float = 0.8
    top_k: int = 10
    """Plain decoding, and searches where they try, draw from so many of the best tokens with no other cut (top-p 1,
    min-p 0). Token-level policies draw from their own candidates."""
    ignore_eos: bool = False
    """Forbid the tokens that end a text, so that all texts are as long."""

    def __post_init__(self) -> None:
        for name, flag in (("max_tokens", "-n"), ("seeds", "--seeds"), ("top_k", "--top-k")):
            if getattr(self, name) < 1:
                raise ConfigError(f"{flag} {getattr(self, name)}: expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: expected 0 or more, for the run must be repeatable")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"--temp {self.temperature}: expected 0 or more")

    def seed_of(self, prompt: int, round: int, n_prompts: int) -> int:
        """The seed of one text, the same for all arms; no two texts of an arm share one."""
        return self.seed + round * n_prompts + prompt


@dataclass(frozen=True)
class Opened:
    """A model in memory with what it occupies."""

    llm: Otter
    memory: Memory


@dataclass(frozen=True)
class Engine:
    """What an arm runs on: a model, alone or with a second one that gives the rewards."""

    base: Opened
    reward_model: Opened | None = None

    @property
    def models(self) -> list[Opened]:
        """One or two."""
        return [self.base] if self.reward_model is None else [self.base, self.reward_model]

    def complete(self, prompt: str, **options: Any) -> CompletionResponse:
        """One completion; with guidance the second model, if there is one, is asked for the rewards."""
        if self.reward_model is not None and options.get("guidance") is not None:
            options["reward_model"] = self.reward_model.llm
        response: CompletionResponse = self.base.llm.create_completion(prompt, stream=False, **options)
        return response


@dataclass(frozen=True)
class Arm:
    """One way of decoding."""

    name: str
    engine: str
    """Key of the engine that it runs on."""
    guidance: Policy | Search | None = None
    helpers: tuple[Opened, ...] = ()
    """Further models that the guidance itself brings (those that DExperts compares with)."""


@dataclass(frozen=True)
class _Measured:
    answer: CompletionResponse
    seconds: float
    passes: int
    fed: int


def run_arms(
    arms: Sequence[Arm],
    engines: Mapping[str, Engine],
    prompts: Sequence[str],
    settings: Settings,
    store: Store,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Generate all texts that the store lacks.

    The arms take turns prompt by prompt, each prompt beginning with another of them. What was generated is saved also
    when the run is interrupted. ``progress`` is called after each text.
    """
    biases = {name: _no_end(engine.base.llm) if settings.ignore_eos else {} for name, engine in engines.items()}

    def options(arm: Arm, prompt: int, round: int) -> dict[str, Any]:
        return _options(arm, settings, settings.seed_of(prompt, round, len(prompts)), biases[arm.engine])

    missing = [turn for turn in _turns(arms, len(prompts), settings.seeds) if (turn[0].name, *turn[1:]) not in store]
    for arm in {arm.name: arm for arm, _, _ in missing}.values():
        # What is done once (pages read from disk, vocabularies compared) is nobody's cost, and what cannot work at all
        # is said before the first text.
        engines[arm.engine].complete(prompts[0], max_tokens=1, **options(arm, 0, 0))
    try:
        for arm, index, round in missing:
            engine, prompt = engines[arm.engine], prompts[index]
            store.add(_generate(arm, engine, prompt, index, round, settings, options(arm, index, round)))
            progress()
    finally:
        store.save()


def _turns(arms: Sequence[Arm], n_prompts: int, n_rounds: int) -> Iterator[tuple[Arm, int, int]]:
    """Arm, prompt and round of each text."""
    for round in range(n_rounds):
        for prompt in range(n_prompts):
            for place in range(len(arms)):
                yield arms[(place + prompt) % len(arms)], prompt, round


def _options(arm: Arm, settings: Settings, seed: int, bias: dict[int, float]) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": settings.temperature, "seed": seed, "guidance": arm.guidance}
    if not isinstance(arm.guidance, Policy):
        options |= {**NO_CUTS, "top_k": settings.top_k}
    if bias:
        options["logit_bias"] = bias
    return options


def _generate(
    arm: Arm, engine: Engine, prompt: str, index: int, round: int, settings: Settings, options: dict[str, Any]
) -> Generation:
    """One text. Its prompt is read once more alone, so that the cost of reading it can be taken off."""
    reading = _measured(engine, arm, prompt, max_tokens=0, **options)
    whole = _measured(engine, arm, prompt, max_tokens=settings.max_tokens, **options)
    choice, usage = whole.answer["choices"][0], whole.answer["usage"]
    records: dict[str, int] = {}
    if round == 0 and arm.guidance is not None:
        again = engine.complete(prompt, max_tokens=settings.max_tokens, step_records=True, **options)
        records = count_steps(again["choices"][0]["steps"])
    return Generation(
        arm=arm.name,
        prompt=index,
        round=round,
        text=choice["text"],
        tokens=usage["completion_tokens"] if usage else 0,
        finish_reason=choice["finish_reason"] or "",
        seconds=whole.seconds,
        prompt_seconds=reading.seconds,
        passes=whole.passes - reading.passes,
        fed=whole.fed - reading.fed,
        **records,
    )


def count_steps(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The step counts of a :class:`Generation` from the records of one text; {} where they are not a policy's (searches
    record segments, whole texts, or the tokens that they refused)."""
    tokens = [record for record in records if record["kind"] == "token" and "guided" in record]
    guided = [record for record in tokens if record["guided"]]
    if len(tokens) < len(records) or not tokens:
        return {}
    changed = sum(_best(record["scores"]) != _best(record["logits"]) for record in guided)
    return {"steps": len(tokens), "guided_steps": len(guided), "changed_steps": changed}


def _best(values: Sequence[float | None]) -> int:
    """Index of the highest; records have None for what is ruled out."""
    return int(np.nanargmax(np.asarray(values, np.float64)))


def _measured(engine: Engine, arm: Arm, prompt: str, **options: Any) -> _Measured:
    models = [*engine.models, *arm.helpers]
    passes, fed = _counters(models)
    begin = time.perf_counter()
    answer = engine.complete(prompt, **options)
    seconds = time.perf_counter() - begin
    passes_after, fed_after = _counters(models)
    return _Measured(answer, seconds, passes_after - passes, fed_after - fed)


def _counters(models: Sequence[Opened]) -> tuple[int, int]:
    """Calls of llama_decode and tokens fed since the models were opened."""
    timings = [opened.llm.context.timing() for opened in models]
    return sum(int(timing["calls"]) for timing in timings), sum(int(timing["tokens"]) for timing in timings)


def _no_end(llm: Otter) -> dict[int, float]:
    """A bias that rules out every token that ends a text."""
    return {token: -math.inf for token in range(llm.n_vocab) if llm.model.is_eog(token)}
