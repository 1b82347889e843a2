"""The fenced blocks of a document, which tests run."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def fenced(document: Path, language: str) -> list[str]:
    """The blocks in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
