"""Guided decoding written from its formulas, slow and obvious, with nothing shared with the package's step loop.

A :class:`Text` grows in a context of its own, one token a batch; candidates are fed one by one and taken back. Scores
are float64 numpy. :class:`Draws` gives the numbers that llama.cpp's sampler would draw.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import synthetic
from otter_gguf import Otter, _native
from otter_gguf.config import HeadConfig, InsertionConfig
from tests.synthetic_models import Pair, load, pair

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

RANK = 32
NEXT = HeadConfig("next", ("reward",), kind="vocabulary", rank=RANK)

EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": False}
"""A cache that rounds nothing, and no attention kernel that does."""

PLAIN_CHAIN: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Sampling options that leave the temperature and the draw alone."""


@functools.cache
def vocabulary_pair(*, others: tuple[str, ...] = ()) -> Pair:
    """The tiny base with a sidecar that has a value head and a vocabulary head, and more of the latter."""
    base, geometry = pair().base, synthetic.GEOMETRIES["tiny"]
    more = tuple(HeadConfig(name, ("reward",), kind="vocabulary", rank=RANK) for name in others)
    config = InsertionConfig.uniform(geometry.base, 32, 1, 64, heads=(HeadConfig(), NEXT, *more))
    path = base.with_name(f"vocabulary-{'-'.join(others)}.otter.gguf")
    synthetic.write_sidecar(path, base, config, "F32", 5)
    return Pair(base, path)


def open_exact(files: Pair | None = None, **options: Any) -> Otter:
    """The tiny model with both heads and one thread, where nothing is rounded."""
    return load(files or vocabulary_pair(), **{**EXACT, **options})


def token_table(sidecar: Path, head: str = NEXT.name) -> Float64:
    """(V, rank): the token table of a vocabulary head as the file holds it."""
    with _native.GgufFile(str(sidecar)) as file:
        name = f"cls.table.{head}.otter.weight"
        info = next(tensor for tensor in file.tensors if tensor.name == name)
        return _native.dequantize(file.tensor_data(name), info.type, info.shape[0]).astype(np.float64)


class Text:
    """A text that grows token by token, in a context of its own."""

    def __init__(self, llm: Otter, tokens: Sequence[int]) -> None:
        self.context = _native.Context(
            llm.model, n_ctx=512, n_threads=1, type_k="f32", type_v="f32", flash_attn="off", rewards=llm.n_rewards > 0
        )
        self.length = 0
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The next token of the text."""
        self._feed(token)
        self.length += 1
        self.logits: Float64 = self.context.logits()[0].astype(np.float64)

    def _feed(self, token: int) -> None:
        tokens, positions, sequences = np.asarray([[token], [self.length], [0]], np.int32)
        self.context.decode(tokens, positions, sequences, np.asarray([True]))

    def rewards(self, candidates: Int64) -> Float64:
        """(k, n_rewards) of the text with each of the candidates."""
        rewards = []
        for token in candidates.tolist():
            self._feed(token)
            rewards.append(self.context.rewards()[0])
            assert self.context.sequence_remove(0, self.length)
        return np.asarray(rewards, np.float64)

    def reward(self, candidates: Int64) -> Float64:
        """(k,) the first of them."""
        column: Float64 = self.rewards(candidates)[:, 0]
        return column

    def vocabulary(self, table: Float64, head: int = 0) -> Float64:
        """(V,) ``<query, t(v)> + constant`` of every next token. Only before :meth:`rewards`."""
        query = self.context.queries(head)[0].astype(np.float64)
        scores: Float64 = table @ query[:-1] + query[-1]
        return scores


class Draws:
    """llama.cpp's draws: std::mt19937, and std::uniform_real_distribution<double> from two of its numbers."""

    def __init__(self, seed: int) -> None:
        self.words = np.random.RandomState(seed)

    def uniform(self) -> float:
        """In [0, 1)."""
        low, high = self.words.randint(0, 2**32, size=2, dtype=np.uint32).tolist()
        return float((low + high * 2.0**32) / 2.0**64)

    def choose(self, scores: Float64, temperature: float) -> int:
        """Index of the best (temperature 0) or of a draw from softmax(scores / temperature)."""
        if temperature == 0:
            return int(np.argmax(scores))
        scaled = scores.astype(np.float32) / np.float32(temperature)
        sums = np.cumsum(np.exp(scaled - scaled.max()), dtype=np.float64)
        return int(np.argmax(sums >= sums[-1] * self.uniform()))


END = 319
"""The tiny model's end of text."""

Rule = Callable[[Text], tuple[Int64, Float64]]
"""Candidates and their scores for the next token of a text."""


def best(values: Float64, k: int, forbidden: Sequence[int] = (END,)) -> Int64:
    """The k highest, best first, without some tokens."""
    order = np.argsort(-values, kind="stable")
    return order[~np.isin(order, forbidden)][:k]


def softmax(logits: Float64) -> Float64:
    """Probabilities."""
    powers = np.exp(logits - logits.max())
    probabilities: Float64 = powers / powers.sum()
    return probabilities


def entropy(logits: Float64) -> float:
    """Of softmax(logits), in nats."""
    p = softmax(logits)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def write(
    text: Text, rule: Rule, n_tokens: int, temperature: float, seed: int, auxiliary: Sequence[Text] = ()
) -> list[int]:
    """Tokens chosen by a rule, until the end of text. Auxiliary texts read them too."""
    draws, written = Draws(seed), []
    for _ in range(n_tokens):
        tokens, scores = rule(text)
        token = int(tokens[draws.choose(scores, temperature)])
        if token == END:
            break
        written.append(token)
        for reader in (text, *auxiliary):
            reader.append(token)
    return written


def guided_tokens(llm: Otter, prompt: Sequence[int], n_tokens: int, **options: Any) -> list[int]:
    """What the package writes, with the bare chain of samplers, and the end of text forbidden as in :func:`best`."""
    assert llm.model.eos_token == END
    given = {**PLAIN_CHAIN, "logit_bias": {END: -np.inf}, **options}
    out = llm.create_completion(list(prompt), max_tokens=n_tokens, **given)
    rewards = out["choices"][0]["rewards"]
    assert rewards is not None
    return list(rewards["tokens"])
