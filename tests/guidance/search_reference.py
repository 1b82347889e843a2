"""Searches written from their formulas, slow and obvious, with nothing shared with the package's workspace.

A :class:`World` reads any text in a context of its own and draws as llama.cpp's samplers do (:class:`Draws`). Texts are
written one after the other, where the package grows them in one batch. Each search has switches that make it wrong: its
negative twins.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_gguf import Otter, _native
from otter_gguf.guidance.search import Search
from tests.guidance.reference import Draws, entropy
from tests.synthetic_models import Pair, load

Float64 = npt.NDArray[np.float64]

PROMPT = "The otter lives in the sea"


def open_exact(files: Pair | None = None, **options: Any) -> Otter:
    """The tiny model, with kernels and a cache that round alike whatever the shape of a batch."""
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    return load(files, **{**exact, "n_ctx": 2048, **options})


def ends_of(llm: Otter) -> frozenset[int]:
    """Tokens that end a text."""
    return frozenset(token for token in range(llm.n_vocab) if llm.model.is_eog(token))


def never_ending(llm: Otter) -> dict[int, float]:
    """A logit bias under which no text ends by itself."""
    return dict.fromkeys(ends_of(llm), -1e9)


def complete(llm: Otter, search: Search | None, n_tokens: int | None, **options: Any) -> Any:
    """What the package writes, with its records, which are plain JSON: ``choices[0]``."""
    bare = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 11, "step_records": True}
    out = llm.create_completion(PROMPT, max_tokens=n_tokens, guidance=search, **{**bare, **options})
    choice = out["choices"][0]
    assert json.loads(json.dumps(choice["steps"])) == choice["steps"]
    return choice


def tokens_of(choice: Any) -> list[int]:
    """The tokens of a completion."""
    return list(choice["rewards"]["tokens"])


def count_calls(llm: Otter, write: Callable[[], object]) -> float:
    """Batches that were decoded."""
    before = llm.context.timing()["calls"]
    write()
    return llm.context.timing()["calls"] - before


@dataclass
class Pen:
    """One text under way, and what it draws with."""

    draws: Draws
    text: list[int] = field(default_factory=list)
    ended: bool = False


class World:
    """How texts are read and drawn."""

    def __init__(
        self,
        llm: Otter,
        limit: int,
        *,
        seed: int = 11,
        temperature: float = 1.0,
        top_k: int = 0,
        bias: Mapping[int, float] | None = None,
    ) -> None:
        self.context = _native.Context(llm.model, n_ctx=1024, n_threads=1, type_k="f32", type_v="f32", flash_attn="off")
        self.prompt = llm.tokenize(PROMPT, special=True)
        self.ends: Collection[int] = ends_of(llm)
        self.limit, self.seed, self.temperature, self.top_k = limit, seed, temperature, top_k
        self.bias = np.zeros(llm.n_vocab, np.float32)
        for token, value in (bias or {}).items():
            self.bias[token] = value
        self.rng = np.random.default_rng(seed)
        self.held: list[int] = []
        self.known: dict[tuple[int, ...], tuple[Float64, float]] = {}

    def again(self) -> World:
        """From the beginning, with what is known of texts."""
        other = copy.copy(self)
        other.rng = np.random.default_rng(self.seed)
        return other

    def read(self, continuation: Sequence[int]) -> tuple[Float64, float]:
        """Logits (V,) and the reward behind the prompt and a continuation."""
        text = (*self.prompt, *continuation)
        if text not in self.known:
            pairs = enumerate(zip(self.held, text[:-1], strict=False))
            kept = next((i for i, (a, b) in pairs if a != b), min(len(self.held), len(text) - 1))
            assert self.context.sequence_remove(0, kept)
            new = np.asarray(text[kept:], np.int32)
            positions = np.arange(kept, len(text), dtype=np.int32)
            self.context.decode(new, positions, np.zeros(len(new), np.int32), positions == len(text) - 1)
            self.held = list(text)
            logits = self.context.logits()[0].astype(np.float64)
            self.known[text] = logits, float(self.context.rewards()[0, 0])
        return self.known[text]

    def reward(self, continuation: Sequence[int]) -> float:
        """Of prompt and continuation."""
        return self.read(continuation)[1]

    def pen(self) -> Pen:
        """That of plain decoding."""
        return Pen(Draws(self.seed))

    def twin(self, pen: Pen) -> Pen:
        """Another that goes on from the same text."""
        return Pen(Draws(int(self.rng.integers(2**31))), list(pen.text), pen.ended)

    def twins(self, pen: Pen, count: int) -> list[Pen]:
        """``count`` that go on from the same text, itself the first."""
        return [pen, *(self.twin(pen) for _ in range(count - 1))]

    def biased(self, text: Sequence[int]) -> Float64:
        """(V,) what samplers see."""
        biased: Float64 = (self.read(text)[0].astype(np.float32) + self.bias).astype(np.float64)
        return biased

    def draw(self, pen: Pen) -> int:
        """A next token."""
        logits = self.biased(pen.text)
        order = np.argsort(-logits, kind="stable")[: self.top_k] if self.top_k else np.arange(len(logits))
        return int(order[pen.draws.choose(logits[order], self.temperature)])

    def draw_without(self, pen: Pen, refused: Sequence[int]) -> int:
        """A next token that has not been refused; the samplers see the rest best first."""
        logits = self.biased(pen.text)
        order = np.asarray([token for token in np.argsort(-logits, kind="stable") if token not in refused])
        order = order[: self.top_k or len(order)]
        return int(order[pen.draws.choose(logits[order], self.temperature)])

    def write(self, pen: Pen, length: int, until: Callable[[list[int]], bool] | None = None) -> None:
        """Draw up to a length, to the end of the text, or until enough is said."""
        while not pen.ended and len(pen.text) < min(length, self.limit):
            token = self.draw(pen)
            if token in self.ends:
                pen.ended = True
                return
            pen.text.append(token)
            if until is not None and until(pen.text):
                break
        pen.ended = pen.ended or len(pen.text) == self.limit


def best_of_n(world: World, n: int, pick: Callable[[Any], Any] = np.argmax) -> dict[str, Any]:
    """argmax_i R(x, y_i)."""
    pens = world.twins(world.pen(), n)
    for pen in pens:
        world.write(pen, world.limit)
    rewards = [world.reward(pen.text) for pen in pens]
    return {"candidates": [pen.text for pen in pens], "rewards": rewards, "choice": int(pick(rewards))}


def quantile(values: Sequence[float], alpha: float) -> float:
    """By linear interpolation between the values in order."""
    ordered = sorted(values)
    place = alpha * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def speculative_rejection(
    world: World, n: int, alpha: float, pause: int, *, keep_worst: bool = False, even: bool = False
) -> tuple[list[int], list[dict[str, Any]]]:
    """The text and, pause by pause, what was dropped. Wrong: the lower part is kept, or pauses come evenly."""
    live, finished, pauses = world.twins(world.pen(), n), [], []
    grown = 0
    while live:
        memory = pause * n // (n if even else len(live))
        length = world.limit if len(live) == 1 else max(grown + 1, memory + (grown if even else 0))
        for pen in live:
            world.write(pen, length)
        finished += [pen for pen in live if pen.ended]
        growing = [pen for pen in live if not pen.ended]
        rewards = [world.reward(pen.text) for pen in growing]
        live = []
        if growing:
            cutoff = quantile(rewards, alpha)
            kept = [i for i, reward in enumerate(rewards) if (reward <= cutoff if keep_worst else reward >= cutoff)]
            parts = [pen.text[grown:] for pen in growing]
            pauses.append({"begin": grown, "candidates": parts, "rewards": rewards, "cutoff": cutoff, "kept": kept})
            live = [growing[i] for i in kept]
        grown = length
    final = [world.reward(pen.text) for pen in finished]
    choice = int(np.argmax(final))
    pauses.append({"candidates": [list(pen.text) for pen in finished], "rewards": final, "choice": choice})
    return finished[choice].text, pauses


def chunk_beam(
    world: World, width: int, expansions: int, chunk: int | None, *, worst: bool = False
) -> tuple[list[int], list[dict[str, Any]]]:
    """The text and what was kept of each chunk. Wrong: the worst are kept."""
    beams = [world.pen()]
    chunks: list[dict[str, Any]] = []
    while not all(pen.ended for pen in beams):
        copies = expansions if chunks else width * expansions
        pool = [
            (parent, len(pen.text), twin)
            for parent, pen in enumerate(beams)
            for twin in (world.twins(pen, copies) if not pen.ended else [pen])
        ]
        for _, begin, pen in pool:
            world.write(pen, world.limit if chunk is None else begin + chunk)
        rewards = [world.reward(pen.text) for _, _, pen in pool]
        ranked = sorted(range(len(pool)), key=lambda i: rewards[i] if worst else -rewards[i])
        kept = ranked[:width]
        chunks.append(
            {
                "parents": [parent for parent, _, _ in pool],
                "candidates": [pen.text[begin:] for _, begin, pen in pool],
                "rewards": rewards,
                "kept": kept,
            }
        )
        beams = [pool[i][2] for i in kept]
    return beams[0].text, chunks


@dataclass
class Cards:
    """CARDS with its numbers. Wrong: a threshold that does not rise, segments of entropy below the limit, the worst of
    all tries."""

    target: float
    alpha: float = 0.5
    beta: float = 0.7
    entropy: float = 3.0
    shortest: int = 4
    longest: int = 64
    horizon: int = 128
    tries: int = 20
    hard: bool = False
    rising: bool = True
    ends_when_sure: bool = False
    worst: bool = False

    def threshold(self, prompt_reward: float, t: int) -> float:
        """min(r0 + t (r* - r0) / N, r*)."""
        first = (1 - self.alpha) * prompt_reward + self.alpha * self.target
        return min(first + (t if self.rising else 0) * (self.target - first) / self.horizon, self.target)

    def write(self, world: World) -> tuple[list[int], list[dict[str, Any]]]:
        """The text and its segments."""
        pen, segments = world.pen(), []
        prompt_reward = world.reward([])
        while not pen.ended:
            pen, segment = self.segment(world, pen, prompt_reward)
            segments.append(segment)
        return pen.text, segments

    def segment(self, world: World, pen: Pen, prompt_reward: float) -> tuple[Pen, dict[str, Any]]:
        """One segment, with all its tries."""
        begin = len(pen.text)
        start = list(pen.text)
        drawn: list[Pen] = []
        rewards: list[float] = []
        thresholds: list[float] = []
        accepted = False
        while not accepted and len(drawn) <= self.tries:
            if drawn:
                pen = Pen(pen.draws, list(start))
            world.write(pen, begin + self.longest, lambda text: self.ends(world, text, begin))
            drawn.append(pen)
            rewards.append(world.reward(pen.text))
            thresholds.append(self.threshold(prompt_reward, len(pen.text)))
            if len(drawn) <= self.tries:
                accepted = self.accepts(world, rewards[-1], thresholds[-1])
        pick = np.argmin if self.worst else np.argmax
        choice = len(drawn) - 1 if accepted else int(pick(rewards))
        parts = [other.text[begin:] for other in drawn]
        segment = {"begin": begin, "candidates": parts, "rewards": rewards, "thresholds": thresholds}
        taken = Pen(pen.draws, drawn[choice].text, drawn[choice].ended)
        return taken, {**segment, "choice": choice, "accepted": accepted}

    def ends(self, world: World, text: list[int], begin: int) -> bool:
        """Whether a segment ends here."""
        unsure = entropy(world.read(text)[0]) >= self.entropy
        return len(text) - begin >= self.shortest and unsure != self.ends_when_sure

    def accepts(self, world: World, reward: float, threshold: float) -> bool:
        """min(1, exp((R - threshold) / beta)), or R >= threshold."""
        if reward >= threshold or self.hard:
            return reward >= threshold
        return bool(world.rng.random() < np.exp((reward - threshold) / self.beta))


@dataclass
class Limit:
    """Plain decoding under a limit. Wrong: what is above the limit is refused, or the worst candidate replaces."""

    limit: float
    action: str = "stop"
    n_candidates: int = 10
    tries: int = 5
    below: bool = False
    worst: bool = False

    def passes(self, reward: float) -> bool:
        """Whether a token may stand."""
        return reward < self.limit if self.below else reward >= self.limit

    def write(self, world: World) -> tuple[list[int], list[dict[str, Any]], str]:
        """The text, its refusals, and why it ended."""
        pen = world.pen()
        refusals: list[dict[str, Any]] = []
        while len(pen.text) < world.limit:
            token = world.draw(pen)
            if token in world.ends:
                return pen.text, refusals, "stop"
            reward = world.reward([*pen.text, token])
            if not self.passes(reward):
                refusal: dict[str, Any] = {
                    "step": len(pen.text),
                    "candidates": [token],
                    "rewards": [reward],
                    "choice": None,
                }
                refusals.append(refusal)
                if self.action == "resample" and self.resample(world, pen, refusal):
                    return pen.text, refusals, "stop"
                if self.action == "replace":
                    pen = self.replace(world, pen, refusal)
                if refusal["choice"] is None:
                    return pen.text, refusals, "content_filter"
                token = refusal["candidates"][refusal["choice"]]
            pen.text.append(token)
        return pen.text, refusals, "length"

    def resample(self, world: World, pen: Pen, refusal: dict[str, Any]) -> bool:
        """Draw again; whether the text ends."""
        for _ in range(self.tries):
            token = world.draw_without(pen, refusal["candidates"])
            if token in world.ends:
                return True
            refusal["candidates"].append(token)
            refusal["rewards"].append(world.reward([*pen.text, token]))
            if self.passes(refusal["rewards"][-1]):
                refusal["choice"] = len(refusal["rewards"]) - 1
                return False
        return False

    def replace(self, world: World, pen: Pen, refusal: dict[str, Any]) -> Pen:
        """Try the best tokens; what writes on."""
        order = np.argsort(-world.biased(pen.text), kind="stable")[: self.n_candidates].tolist()
        others = [token for token in order if token not in (*refusal["candidates"], *world.ends)]
        rewards = [world.reward([*pen.text, token]) for token in others]
        best = int(np.argmin(rewards) if self.worst else np.argmax(rewards))
        refusal["candidates"] += others
        refusal["rewards"] += rewards
        if self.passes(rewards[best]):
            refusal["choice"] = best + 1
        return world.twins(pen, len(others))[best]
