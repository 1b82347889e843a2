"""The exceptions of otter-gguf. Every error a user can cause derives from :class:`OtterError`.

A message is one line: what is wrong, where (file, key, tensor), what was expected and found, what to do.
The native module raises the same classes; ``tests/test_errors.py`` compares both lists.
"""

from __future__ import annotations

import re

MAX_MESSAGE = 8000
"""Characters of a message. Of a longer one, such as of a pattern of a megabyte, the middle is left out."""

_END = 1000  # what to do stands there
_BREAK = re.compile("[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\\s*")


class OtterError(Exception):
    """Base class of every error that data, files or arguments can cause.

    Its message is one line of printable characters, whatever names and texts of others stand in it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_one_line(str(message)))


class FileError(OtterError):
    """A file is damaged, hostile, of another format, or cannot be written."""


class MismatchError(OtterError):
    """Two files, or a file and its configuration, do not belong together (sidecar and base, widened and base)."""


class ConfigError(OtterError, ValueError):
    """An option or a combination of options is contradictory or out of range."""


class UnsupportedError(OtterError):
    """The file is well formed, but uses something that this version does not support (architecture, version)."""


class EngineError(OtterError):
    """llama.cpp refused to load or to compute; its own log lines are part of the message."""


class ContextFullError(OtterError):
    """The KV cache has no room for the tokens of this call."""

    n_tokens: int | None = None
    """Of a prompt that is longer than the context."""


def _one_line(text: str) -> str:
    """The text without line breaks, with backslashes for what cannot be printed, and of a bounded length."""
    text = _bounded(text)
    if text.isprintable():
        return text
    text = _BREAK.sub(" ", text).strip()
    return _bounded("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _bounded(text: str) -> str:
    if len(text) <= MAX_MESSAGE:
        return text
    return f"{text[: MAX_MESSAGE - _END]} ... ({len(text)} characters) ... {text[-_END:]}"
