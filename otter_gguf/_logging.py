"""llama.cpp's log: quiet by default, through Python's ``logging`` (logger ``otter_gguf.llama_cpp``) on demand.

What llama.cpp says while it fails is part of the error message in both cases.
"""

from __future__ import annotations

import logging
import sys

from . import _native

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger("otter_gguf")
_engine = logging.getLogger("otter_gguf.llama_cpp")


def set_verbose(verbose: bool) -> None:
    """Send llama.cpp's log lines to the logger, and the logger to stderr if nothing else listens to it."""
    if verbose and not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    if verbose:
        logger.setLevel(logging.INFO)
    _native.set_log_callback(_forward if verbose else None)


def _forward(level: str, line: str) -> None:
    _engine.log(LEVELS.get(level, logging.INFO), "%s", line.rstrip("\n"))
