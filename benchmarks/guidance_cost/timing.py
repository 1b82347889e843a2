"""Time of a token under each policy, beside plain decoding."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from otter_gguf import Otter
from otter_gguf.guidance.args import ARGS
from otter_gguf.guidance.base import Policy, State
from otter_gguf.guidance.contrast import Contrast
from otter_gguf.guidance.gated import Gated
from otter_gguf.guidance.rad import RAD
from otter_gguf.guidance.vocabulary import Vocabulary
from otter_gguf.loading import make_context
from otter_gguf.options import SamplingOptions

from .clock import NativeClock, Token, native_clock
from .settings import CANDIDATES, MOST_CANDIDATES, SIDECAR_TYPES, WARM_UP, Files, Settings, say
from .sides import Guided, Side, Stock

GREEDY = {"temperature": 0.0}


class EveryOtherStep(Gated):
    """A gate that is open in every other step: random weights are equally unsure everywhere, so no threshold would
    divide them. The entropy is computed in every step, as by any gate."""

    def applies_to(self, state: State) -> bool:
        """By turns."""
        return super().applies_to(state) and state.n_generated % 2 == 0


@dataclass(frozen=True)
class Arm:
    """One line of the table."""

    title: str
    guidance: Policy | None = None
    greedy: bool = True
    """Drawn greedily on both sides; else at temperature 0.8, plain decoding with llama.cpp's default chain."""
    rewards_by: str = "own"
    """``own``, or ``second`` model."""


_ARGS = ARGS(n_candidates=CANDIDATES)
_OWN = f"ARGS, {CANDIDATES} candidates, own rewards"
_HEAD, _HEAD_OF_ALL = "vocabulary head, 40 candidates", "vocabulary head, bonus on all tokens"

ARMS = {
    "plain": Arm("plain, a reward with every token"),
    "plain, sampled": Arm("plain, a reward with every token", greedy=False),
    "vocabulary": Arm(_HEAD, Vocabulary()),
    "vocabulary, sampled": Arm(_HEAD, Vocabulary(), greedy=False),
    "bonus first": Arm(_HEAD_OF_ALL, Vocabulary(order="bonus_first")),
    "bonus first, sampled": Arm(_HEAD_OF_ALL, Vocabulary(order="bonus_first"), greedy=False),
    "contrast": Arm("contrast of two prompts", Contrast(prompt=tuple(range(100, 116)))),
    "gated": Arm(f"{_OWN}, in every other step", EveryOtherStep(_ARGS, entropy=0.0), greedy=False),
    "args": Arm(_OWN, _ARGS),
    "rad": Arm(f"RAD, {MOST_CANDIDATES} candidates, own rewards", RAD(n_candidates=MOST_CANDIDATES)),
    "second": Arm(f"ARGS, {CANDIDATES} candidates, second model", _ARGS, rewards_by="second"),
}
BOTH_TYPES = tuple(name for name in ARMS if name.startswith(("plain", "vocabulary", "bonus first")))
"""Measured with a sidecar of each type; the others with the first."""


@dataclass
class Timing:
    """An arm's tokens beside those of plain decoding, round after round."""

    arm: Arm
    rounds: list[list[tuple[Token, Token]]] = field(default_factory=list)

    @property
    def pairs(self) -> list[tuple[Token, Token]]:
        """(the arm's token, plain decoding's) of all rounds."""
        return [pair for pairs in self.rounds for pair in pairs]

    @property
    def ratio(self) -> float:
        """Time over plain decoding's: the mean of the rounds."""
        return statistics.mean(ratio(pairs) for pairs in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """The figures."""
        ratios = [ours.seconds / plain.seconds for ours, plain in self.pairs]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        ours = [ours for ours, _ in self.pairs]
        return {
            "title": self.arm.title,
            "greedy": self.arm.greedy,
            "ratio": self.ratio,
            "ratio_quartiles": [quartiles[0], quartiles[2]],
            "ratio_rounds": [ratio(pairs) for pairs in self.rounds],
            "pairs": len(ratios),
            "ms": 1e3 * statistics.median(token.seconds for token in ours),
            "plain_ms": 1e3 * statistics.median(plain.seconds for _, plain in self.pairs),
            "tokens_computed": statistics.mean(token.tokens for token in ours),
            "python_share": python_share(ours),
            "python_ms": 1e3 * statistics.median(token.python for token in ours),
            "native_ms": native_profile(ours),
        }


def ratio(pairs: Sequence[tuple[Token, Token]]) -> float:
    """Median ratio of neighbours. Where steps are of several kinds, by the tokens that they compute (a gate), the
    medians of the kinds, weighted by how often they came."""
    kinds: defaultdict[int, list[float]] = defaultdict(list)
    for ours, plain in pairs:
        kinds[ours.tokens].append(ours.seconds / plain.seconds)
    return sum(len(ratios) * statistics.median(ratios) for ratios in kinds.values()) / len(pairs)


def python_share(tokens: Sequence[Token]) -> float:
    """Median share of a token's time outside the native layer; where steps are of several kinds, the greatest."""
    kinds: defaultdict[int, list[float]] = defaultdict(list)
    for token in tokens:
        kinds[token.tokens].append(token.python / token.seconds)
    return max(statistics.median(shares) for shares in kinds.values())


def native_profile(tokens: Sequence[Token]) -> dict[str, float]:
    """Mean milliseconds of a token in each native function, longest first."""
    names = {name for token in tokens for name in token.native}
    means = {name: 1e3 * statistics.mean(token.native.get(name, 0.0) for token in tokens) for name in names}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


class Bench:
    """Models loaded for one round.

    Args:
        otter: The base with its sidecar.
        stock: The base alone.
        second: The second model.
    """

    def __init__(self, otter: Otter, stock: Otter, second: Otter, settings: Settings, clock: NativeClock) -> None:
        self.otter, self.stock, self.second = otter, stock, second
        self.settings, self.clock = settings, clock
        self.stock_context = make_context(stock.model, stock.options)
        self.rng = np.random.default_rng(settings.seed)

    def prompt(self) -> list[int]:
        """Random tokens."""
        return [int(token) for token in self.rng.integers(0, self.stock.n_vocab, self.settings.prompt)]

    def plain(self, greedy: bool) -> Stock:
        """The other side of every pair."""
        sampling = SamplingOptions(**self._sampling(greedy))
        return Stock(self.stock.model, self.stock_context, sampling)

    def side(self, arm: Arm) -> Side:
        """An arm, ready to begin."""
        sampling = self._sampling(arm.greedy)
        if arm.rewards_by == "own":
            return Guided(self.otter, arm.guidance, sampling)
        return Guided(self.stock, arm.guidance, sampling, self.second)

    def _sampling(self, greedy: bool) -> dict[str, Any]:
        return {**(GREEDY if greedy else {}), "seed": self.settings.seed}

    def measure(self, arm: Arm) -> list[tuple[Token, Token]]:
        """An arm and plain decoding, token by token; who goes first alternates."""
        ours, plain = self.side(arm), self.plain(arm.greedy)
        self._begin(ours, plain)
        pairs: list[tuple[Token, Token]] = []
        for index in range(-WARM_UP, self.settings.steps):
            order = (ours, plain) if index % 2 else (plain, ours)
            tokens = [self._token(side) for side in order]
            if None in tokens:  # a text has ended
                self._begin(ours, plain)
                continue
            made = tokens if index % 2 else tokens[::-1]
            if index >= 0:
                pairs.append((made[0], made[1]))  # type: ignore[arg-type]
        return pairs

    def _begin(self, *sides: Side) -> None:
        prompt = self.prompt()
        for side in sides:
            side.begin(prompt)

    def _token(self, side: Side) -> Token | None:
        self.clock.reset()
        begin = time.perf_counter()
        goes_on = side.step()
        seconds = time.perf_counter() - begin
        return Token(seconds, dict(self.clock.seconds), self.clock.tokens) if goes_on else None


@contextlib.contextmanager
def loaded(files: Files, type: str, settings: Settings, *, reverse: bool) -> Iterator[Bench]:
    """Everything in memory, in an order or in the reverse; who comes first gets the slower memory, by some percent."""
    paths = {
        "otter": (files.base, files.sidecar(type)),
        "stock": (files.base, None),
        "second": (files.second, files.second_head),
    }
    with ExitStack() as stack:
        models = {}
        for name in reversed(paths) if reverse else paths:
            base, sidecar = paths[name]
            models[name] = stack.enter_context(Otter(base, otter=sidecar, **settings.load_options))
        bench = Bench(**models, settings=settings, clock=stack.enter_context(native_clock()))
        stack.callback(bench.stock_context.close)
        yield bench


def measure_time(files: Files, settings: Settings) -> dict[str, dict[str, Any]]:
    """Every arm, by sidecar type."""
    timings: dict[str, dict[str, Timing]] = {type: {} for type in SIDECAR_TYPES}
    for round in range(settings.rounds):
        for type in SIDECAR_TYPES:
            with loaded(files, type, settings, reverse=round % 2 == 1) as bench:
                for name, arm in ARMS.items():
                    if type == SIDECAR_TYPES[0] or name in BOTH_TYPES:
                        say(f"round {round + 1}, sidecar {type}: {name}")
                        timing = timings[type].setdefault(name, Timing(arm))
                        timing.rounds.append(bench.measure(arm))
    return {type: {name: timing.to_dict() for name, timing in rows.items()} for type, rows in timings.items()}


def saved(times: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """1 - extra time over the second model's extra time, by sidecar type and arm."""
    extra = times[SIDECAR_TYPES[0]]["second"]["ratio"] - 1
    return {
        type: {name: 1 - (row["ratio"] - 1) / extra for name, row in rows.items() if name != "second"}
        for type, rows in times.items()
    }
