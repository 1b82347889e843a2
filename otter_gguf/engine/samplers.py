"""llama.cpp's samplers from the options of a call."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping

from .. import _native
from .._numbers import real, shown
from ..context.session import Session
from ..errors import ConfigError
from ..options import SamplingOptions
from ..text import utf8

_LONGEST_SCHEMA = 1 << 21
"""Characters, above what the converter takes: it says so."""


def make_sampler(session: Session, options: SamplingOptions, prompt: list[int]) -> _native.Sampler:
    """For one text. Penalties count the prompt's tokens; the grammar begins behind it.

    Raises:
        ConfigError: An option is out of range, or grammar or schema are no good.
    """
    seed = seed_of(session, options)
    given = vars(options) | {
        "top_k": min(options.top_k, session.n_vocab),
        "repeat_last_n": min(options.repeat_last_n, session.n_ctx),
        "seed": -1 if seed is None else seed,
        "logit_bias": _biases(options.logit_bias, session.n_vocab),
        "grammar": options.grammar or _grammar_of(options.json_schema),
    }
    del given["json_schema"]
    sampler = _native.Sampler(session.model, **given)
    for token in prompt if options.has_penalties else ():
        sampler.accept(token, prompt=True)
    return sampler


def seed_of(session: Session, options: SamplingOptions) -> int | None:
    """The call's, else the model's; None = another one each time."""
    seed = session.seed if options.seed is None else options.seed
    return None if seed < 0 else seed


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
