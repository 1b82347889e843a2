"""Chat templates of GGUF files, rendered in a sandbox: a template is text from a stranger.

The template sees immutable values only, and its size, its output and its time are limited.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import ConfigError, FileError

MAX_TEMPLATE = 1 << 18
MAX_OUTPUT = 1 << 20
MAX_SECONDS = 1.0


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """``ConfigError`` unless every message has a role and content in text."""
    if not messages:
        raise ConfigError("messages is empty, expected at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"messages[{index}]: expected a dict with 'role' and 'content'")
        if not isinstance(message.get("content"), str):
            raise ConfigError(f"messages[{index}]: 'content' must be a string (no images, tools or parts)")


def json_schema_of(response_format: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """The JSON schema that OpenAI's ``response_format`` asks for; "" = any text.

    ``{"type": "text"}``, ``{"type": "json_object"}``, the latter with a ``schema`` as in llama-cpp-python, or
    ``{"type": "json_schema", "json_schema": {"schema": ...}}``. ``ConfigError`` for anything else.
    """
    kind = response_format.get("type")
    if kind == "text":
        return ""
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema", {"type": "object"})
    if kind not in ("json_object", "json_schema") or not isinstance(schema, Mapping):
        raise ConfigError(f"response_format is {dict(response_format)}, expected type text, json_object or json_schema")
    return schema


class ChatTemplate:
    """A compiled template of a model file."""

    def __init__(self, source: str, *, path: str, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise FileError(f"{path}: the chat template has {len(source)} characters, expected at most {MAX_TEMPLATE}")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
        self.path = path
        self.tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self.template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FileError(f"{path}: the chat template is wrong: {_one_line(error)}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Raises:
            ConfigError: The messages are malformed, or the template refuses them.
            FileError: The template fails, or exceeds its limits.
        """
        check_messages(messages)
        parts = []
        size = 0
        begin = time.monotonic()
        variables = {**self.tokens, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            for part in self.template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT or time.monotonic() - begin > MAX_SECONDS:
                    raise FileError(f"{self.path}: the chat template gives more than {MAX_OUTPUT} characters or hangs")
        except (ConfigError, FileError):
            raise
        except Exception as error:
            raise FileError(f"{self.path}: the chat template fails: {_one_line(error)}") from None
        return "".join(parts)


def _refuse(message: object) -> NoReturn:
    raise ConfigError(f"the chat template refuses the messages: {message}")


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
