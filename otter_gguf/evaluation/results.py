"""From generated texts to figures: means with standard errors over prompts, differences, costs.

Every prompt has a text for each seed. Their values are averaged first. What is left, one value a prompt, is
independent: the standard error of a mean is the standard deviation (n - 1) of these values over sqrt(prompts). A
difference from plain decoding is taken prompt by prompt before it is averaged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..guidance import spec
from ..guidance.base import Policy
from ..guidance.rules import NEEDED, default_of, fields_of, innermost
from .memory import Memory
from .metrics import Float64, distinct_n, perplexity
from .readings import Reading
from .runner import PLAIN, SECOND, Arm
from .store import Generation

_DISTINCT = (1, 2, 3)
FORMAT, VERSION = "otter-eval", 1


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its standard error (NaN with fewer than two prompts)."""

    mean: float
    error: float

    @classmethod
    def of(cls, per_prompt: Float64) -> Estimate:
        """From one value a prompt, (n,); prompts with NaN are left out."""
        known = per_prompt[~np.isnan(per_prompt)]
        if not known.size:
            return cls(math.nan, math.nan)
        error = float(known.std(ddof=1)) / math.sqrt(known.size) if known.size > 1 else math.nan
        return cls(float(known.mean()), error)

    def to_dict(self) -> dict[str, float | None]:
        """``mean`` and ``se``; null where there is no number."""
        return {"mean": number_or_none(self.mean), "se": number_or_none(self.error)}


@dataclass(frozen=True)
class Cost:
    """What decoding with an arm takes, without reading the prompt."""

    tokens: int
    """Generated, all texts together."""
    ms_per_token: float
    tokens_per_second: float
    passes_per_token: float
    """Calls of llama_decode."""
    fed_per_token: float
    """Tokens that went through a model, candidates included."""
    time_ratio: float
    """Time a token over that of plain decoding: the median over the pairs of texts of one prompt and seed, which were
    generated within moments of each other."""
    extra_memory: int
    """Bytes beyond plain decoding's."""
    guided_share: float | None = None
    """Steps in which guidance had a say, of all; None where no step was recorded."""
    changed_share: float | None = None
    """Guided steps in which its best score was another candidate's than the best logit, of all guided steps."""
    extra_time_saved: float | None = None
    """1 - extra time / extra time of the second-model baseline; extra time = time_ratio - 1."""
    extra_memory_saved: float | None = None
    """1 - extra memory / extra memory of the second-model baseline."""


@dataclass(frozen=True)
class ArmResult:
    """Figures of one way of decoding."""

    name: str
    engine: str
    metrics: dict[str, Estimate]
    """By name; see ``docs/evaluation.md``."""
    differences: dict[str, Estimate]
    """The same, minus plain decoding's."""
    cost: Cost
    lengths: Estimate
    """Tokens of a text."""
    ended: float
    """Share of the texts that ended by themselves."""
    weight: float | None = None
    """The policy's, where it has one."""
    family: str = ""
    """What arms have in common that differ in their weight alone."""
    token_rewards: tuple[float, ...] = field(default=(), repr=False)
    """The guide's, behind every token of every text."""

    @property
    def perplexity(self) -> float:
        """Under the base: exp of the mean cross-entropy, every prompt with the same weight. NaN without tokens."""
        return perplexity(self.metrics["cross_entropy"].mean) if "cross_entropy" in self.metrics else math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "engine": self.engine,
            "weight": self.weight,
            "perplexity": number_or_none(self.perplexity),
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "differences": {name: estimate.to_dict() for name, estimate in self.differences.items()},
            "tokens_per_text": self.lengths.to_dict(),
            "ended": self.ended,
            "cost": {
                name: number_or_none(value) if isinstance(value, float) else value
                for name, value in asdict(self.cost).items()
            },
        }


@dataclass(frozen=True)
class Results:
    """A finished evaluation."""

    header: dict[str, Any]
    """What was run: the files, the prompts' number, the settings."""
    judge: str
    embedder: str
    memory: dict[str, Memory]
    """By arm."""
    arms: tuple[ArmResult, ...]
    """Plain decoding first."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the schema stands in ``docs/evaluation.md``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "run": {name: value for name, value in self.header.items() if name not in ("format", "version")},
            "judge": self.judge,
            "embedder": self.embedder,
            "memory": {name: memory.to_dict() for name, memory in self.memory.items()},
            "arms": [arm.to_dict() for arm in self.arms],
        }


@dataclass(frozen=True)
class Judged:
    """All that is known of one text."""

    generation: Generation
    reading: Reading
    judge: float
    diversity: float
    coherence: float

    def values(self) -> dict[str, float]:
        """Figures of a single text."""
        return {
            "judge": self.judge,
            "reward": math.nan if self.reading.reward is None else self.reading.reward,
            "diversity": self.diversity,
            "coherence": self.coherence,
            "cross_entropy": self.reading.cross_entropy,
        }


def number_or_none(value: float) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def summarize(
    arms: Sequence[Arm], texts: Sequence[Judged], n_prompts: int, memory: Mapping[str, Memory]
) -> tuple[ArmResult, ...]:
    """Figures of all arms, in their order; each is compared with the arm named ``plain``, and with the first one that
    runs on a second model, if there is one.

    Args:
        arms: Every one with a text for every prompt and seed.
        texts: Of all arms, in any order.
        n_prompts: How many there are.
        memory: By arm.
    """
    by_arm: dict[str, list[Judged]] = {arm.name: [] for arm in arms}
    for text in texts:
        by_arm[text.generation.arm].append(text)
    plain = by_arm[PLAIN]
    columns = {name: per_prompt(some, n_prompts) for name, some in by_arm.items()}
    costs = {name: cost_of(some, plain, memory[name].total - memory[PLAIN].total) for name, some in by_arm.items()}
    second = next((costs[arm.name] for arm in arms if arm.engine == "second"), None)
    guided = {name: cost if name == PLAIN else saved(cost, second) for name, cost in costs.items()}
    return tuple(arm_result(arm, by_arm[arm.name], columns[arm.name], columns[PLAIN], guided[arm.name]) for arm in arms)


def arm_result(
    arm: Arm, texts: Sequence[Judged], columns: Mapping[str, Float64], plain: Mapping[str, Float64], cost: Cost
) -> ArmResult:
    """Figures of one arm from its values by prompt, see :func:`per_prompt`."""
    known = [name for name, column in columns.items() if name != "tokens" and not np.isnan(column).all()]
    weight, family = weight_of(arm)
    return ArmResult(
        name=arm.name,
        engine=arm.engine,
        metrics={name: Estimate.of(columns[name]) for name in known},
        differences={name: Estimate.of(columns[name] - plain[name]) for name in known},
        cost=cost,
        lengths=Estimate.of(columns["tokens"]),
        ended=statistics.fmean(text.generation.finish_reason == "stop" for text in texts),
        weight=weight,
        family=family,
        token_rewards=tuple(value for text in texts for value in text.reading.token_rewards or ()),
    )


def per_prompt(texts: Sequence[Judged], n_prompts: int) -> dict[str, Float64]:
    """One value a prompt, (n_prompts,) each: means over the seeds; distinct-n over the prompt's texts together."""
    by_prompt: list[list[Judged]] = [[] for _ in range(n_prompts)]
    for text in texts:
        by_prompt[text.generation.prompt].append(text)
    columns: dict[str, list[float]] = {}
    for group in by_prompt:
        rows = [{**text.values(), "tokens": float(text.generation.tokens)} for text in group]
        values = {name: _mean([row[name] for row in rows]) for name in rows[0]}
        values |= {f"distinct_{n}": distinct_n([text.generation.text for text in group], n) for n in _DISTINCT}
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: np.asarray(column, np.float64) for name, column in columns.items()}


def _mean(values: Sequence[float]) -> float:
    """Without NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def decode_seconds(texts: Sequence[Judged]) -> dict[tuple[int, int], float]:
    """By prompt and round: the time of each call without reading the prompt.

    What reading takes is the median over the prompt's rounds, so that a busy moment in one of them does not count.
    """
    readings: dict[int, list[float]] = {}
    for text in texts:
        readings.setdefault(text.generation.prompt, []).append(text.generation.prompt_seconds)
    reading = {prompt: statistics.median(seconds) for prompt, seconds in readings.items()}
    runs = [text.generation for text in texts]
    return {(run.prompt, run.round): run.seconds - reading[run.prompt] for run in runs}


def time_ratio(texts: Sequence[Judged], plain: Sequence[Judged]) -> float:
    """Median over prompts and seeds of the time a token over plain decoding's; NaN if no pair has tokens."""
    mine, others = _seconds_per_token(texts), _seconds_per_token(plain)
    ratios = [seconds / others[place] for place, seconds in mine.items() if others.get(place, 0.0) > 0]
    return statistics.median(ratios) if ratios else math.nan


def _seconds_per_token(texts: Sequence[Judged]) -> dict[tuple[int, int], float]:
    """By prompt and round; texts without tokens are left out."""
    tokens = {(text.generation.prompt, text.generation.round): text.generation.tokens for text in texts}
    return {place: seconds / tokens[place] for place, seconds in decode_seconds(texts).items() if tokens[place]}


def cost_of(texts: Sequence[Judged], plain: Sequence[Judged], extra_memory: int) -> Cost:
    """What the texts of one arm took."""
    runs = [text.generation for text in texts]
    tokens, seconds = sum(run.tokens for run in runs), sum(decode_seconds(texts).values())
    per_token = 1 / tokens if tokens else math.nan
    steps, guided = sum(run.steps or 0 for run in runs), sum(run.guided_steps or 0 for run in runs)
    return Cost(
        tokens=tokens,
        ms_per_token=1000 * seconds * per_token,
        tokens_per_second=tokens / seconds if seconds > 0 else math.nan,
        passes_per_token=sum(run.passes for run in runs) * per_token,
        fed_per_token=sum(run.fed for run in runs) * per_token,
        time_ratio=time_ratio(texts, plain),
        extra_memory=extra_memory,
        guided_share=guided / steps if steps else None,
        changed_share=sum(run.changed_steps or 0 for run in runs) / guided if guided else None,
    )


def saved(cost: Cost, baseline: Cost | None) -> Cost:
    """The cost with its two shares of the second-model baseline's extra cost that are not paid."""
    if baseline is None:
        return cost
    return replace(
        cost,
        extra_time_saved=_saved(cost.time_ratio - 1, baseline.time_ratio - 1),
        extra_memory_saved=_saved(cost.extra_memory, baseline.extra_memory),
    )


def _saved(extra: float, baseline: float) -> float | None:
    """None where the baseline costs nothing."""
    return 1 - extra / baseline if baseline > 0 else None


def weight_of(arm: Arm) -> tuple[float | None, str]:
    """How strongly an arm's policy guides, and its line without that: the same for arms that differ in it alone.

    The field is ``weight``, RAD's is ``beta``. None and the arm's name where there is none.
    """
    rule = innermost(arm.guidance)
    fields = {field.name: field for field in fields_of(type(rule))} if isinstance(rule, Policy) else {}
    weight = fields.get("weight") or fields.get("beta")
    if arm.guidance is None or weight is None or default_of(weight) is NEEDED:
        return None, arm.name
    family = spec.format(spec.override(arm.guidance, weight.name, default_of(weight)))
    return float(getattr(rule, weight.name)), family + (SECOND if arm.name.endswith(SECOND) else "")
