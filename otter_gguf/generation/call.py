"""One call: prompts are fed, texts grow by whatever guides them, tokens come out."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from .._numbers import real, shown
from ..claims import Claimable
from ..completion import Piece, PieceMaker
from ..errors import ConfigError
from ..guidance.base import Offer, Policy, Signal
from ..guidance.search import Search
from ..options import SamplingOptions
from ..text import utf8
from .loop import Guided, plain
from .readings import labels_by_name, reward_models
from .request import Request, Text, texts_of
from .steps import Event, Float32, Record
from .workspace import Workspace

if TYPE_CHECKING:
    from ..model import Otter

_LONGEST_SCHEMA = 1 << 21
"""Characters, above what the converter takes: it says so."""

Guidance = Policy | Search
"""How tokens are chosen: step by step, or by whole segments and texts."""


def sequences_needed(guidance: Guidance | None, n_texts: int = 1) -> int:
    """Sequences that a context needs for a call: ``n_seq_max`` at load."""
    if guidance is None or guidance.off:
        return n_texts
    if isinstance(guidance, Search):
        return max(n_texts, guidance.n_sequences)
    siblings = guidance.n_candidates if Signal.VALUE in guidance.signal() else 1
    beside = sum(follower.model is None for follower in guidance.followers())
    return n_texts * (siblings + beside)


@dataclass
class Call:
    """A call under way."""

    llm: Otter
    prompts: list[list[int]]
    request: Request
    sampling: SamplingOptions
    guidance: Guidance | None = None
    reward_model: Otter | Mapping[str, Otter] | None = None
    reuse: bool = False
    all_rewards: bool = False
    prompt_rewards: list[Float32] = field(default_factory=list)
    """Of each prompt, (tokens or 1, n_rewards)."""
    texts: list[Text] = field(default_factory=list)
    _left: dict[int, list[Record]] = field(default_factory=dict)
    """Records of texts that belong to none of their tokens."""

    def __post_init__(self) -> None:
        self._check_shift()
        models = reward_models(self.llm, self.reward_model)
        if not isinstance(self.guidance, (Policy, Search, NoneType)):
            raise ConfigError(
                f"guidance is {shown(self.guidance)}, expected a policy or a search, such as ARGS(weight=1.5)"
            )
        if self.guidance is not None and self.guidance.off:
            self.guidance = None
        if self.guidance is None:
            return
        own = () if "" in models else self.llm.reward_labels
        others = (label for name, llm in models.items() for label in labels_by_name(name, llm))
        self.guidance = self.guidance.bound(lambda text: self.llm.tokenize(text, special=True))
        self.guidance.check(Offer((*own, *others), self.llm.vocabulary_heads, self.llm.n_vocab))

    @cached_property
    def claims(self) -> tuple[Claimable, ...]:
        """The contexts in which the call works: its model's, and those of what guides it."""
        followers = self.guidance.followers() if isinstance(self.guidance, Policy) else ()
        others = (*reward_models(self.llm, self.reward_model).values(), *(follower.model for follower in followers))
        models = {id(model): model for model in (self.llm, *others) if model is not None}
        return tuple(model.lanes.claim for model in models.values())

    def _check_shift(self) -> None:
        if self.request.shifts is None:
            return
        if not self.llm.context.can_shift:
            raise ConfigError(
                f"context_shift: llama.cpp cannot shift the context of {self.llm.model.description}: not every "
                "architecture can be shifted, and of cached keys (type_k, -ctk) f16 and f32 can"
            )
        if self.request.n_keep > self.llm.n_ctx - 2:
            most = self.llm.n_ctx - 2
            raise ConfigError(f"n_keep is {self.request.n_keep}, expected at most {most}: a shift must free something")

    def events(self) -> Iterator[Event]:
        """Feed the prompts; then the tokens, as an iterator."""
        if isinstance(self.guidance, Search):
            return self._search(self.guidance)
        self._start(self.prompts)
        if self.guidance is None:
            return plain(self.llm.model, self.llm.lanes, self.texts, self.request)
        return Guided(self.llm, self.texts, self.guidance, self.request, self.reward_model).run()

    def pieces(self) -> Iterator[Piece]:
        """As :meth:`events`, in text."""
        events = self.events()
        makers = [PieceMaker(i, self.request.stop, self.llm.model.token_bytes) for i in range(len(self.prompts))]
        return self._pieces(events, makers)

    def _pieces(self, events: Iterator[Event], makers: list[PieceMaker]) -> Iterator[Piece]:
        going = list(makers)
        for event in events:
            over = [maker for maker in going if maker.index != event.text and self._is_over(maker.index)]
            going = [maker for maker in going if maker not in over]
            yield from map(self._finish, over)
            piece = makers[event.text].push(event)
            if piece is not None:
                yield piece
        for maker in going:
            yield self._finish(maker)

    def _is_over(self, index: int) -> bool:
        """Whether all tokens of a text were given out, when one of another text is."""
        return index < len(self.texts) and self.texts[index].ended is not None

    def _finish(self, maker: PieceMaker) -> Piece:
        return maker.finish(self.texts[maker.index].ended or "length", self._left.get(maker.index, ()))

    def _start(self, prompts: list[list[int]]) -> None:
        """Feed prompts together."""
        samplers = self._samplers(prompts)
        lanes, rewards = self.llm.lanes.begin(
            prompts, reuse=self.reuse, all_rewards=self.all_rewards, share=not self.request.context_shift
        )
        self.texts += texts_of(lanes, prompts, samplers, self.request)
        self.prompt_rewards += [rewards] if len(prompts) == 1 else list(rewards[:, np.newaxis])

    def _search(self, search: Search) -> Iterator[Event]:
        """A search has the context for one text at a time: several prompts follow each other."""
        if search.n_sequences > self.llm.context.n_seq_max:
            name, most = type(search).__name__, self.llm.context.n_seq_max
            raise ConfigError(f"{name} needs n_seq_max={search.n_sequences} at load (-np), now {most}")
        return self._search_all(search, self._workspace(0))

    def _workspace(self, index: int) -> Workspace:
        self._start([self.prompts[index]])
        return Workspace(self.llm, self.texts[index], self.request, self._seed, self.reward_model)

    def _search_all(self, search: Search, work: Workspace) -> Iterator[Event]:
        for index in range(len(self.prompts)):
            if index:
                work = self._workspace(index)
            for event in work.run(search):
                yield event._replace(text=index)
            self._left[index] = work.records

    @property
    def _seed(self) -> int | None:
        seed = self.llm.seed if self.sampling.seed is None else self.sampling.seed
        return None if seed < 0 else seed

    def _samplers(self, prompts: list[list[int]]) -> list[_native.Sampler]:
        """One for each prompt. Penalties count the prompt's tokens; the grammar begins behind it."""
        options = self.sampling
        _check_types(options)
        grammar = options.grammar or _grammar_of(options.json_schema)
        samplers = [self._sampler(options, grammar) for _ in prompts]
        for sampler, prompt in zip(samplers, prompts, strict=True):
            for token in prompt if options.has_penalties else ():
                sampler.accept(token, prompt=True)
        return samplers

    def _sampler(self, options: SamplingOptions, grammar: str) -> _native.Sampler:
        return _native.Sampler(
            self.llm.model,
            temperature=options.temperature,
            top_k=min(options.top_k, self.llm.n_vocab),
            top_p=options.top_p,
            min_p=options.min_p,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=min(options.repeat_last_n, self.llm.n_ctx),
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            seed=-1 if self._seed is None else self._seed,
            logit_bias=_biases(options.logit_bias, self.llm.n_vocab),
            grammar=grammar,
        )


def _check_types(options: SamplingOptions) -> None:
    if not isinstance(options.grammar, str):
        raise ConfigError(f"grammar is {shown(options.grammar)}, expected text (GBNF)")
    utf8(options.grammar, "grammar")
    if not isinstance(options.json_schema, (str, Mapping)):
        raise ConfigError(f"json_schema is {shown(options.json_schema)}, expected a dict or JSON text")


def _biases(given: object, n_vocab: int) -> list[tuple[int, float]]:
    """Of each token; keys may be text, as JSON has them."""
    expected = "a dict from token ids to numbers"
    if not isinstance(given, Mapping):
        raise ConfigError(f"logit_bias is {shown(given)}, expected {expected}")
    biases = []
    for key, bias in given.items():
        try:
            token = int(key) if isinstance(key, str) else operator.index(key)
        except (TypeError, ValueError):
            raise ConfigError(f"logit_bias names token {shown(key)}, expected {expected}") from None
        if not 0 <= token < n_vocab:
            raise ConfigError(f"logit_bias names token {shown(key)}, expected 0 to {n_vocab - 1}")
        biases.append((token, real(bias, f"logit_bias of token {token}")))
    return biases


def _grammar_of(schema: str | Mapping[str, object]) -> str:
    if schema == "":
        return ""
    try:
        text = schema if isinstance(schema, str) else _json_text(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema: expected JSON types: {error}") from None
    utf8(text, "json_schema")
    return _native.json_schema_to_grammar(text)


def _json_text(schema: Mapping[str, object]) -> str:
    """The schema as JSON, and no more of it than shows that it is too large: one that refers to its own parts many
    times grows exponentially when it is written out."""
    pieces = []
    left = _LONGEST_SCHEMA
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(dict(schema)):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            break
    return "".join(pieces)


def as_tuple(what: str, given: object) -> tuple[Callable[..., Any], ...]:
    """One callable, a list of them, or nothing, as a tuple; ``ConfigError`` otherwise."""
    many = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(callable(item) for item in many):
        raise ConfigError(f"{what} is {shown(given)}, expected a callable or a list of them")
    return many
