"""The generated texts of a run on disk, so that an interrupted run goes on where it was.

A file of JSON lines: the first says what was run, each of the others is one :class:`Generation`. It is replaced as a
whole, so it never holds half a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FileError
from ..gguf.atomic import atomic_path

_SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Generation:
    """One generated text and what it cost."""

    arm: str
    prompt: int
    """Index among the run's prompts."""
    round: int
    """0 for the first seed."""
    text: str
    tokens: int
    finish_reason: str
    seconds: float
    """Of the whole call, reading the prompt included."""
    prompt_seconds: float
    """Of a call that reads the prompt and generates nothing."""
    passes: int
    """Calls of llama_decode, without those for the prompt."""
    fed: int
    """Tokens that went through a model, candidates included, without the prompt's."""
    steps: int | None = None
    """Steps of which a record was taken; None without records."""
    guided_steps: int | None = None
    """Those of them in which guidance had a say."""
    changed_steps: int | None = None
    """Those of them in which the best score was another candidate's than the best logit."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Arm, prompt and round: what there is one text of."""
        return self.arm, self.prompt, self.round


class Store:
    """Generations in memory, saved to a file now and then.

    Args:
        path: Of the file, or None to keep nothing.
        header: What was run, in JSON types. A file with another header is refused, for its texts would not belong here.
        force: Start anew instead.

    Raises:
        ConfigError: The file is of another run.
        FileError: It is damaged or no such file.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], *, force: bool = False) -> None:
        self.path = path
        self.header = header
        self.rows: dict[tuple[str, int, int], Generation] = {}
        self._saved_at = time.monotonic()
        self._changed = False
        if path is not None and path.exists() and not force:
            self._read(path)

    def __contains__(self, key: tuple[str, int, int]) -> bool:
        return key in self.rows

    def __iter__(self) -> Iterator[Generation]:
        return iter(self.rows.values())

    def add(self, generation: Generation) -> None:
        """Take a generation; the file is replaced if that was not done for some time."""
        self.rows[generation.key] = generation
        self._changed = True
        if time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Replace the file, if there is something new."""
        if self.path is None or not self._changed:
            return
        lines = [json.dumps(self.header), *(json.dumps(asdict(row)) for row in self)]
        with atomic_path(self.path, force=True) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._saved_at, self._changed = time.monotonic(), False

    def _read(self, path: Path) -> None:
        try:
            header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            generations = [Generation(**row) for row in rows]
        except (ValueError, TypeError) as error:
            raise FileError(f"{path}: no texts of an evaluation ({error}); --force starts anew") from None
        if header != self.header:
            raise ConfigError(f"{path}: from another run ({_difference(header, self.header)}); --force starts anew")
        self.rows = {generation.key: generation for generation in generations}


def _difference(old: Any, new: dict[str, Any]) -> str:
    """The first entry in which two headers differ, for a message."""
    if not isinstance(old, dict):
        return "it has no header"
    name = next(name for name in {**new, **old} if old.get(name) != new.get(name))
    return f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
