"""What the server says of itself: properties, figures for Prometheus, and its interface as OpenAPI."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from .. import __version__
from ..guidance import rules, spec
from ..model import Otter
from ..options import SamplingOptions
from .async_otter import Call
from .requests import CHAT, COMPLETION, OTTER, SHARED, Field, Json


class Metrics:
    """Figures since the server began."""

    def __init__(self) -> None:
        self.begun = int(time.time())
        self.requests: Counter[tuple[str, int]] = Counter()
        self.n_prompt = self.n_cached = self.n_tokens = 0
        self.prompt_seconds = self.text_seconds = 0.0

    def answered(self, path: str, code: int) -> None:
        """A request was."""
        self.requests[path, code] += 1

    def finished(self, calls: Iterable[Call]) -> None:
        """The texts of a request are over."""
        now = time.perf_counter()
        for call in calls:
            first = call.first or now
            cached = sum(handle.n_cached for handle in call.handles)
            self.n_cached += cached
            self.n_prompt += sum(map(len, call.run.prompts)) - cached
            self.n_tokens += call.n_tokens
            self.prompt_seconds += first - call.begin
            self.text_seconds += now - first

    def text(self, n_running: int, n_waiting: int, n_decoded: int) -> str:
        """In Prometheus' text format, under llama-server's names where it has them."""
        figures = (
            ("llamacpp:prompt_tokens_total", "counter", "Tokens of prompts that were fed", self.n_prompt),
            ("llamacpp:prompt_seconds_total", "counter", "Seconds until the first tokens", self.prompt_seconds),
            ("llamacpp:tokens_predicted_total", "counter", "Tokens of texts", self.n_tokens),
            ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds behind first tokens", self.text_seconds),
            ("llamacpp:n_decode_total", "counter", "Batches", n_decoded),
            ("llamacpp:requests_processing", "gauge", "Requests under way", n_running),
            ("llamacpp:requests_deferred", "gauge", "Requests that wait for their first token", n_waiting),
            ("otter:prompt_tokens_cached_total", "counter", "Tokens of prompts that were cached", self.n_cached),
        )
        lines = [
            f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n{name} {value}" for name, kind, meaning, value in figures
        ]
        lines.append("# HELP otter:requests_total Answers by route and status\n# TYPE otter:requests_total counter")
        lines += [f'otter:requests_total{{path="{p}",code="{code}"}} {n}' for (p, code), n in self.requests.items()]
        return "\n".join(lines) + "\n"


def properties(llm: Otter, models: Sequence[str]) -> Json:
    """What is loaded. ``models``: aliases that rules may name."""
    defaults = {one.name: getattr(SamplingOptions(), one.name) for one in dataclasses.fields(SamplingOptions)}
    return {
        "default_generation_settings": {"params": defaults, "n_ctx": llm.n_ctx},
        "total_slots": llm.options.n_seq_max,
        "chat_template": llm.model.chat_template() or "",
        "bos_token": _name(llm, llm.token_bos()),
        "eos_token": _name(llm, llm.token_eos()),
        "modalities": {"vision": False, "audio": False},
        "is_sleeping": False,
        "otter": {
            "labels": list(llm.reward_labels),
            "scales": _scales(llm),
            "vocabulary_heads": list(llm.vocabulary_heads),
            "models": list(models),
            "rules": [_rule(name, rule) for name, rule in rules.registry().items()],
        },
    }


def _name(llm: Otter, token: int) -> str:
    return llm.model.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def _scales(llm: Otter) -> list[Json]:
    """How each label's reward is bounded: what colours go by."""
    heads = llm.insertion.value_heads if llm.insertion else ()
    return [
        {"label": label, "activation": head.activation, "scale": scale, "shift": shift}
        for head in heads
        for label, scale, shift in zip(head.labels, head.scale, head.shift, strict=True)
    ]


def _rule(name: str, rule: rules.Rule) -> Json:
    meanings, inner = rules.field_meanings(rule), rules.wrapped_field(rule)
    fields = [
        {"name": one.name, "default": spec.default_text(one), "meaning": meanings.get(one.name, "")}
        for one in rules.fields_of(rule)
    ]
    return {"name": name, "meaning": rules.first_paragraph(rule), "wraps": inner, "fields": fields}


def openapi(routes: Sequence[tuple[str, bool, str]], fields: Mapping[str, Mapping[str, Field]]) -> Json:
    """The interface, made of the tables that requests are read by."""
    sampling = {one.name: _option(one) for one in dataclasses.fields(SamplingOptions)}
    otter = {"type": "object", "additionalProperties": False, "properties": _schemas(OTTER)}
    bodies = {path: _schemas(table) for path, table in fields.items()}
    for path, own in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
        bodies[path] = {
            **_schemas(own),
            **_schemas(SHARED),
            **sampling,
            "otter": {"$ref": "#/components/schemas/Otter"},
        }
    paths = {}
    for path, is_post, text in routes:
        operation: Json = {
            "summary": " ".join(text.split()).replace("``", ""),
            "responses": {"200": {"description": "answer"}},
        }
        if is_post:
            schema = {"type": "object", "properties": bodies[path]}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post" if is_post else "get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "otter-gguf", "version": __version__},
        "paths": paths,
        "components": {"schemas": {"Otter": otter}},
    }


def _schemas(fields: Mapping[str, Field]) -> Json:
    return {name: {"type": one.types.split(), "description": one.text} for name, one in fields.items()}


def _option(one: Any) -> Json:
    hint = get_type_hints(SamplingOptions)[one.name]
    kinds = {float: "number", int: "integer", str: "string", int | None: "integer"}
    return {"type": kinds.get(hint, ["string", "object", "array"]), "description": one.metadata["help"]}
