"""The files of the demo, shipped inside the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError

FOLDER = Path(__file__).parent
NAME = "otter-gguf demo"
"""``general.name`` of the sidecar."""


@dataclass(frozen=True)
class Pair:
    """One prompt with a kind and an unkind continuation that the reward never saw, in words that it never saw."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class DemoFiles:
    """Paths of the demo's files."""

    base: Path
    """The base model, Q8_0."""
    sidecar: Path
    """Its insertion, Q8_0: what ``convert`` made of the adapter."""
    adapter: Path
    """The adapter checkpoint, a folder."""
    prompts: Path
    """Prompts to continue and pairs to rank, both drawn apart from everything that was trained on."""

    @classmethod
    def in_folder(cls, folder: Path) -> DemoFiles:
        """The files by their names; nothing is looked at."""
        return cls(
            base=folder / "demo-base.Q8_0.gguf",
            sidecar=folder / "demo.otter.gguf",
            adapter=folder / "adapter",
            prompts=folder / "prompts.json",
        )

    def load_prompts(self) -> list[str]:
        """Story beginnings whose tone is open."""
        return list(self._load()["prompts"])

    def load_pairs(self) -> list[Pair]:
        """Pairs to rank by their rewards."""
        return [Pair(**pair) for pair in self._load()["unseen_pairs"]]

    def _load(self) -> dict[str, list]:  # type: ignore[type-arg]
        return json.loads(self.prompts.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def demo_files(folder: Path = FOLDER) -> DemoFiles:
    """The demo's files in a folder. ``FileError`` lists what is missing."""
    files = DemoFiles.in_folder(folder)
    missing = [path.name for path in (files.base, files.sidecar, files.adapter, files.prompts) if not path.exists()]
    if missing:
        raise FileError(f"{folder}: the demo lacks {', '.join(missing)}; reinstall otter-gguf")
    return files
