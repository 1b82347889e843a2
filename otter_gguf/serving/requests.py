"""From the JSON of a request to the arguments of Otter's methods.

Each field of a request is written once: sampling options are the fields of :class:`otter_gguf.options.SamplingOptions`,
whose own checks apply, the others stand here. A field that is in no table is refused, so that nothing is ignored that
somebody counted on. Nothing in a request opens a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._numbers import finite, shown
from ..context.session import LanguageModel
from ..engine import Guidance
from ..errors import ConfigError
from ..guidance import spec
from ..options import SamplingOptions

Json = dict[str, Any]

MAX_GUIDANCE = 4096
"""Characters of a request's guidance, as JSON."""
_MAX_WRAPPERS = 8
_MAX_DEPTH = 128

TYPES: Mapping[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
"""Python's types of JSON's."""

HARMLESS = frozenset(
    {"id_slot", "metadata", "model", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier"}
    | {"store", "user", "encoding_format"}
)
"""Fields that clients send by themselves and that may be ignored: they change no answer."""


@dataclass(frozen=True)
class Field:
    """A field of a request."""

    types: str
    """JSON's, with spaces between them."""
    text: str
    """What it says, for /openapi.json."""
    argument: str | None = None
    """The argument of Otter's methods that it is as it stands."""


SHARED: Mapping[str, Field] = {
    "max_tokens": Field("integer", "tokens at most; -1 = until the context is full", "max_tokens"),
    "n_predict": Field("integer", "as max_tokens", "max_tokens"),
    "stop": Field("string array", "end before any of these texts", "stop"),
    "cache_prompt": Field("boolean", "reuse what the cache holds of the prompt", "cache_prompt"),
    "n_keep": Field("integer", "first tokens that a context shift leaves in place", "n_keep"),
    "n": Field("integer", "answers to each prompt, with seeds that follow each other"),
    "stream": Field("boolean", "send the text as server-sent events"),
    "stream_options": Field("object", '{"include_usage": true}: a last event with the counts of tokens'),
    "timings_per_token": Field("boolean", "timings in every event of a stream"),
    "t_max_predict_ms": Field("number", "milliseconds after which a text ends with finish_reason length"),
    "ignore_eos": Field("boolean", "no end before max_tokens"),
    "return_tokens": Field("boolean", "also the ids of the tokens, as choices[].tokens"),
    "otter": Field("object", "rewards and guidance, see the schema Otter"),
}
COMPLETION: Mapping[str, Field] = {
    "prompt": Field("string array", "a text, its tokens, or several of either"),
    "echo": Field("boolean", "the prompt before the text; with logprobs also its log-probabilities", "echo"),
    "logprobs": Field("integer", "log-probabilities of the tokens and of this many most likely ones", "logprobs"),
    "n_probs": Field("integer", "as logprobs", "logprobs"),
    "suffix": Field("string", "not supported: must be empty"),
    "best_of": Field("integer", "must be n"),
}
CHAT: Mapping[str, Field] = {
    "messages": Field("array", "the conversation: role and content, text or parts of text"),
    "max_completion_tokens": Field("integer", "as max_tokens", "max_tokens"),
    "response_format": Field("object", "the answer is JSON, of a schema if one is given", "response_format"),
    "logprobs": Field("boolean", "log-probabilities of the tokens", "logprobs"),
    "top_logprobs": Field("integer", "and of this many most likely ones", "top_logprobs"),
    "tools": Field("array", "functions that may be called, for templates that know them", "tools"),
    "tool_choice": Field("string object", "none, auto, required, or the function that is to be called", "tool_choice"),
}
OTTER: Mapping[str, Field] = {
    "rewards": Field("boolean", "choices[].rewards: rewards of every token (default: true)"),
    "prompt_rewards": Field("boolean", "also choices[].prompt_rewards, of a single prompt", "prompt_rewards"),
    "step_records": Field("boolean", "also choices[].steps: what guidance looked at", "step_records"),
    "guidance": Field("string object", 'how rewards guide: "args:weight=1.5" or {"rule": "args", "weight": 1.5}'),
    "reward_model": Field("string", "alias of the model whose rewards guide in the place of this one's"),
    "as_logprobs": Field("boolean", "rewards as entries <|reward:LABEL|> of top_logprobs, for clients without more"),
}
RERANK = {
    "query": Field("string", "what stands before each document"),
    "documents": Field("array", "texts to compare"),
    "top_n": Field("integer", "give so many, best first"),
    "return_documents": Field("boolean", "also the texts"),
    "texts": Field("array", "as documents, with the answer of text-embeddings-inference"),
    "return_text": Field("boolean", "also the texts, in that answer"),
    "label": Field("string", "which reward; the first one if not given"),
}
SCORE = {
    "text_1": Field("string array", "one text, or as many as text_2"),
    "text_2": Field("string array", "texts to score as responses"),
    "queries": Field("string array", "as text_1"),
    "documents": Field("string array", "as text_2"),
    "label": Field("string", "which reward; the first one if not given"),
}
POOLING = {
    "input": Field("string array", "a text, its tokens, or several of either"),
    "task": Field("string", "token_classify"),
}
TOKENIZE = {
    "content": Field("string", "the text"),
    "add_special": Field("boolean", "with the token that begins a text"),
    "parse_special": Field("boolean", "read <|...|> as the token of that name"),
    "with_pieces": Field("boolean", "also the text of each token, or its bytes"),
}
DETOKENIZE = {"tokens": Field("array", "ids")}
TEMPLATE = {"messages": Field("array", "the conversation"), "tools": Field("array", "functions that may be called")}
_STREAM_OPTIONS = {
    "include_usage": Field("boolean", "a last event with the counts of tokens"),
    "include_obfuscation": Field("boolean", "ignored"),
}
SAMPLING = {one.name: one for one in dataclasses.fields(SamplingOptions)}


@dataclass
class Asked:
    """What a request for texts asks for."""

    prompt: Any
    """A prompt of ``create_completion``, or the messages of ``create_chat_completion``."""
    is_chat: bool
    options: Json
    """Arguments of the method."""
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    timings_per_token: bool = False
    return_tokens: bool = False
    rewards: bool = True
    as_logprobs: bool = False
    echo: bool = False
    seconds: float | None = None
    """After which each text ends."""
    n_prompts: int = field(default=1)

    @property
    def n_texts(self) -> int:
        """All texts together."""
        return self.n * self.n_prompts


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and the models that it may name."""

    max_texts: int
    max_tokens: int
    """0 = no limit of the server's own."""
    models: Mapping[str, LanguageModel]
    """By alias."""
    end_tokens: tuple[int, ...]
    """Tokens that end a text."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The server's own defaults."""


def read_json(body: bytes) -> Json:
    """The object in a body. ``ConfigError`` says what else is there."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and numbers with too many digits
        raise ConfigError(f"the request is no JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"the request is {shown(value)}, expected a JSON object")
    _check_depth(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(_MAX_DEPTH):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return
    raise ConfigError(f"the request is nested more than {_MAX_DEPTH} levels deep")


def checked(body: Json, fields: Mapping[str, Field], where: str = "") -> Json:
    """The fields that are given and not null, each of a right type. ``ConfigError`` names one that is unknown."""
    given = {}
    for name, value in body.items():
        known = fields.get(name)
        if known is None:
            if name in HARMLESS and not where:
                continue
            raise ConfigError(f"{where}{shown(name)[1:-1]}: there is no such field; there are: {', '.join(fields)}")
        if value is None:
            continue
        kinds = tuple(kind for named in known.types.split() for kind in TYPES[named])
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{where}{name} is {shown(value)}, expected: {' or '.join(known.types.split())}")
        given[name] = value
    return given


def read_request(body: Json, *, is_chat: bool, limits: Limits) -> Asked:
    """What a request for texts asks for. ``ConfigError`` names the field that is wrong."""
    own = {**(CHAT if is_chat else COMPLETION), **SHARED}
    sampling = {name: value for name, value in body.items() if name in SAMPLING and value is not None}
    given = checked({name: value for name, value in body.items() if name not in SAMPLING}, own)
    what = "messages" if is_chat else "prompt"
    if what not in given:
        raise ConfigError(f"{what} is missing")
    options = _arguments(given, own)
    if "logit_bias" in sampling:
        sampling["logit_bias"] = _biases(sampling["logit_bias"])
    asked = Asked(given[what], is_chat, options | {**limits.sampling, **sampling})
    asked.n, asked.n_prompts = given.get("n", 1), 1 if is_chat else _count(given[what])
    if asked.n < 1 or asked.n_texts > limits.max_texts:
        raise ConfigError(f"n is {asked.n}, expected from 1 to {limits.max_texts} texts, those of all prompts together")
    if given.get("suffix") or given.get("best_of", asked.n) != asked.n:
        raise ConfigError("suffix and best_of are not supported: leave them out")
    if "stream_options" in given:
        usage = checked(given["stream_options"], _STREAM_OPTIONS, "stream_options: ")
        asked.include_usage = usage.get("include_usage", False)
    for name in ("stream", "timings_per_token", "return_tokens"):
        setattr(asked, name, given.get(name, False))
    milliseconds = finite(given.get("t_max_predict_ms", 0), "t_max_predict_ms")
    asked.seconds = milliseconds / 1000 if milliseconds > 0 else None
    if given.get("ignore_eos"):
        never = dict.fromkeys(limits.end_tokens, float("-inf"))
        options_bias = asked.options.get("logit_bias", {})
        asked.options["logit_bias"] = {**options_bias, **never}
    if is_chat:
        asked.options.setdefault("cache_prompt", True)
    asked.echo = given.get("echo", False)
    if asked.echo and "logprobs" in asked.options:
        asked.options["prompt_logprobs"] = True
    _limit_tokens(asked, limits)
    _read_otter(asked, given.get("otter", {}), limits)
    return asked


def _arguments(given: Json, fields: Mapping[str, Field]) -> Json:
    """Those of the fields that are arguments of Otter's methods."""
    return {argument: value for name, value in given.items() if (argument := fields[name].argument) is not None}


def _limit_tokens(asked: Asked, limits: Limits) -> None:
    if not limits.max_tokens:
        return
    wanted = asked.options.setdefault("max_tokens", limits.max_tokens)
    if wanted == -1:
        asked.options["max_tokens"] = limits.max_tokens
    elif wanted > limits.max_tokens:
        raise ConfigError(f"max_tokens is {wanted}, this server gives at most {limits.max_tokens}")


def _count(prompt: Any) -> int:
    """How many prompts there are: a list of numbers is one."""
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else 1


def _biases(given: Any) -> dict[int, float]:
    """``{"15": 1}``, or llama-server's ``[[15, 1], [16, false]]``: false forbids a token."""
    pairs = given.items() if isinstance(given, dict) else given
    if not isinstance(given, (dict, list)):
        raise ConfigError(f"logit_bias is {shown(given)}, expected an object of tokens and numbers")
    biases = {}
    for pair in pairs:
        try:
            token, bias = pair
            biases[int(token)] = float("-inf") if bias is False else bias
        except (TypeError, ValueError):
            raise ConfigError(f"logit_bias has {shown(pair)}, expected a token's id and a number") from None
    return biases


def _read_otter(asked: Asked, body: Json, limits: Limits) -> None:
    given = checked(body, OTTER, "otter: ")
    asked.options |= _arguments(given, OTTER)
    if asked.is_chat and asked.options.pop("prompt_rewards", False):
        raise ConfigError("otter: prompt_rewards is for /v1/completions")
    asked.rewards = given.get("rewards", True)
    asked.as_logprobs = given.get("as_logprobs", False)
    if asked.as_logprobs and asked.options.get("logprobs", False) is False:
        raise ConfigError("otter: as_logprobs needs logprobs")
    load = loader(limits.models)
    if "guidance" in given:
        asked.options["guidance"] = read_guidance(given["guidance"], load)
    if "reward_model" in given:
        asked.options["reward_model"] = load(given["reward_model"])


def read_guidance(value: Any, load: Callable[[str], LanguageModel]) -> Guidance | None:
    """The guidance of a request. ``ConfigError`` if it is wrong, or larger than anybody needs."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > MAX_GUIDANCE or text.count("+") + text.count('"rule"') > _MAX_WRAPPERS:
        raise ConfigError(f"otter: guidance has {len(text)} characters, expected a rule of at most {MAX_GUIDANCE}")
    return spec.from_json(value, load, own=False)


def loader(models: Mapping[str, LanguageModel]) -> Callable[[str], LanguageModel]:
    """Gives models by their aliases, and opens nothing."""

    def load(alias: str) -> LanguageModel:
        if alias not in models:
            known = ", ".join(models) or "none (--rule-model)"
            raise ConfigError(f"there is no model {shown(alias)} in this server; there are: {known}")
        return models[alias]

    return load
