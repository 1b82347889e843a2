"""Chat templates of GGUF files, rendered in a sandbox: a template is text from a stranger.

The sandbox stands in a process of its own, without which neither time nor memory of a template could be limited: one
operation on long enough strings takes as much as one likes of both, and nothing ends it from within.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._waiting import readable
from ..errors import ConfigError, EngineError, FileError
from ..text import utf8
from .tools import names_of

MAX_TEMPLATE = 1 << 18
MAX_OUTPUT = 1 << 20
MAX_SECONDS = 1.0
"""Of processor time, for one prompt."""
MAX_MEMORY = 1 << 29
"""Of the process that renders."""

_PATIENCE = 10.0
"""Seconds by the clock that an answer may take, for a process that gets no processor."""
_BEGIN_PATIENCE = 60.0
_MAX_ANSWER = 12 * MAX_OUTPUT + 8192  # bytes: a character takes up to 12 in JSON


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with their parts of text put together. ``ConfigError`` unless every message has a role, and content
    in text or calls of functions."""
    if not messages:
        raise ConfigError("messages is empty, expected at least one message")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"messages[{index}]: expected a dict with 'role' and 'content'")
        content = _text_of(message.get("content"))
        if content is None and not message.get("tool_calls"):
            raise ConfigError(f"messages[{index}]: 'content' must be a string, or parts of type text (no images)")
        given = {**message, "content": content or ""}
        for key in ("role", "content"):
            utf8(given[key], f"messages[{index}]['{key}']")
        checked.append(given)
    return checked


def _text_of(content: object) -> str | None:
    """A text, or parts of one, as one text; None for anything else."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if len(strings) == len(content) else None


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
    """A template of a model file; the process that renders it ends with this object."""

    def __init__(self, source: str, *, path: str, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise FileError(f"{path}: the chat template has {len(source)} characters, expected at most {MAX_TEMPLATE}")
        utf8(source, f"{path}: the chat template", FileError)
        self.path = path
        self.source = source
        self.tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._renderer = _Renderer()
        self._ask(None)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt of a conversation, in which ``tools`` may be called.

        Raises:
            ConfigError: The messages are malformed, or the template refuses them, or knows no tools.
            FileError: The template fails, or exceeds its limits.
        """
        given = {"messages": checked_messages(messages), "add_generation_prompt": add_generation_prompt}
        if tools:
            names_of(tools)
            if not re.search(r"\btools\b", self.source):
                raise ConfigError(f"{self.path}: the chat template knows no tools: leave them out")
            given["tools"] = [dict(tool) for tool in tools]
        return self._ask({**self.tokens, **given})

    def close(self) -> None:
        """End the process that renders; another one is started if it is needed again."""
        self._renderer.close()

    def _ask(self, variables: Mapping[str, Any] | None) -> str:
        try:
            question = json.dumps({"source": self.source, "variables": variables}, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"messages: expected what JSON can hold: {error}") from None
        try:
            answer = self._renderer.ask(utf8(question, "messages"))
        except _OverTimeError:
            raise FileError(f"{self.path}: the chat template takes more than {MAX_SECONDS:g} seconds") from None
        return self._text(answer)

    def _text(self, answer: Mapping[str, Any]) -> str:
        """The text of an answer that may be a lie."""
        if "refused" in answer:
            raise ConfigError(f"the chat template refuses the messages: {answer['refused']}")
        if "long" in answer:
            raise FileError(f"{self.path}: the chat template gives more than {MAX_OUTPUT} characters")
        if "wrong" in answer:
            raise FileError(f"{self.path}: the chat template is wrong: {answer['wrong']}")
        text = answer.get("text")
        if not isinstance(text, str):
            raise FileError(f"{self.path}: the chat template fails: {answer.get('failed', 'no answer')}")
        utf8(text, f"{self.path}: the chat template's text", FileError)
        return text


class _OverTimeError(Exception):
    """The process had to be ended."""


class _Renderer:
    """Processes of one template, started where they are needed.

    A process that is asked is in nobody's reach; it comes back when it has answered. So an answer that an exception
    (Ctrl-C, a time limit) came before is never taken for that of another question: its process ends.
    """

    def __init__(self) -> None:
        self._idle: list[_Sandbox] = []  # one, or as many as threads have asked at once

    def ask(self, question: bytes) -> Mapping[str, Any]:
        """The answer; an empty one of a process that ended otherwise than by its limits."""
        sandbox = self._take()
        try:
            answer = sandbox.ask(question)
        except BaseException:
            sandbox.end()
            raise
        if not answer:
            sandbox.end()
            if sandbox.process.returncode == -signal.SIGPROF:
                raise _OverTimeError
            return {}
        self._idle.append(sandbox)
        return answer

    def close(self) -> None:
        """End the processes."""
        while self._idle:
            self._idle.pop().end()

    def _take(self) -> _Sandbox:
        with contextlib.suppress(IndexError):
            sandbox = self._idle.pop()
            if sandbox.owner == os.getpid():  # not in a copy of the process that started it
                return sandbox
        return _Sandbox()


class _Sandbox:
    """One process that renders; it ends with this object."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("renderer.py")
        limits = json.dumps({"seconds": MAX_SECONDS, "memory": MAX_MEMORY, "output": MAX_OUTPUT})
        command = [sys.executable, "-I", str(script), json.dumps(list(map(str, sys.path))), limits]
        # What is preloaded, as a sanitizer is, may need more memory than there is for a template.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self.owner = os.getpid()
        self.end = weakref.finalize(self, _end, self.process, self.owner)
        try:
            ready = _exchange(self.process, b"", _BEGIN_PATIENCE)
        except _OverTimeError:
            ready = b""
        if not ready:
            self.end()
            raise EngineError(f"the process that renders chat templates does not start: {sys.executable} {script}")

    def ask(self, question: bytes) -> Mapping[str, Any]:
        """The answer; an empty one if there is none."""
        line = _exchange(self.process, question + b"\n", _PATIENCE)
        try:
            answer = json.loads(line) if line else {}
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}


def _exchange(process: subprocess.Popen[bytes], question: bytes, patience: float) -> bytes:
    """Ask and wait for a line; an empty one if the process is gone, ``_OverTimeError`` if it takes too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(question)
        process.stdin.flush()
    line = b""
    end = time.monotonic() + patience
    while not line.endswith(b"\n"):
        if not readable(process.stdout, max(0.0, end - time.monotonic())):
            raise _OverTimeError
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part or len(line) > _MAX_ANSWER:
            return b""
        line += part
    return line


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process and bury it; called when nobody needs it any more, at the latest when Python ends."""
    if os.getpid() != owner:  # it belongs to the process of which this one is a copy
        return
    process.kill()
    with contextlib.suppress(OSError):  # what was not written yet
        process.communicate()
