"""The exceptions of otter-gguf. Every error a user can cause derives from :class:`OtterError`.

A message is one line: what is wrong, where (file, key, tensor), what was expected and found, what to do.
The native module raises the same classes; ``tests/test_errors.py`` compares both lists.
"""

from __future__ import annotations


class OtterError(Exception):
    """Base class of every error that data, files or arguments can cause."""


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
