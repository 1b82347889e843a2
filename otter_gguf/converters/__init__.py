"""Converters to GGUF: Hugging Face checkpoints and Otter adapters in, GGUF files out.

An installed package has the modules beside this file. In a clone they stand in the top-level folder ``converters/``;
the search path is widened to it, so that a plain ``PYTHONPATH`` and an editable install import the same names.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

# The root of a clone, and never a site-packages folder in which another project may have put its own `converters`.
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "converters").is_dir():
    __path__.append(str(_ROOT / "converters"))
