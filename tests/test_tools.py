"""Calls of functions in the text of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otter_gguf import ConfigError
from otter_gguf.chat.tools import ToolText, names_of, schema_of
from tests.refusals import refused

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("dive", "swim")
]
CALL = '{"name": "dive", "arguments": {"deep": true}}'


def read(text: str, size: int = 3) -> tuple[str, list[dict[str, Any]]]:
    """What an answer gives that comes in pieces."""
    tool_text = ToolText(TOOLS)
    certain = "".join(tool_text.push(text[at : at + size]) for at in range(0, len(text), size))
    rest, calls = tool_text.finish()
    return certain + rest, [
        json.loads(call["function"]["arguments"]) | {"": call["function"]["name"]} for call in calls
    ]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, "", [{"deep": True, "": "dive"}]),
        ('  {"name": "swim", "parameters": {}}', "", [{"": "swim"}]),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [{"deep": True, "": "dive"}]),
        (
            f"Let me see. <tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>",
            "Let me see. ",
            [{"deep": True, "": "dive"}] * 2,
        ),
        (f"<tool_call>{CALL}", "", [{"deep": True, "": "dive"}]),
        ("An otter dives <3 <tool", "An otter dives <3 <tool", []),
        ('{"name": "fly", "arguments": {}}', '{"name": "fly", "arguments": {}}', []),
        ('{"name": "dive", "arg', '{"name": "dive", "arg', []),
        ("<tool_call>dive</tool_call>", "<tool_call>dive</tool_call>", []),
        ("[" * 100_000, "[" * 100_000, []),
        ("", "", []),
    ],
)
def test_calls_are_taken_out_of_a_text(text: str, content: str, calls: list[Any], size: int) -> None:
    found, made = read(text, max(size, len(text) // 1000))
    assert made == calls
    assert found.strip() == content.strip()


def test_a_text_without_calls_is_not_held_back() -> None:
    text = ToolText(TOOLS)
    assert text.push("An otter ") == "An otter "
    assert text.push("dives <") == "dives "
    assert text.push("3") == "<3"


def test_what_an_answer_must_be() -> None:
    assert schema_of(TOOLS, None) is schema_of(TOOLS, "auto") is None
    required = schema_of(TOOLS, "required")
    assert required is not None
    assert [one["properties"]["name"]["const"] for one in required["anyOf"]] == ["dive", "swim"]
    one = schema_of(TOOLS, {"type": "function", "function": {"name": "swim"}})
    assert one is not None
    assert one["properties"]["name"] == {"const": "swim"}


@pytest.mark.parametrize("choice", ["fly", 5, {}, {"function": {"name": "fly"}}, {"function": 5}])
def test_a_wrong_choice_is_refused(choice: Any) -> None:
    with refused(ConfigError, "tool_choice"):
        schema_of(TOOLS, choice)


@pytest.mark.parametrize(
    "tool",
    [
        5,
        {},
        {"type": "function"},
        {"type": "function", "function": {"name": 5}},
        {"type": "function", "function": {"name": "a", "parameters": 5}},
    ],
)
def test_what_is_no_function_is_refused(tool: Any) -> None:
    with refused(ConfigError, "tools[0]"):
        names_of([tool])
