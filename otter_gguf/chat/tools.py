"""Functions that a conversation's answer may call: what is asked for, and how calls are read out of a text.

How a template writes functions into its prompt, and which words a model calls them by, differs; two forms are read that
most models use: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, and such an object as the whole text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .._numbers import shown
from ..errors import ConfigError
from ..text import longest_beginning

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{_OPEN}(.*?)(?:{_CLOSE}|$)", re.DOTALL)

Tool = Mapping[str, Any]


def names_of(tools: Sequence[Tool]) -> list[str]:
    """The functions. ``ConfigError`` if one is no function with a name."""
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ConfigError(f"tools[{index}] is {shown(tool)}, expected a function with a name")
        if not isinstance(function.get("parameters", {}), Mapping):
            raise ConfigError(f"tools[{index}]: parameters is {shown(function['parameters'])}, expected a JSON schema")
        names.append(function["name"])
    return names


def schema_of(tools: Sequence[Tool], choice: object) -> Mapping[str, Any] | None:
    """What the answer must be so that it is a call; None where it may be anything (``auto``).

    Args:
        tools: Checked.
        choice: OpenAI's ``tool_choice``: None, "auto", "required", or the function that is to be called.

    Raises:
        ConfigError: It is something else, or there is no such function.
    """
    if choice is None or choice == "auto":
        return None
    names = names_of(tools)
    wanted = names
    if choice != "required":
        function = choice.get("function") if isinstance(choice, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if name not in names:
            raise ConfigError(f"tool_choice is {shown(choice)}, expected none, auto, required, or one of the tools")
        wanted = [name]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": dict(tool["function"].get("parameters") or {"type": "object"}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, tool in zip(names, tools, strict=True)
        if name in wanted
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


class ToolText:
    """The text of an answer that may hold calls; what may be the beginning of one is held back."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = names_of(tools)
        self._text = ""
        self._released = 0

    def push(self, text: str) -> str:
        """More text; what of it is certain to be no call."""
        self._text += text
        beginning = self._text.lstrip()
        if beginning[:1] in ("", "{"):
            return ""
        place = self._text.find(_OPEN)
        certain = place if place >= 0 else len(self._text) - longest_beginning(self._text, [_OPEN])
        return self._release(certain)

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls in OpenAI's shape; without calls the text is all there is."""
        bodies = _CALL.findall(self._text) or [self._text]
        calls = [call for body in bodies if (call := self._call(body))]
        if len(calls) < len(bodies):
            return self._release(len(self._text)), []
        place = self._text.find(_OPEN)
        return self._release(max(place, self._released)).rstrip(), [
            {**call, "index": index} for index, call in enumerate(calls)
        ]

    def _release(self, end: int) -> str:
        text, self._released = self._text[self._released : end], max(end, self._released)
        return text

    def _call(self, body: str) -> dict[str, Any] | None:
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(given, dict) or given.get("name") not in self._names:
            return None
        arguments = given.get("arguments", given.get("parameters", {}))
        function = {"name": given["name"], "arguments": json.dumps(arguments)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
