"""``otter-gguf convert``: the converter script as a verb."""

from __future__ import annotations

from otter_gguf.converters.convert_otter_to_gguf import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
