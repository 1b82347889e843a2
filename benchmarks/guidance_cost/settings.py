"""What is measured, and the models it is measured with."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import synthetic
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError

SIDECAR_TYPES = ("Q4_0", "Q8_0")
RANK = 64
CANDIDATES = 10
"""Of ARGS, by own rewards and by the second model's."""
MOST_CANDIDATES = 20
"""Of any policy that feeds them: RAD's."""
WARM_UP = 2


@dataclass(frozen=True)
class Settings:
    """What is measured; every field is an option of the command line."""

    geometry: str = field(default="tiny", metadata={"help": "a name of benchmarks/synthetic.py"})
    steps: int = field(default=32, metadata={"help": "tokens of a text"})
    rounds: int = field(default=4, metadata={"help": "how often everything is loaded anew, in reversed order"})
    prompt: int = field(default=16, metadata={"help": "tokens of a prompt"})
    texts: int = field(default=8, metadata={"help": "prompts of a batch; twice as many are measured too"})
    batch_tokens: int = field(default=32, metadata={"help": "tokens of each text of a batch"})
    turns: int = field(default=2, metadata={"help": "batches, each beside single calls"})
    context: int = field(default=2048, metadata={"help": "tokens of the contexts whose memory is measured"})
    threads: int = field(default=2, metadata={"help": "of llama.cpp"})
    seed: int = field(default=0, metadata={"help": "of weights, prompts and draws"})

    def __post_init__(self) -> None:
        if self.geometry not in synthetic.GEOMETRIES:
            raise ConfigError(f"geometry is {self.geometry!r}, expected one of {', '.join(synthetic.GEOMETRIES)}")
        for name in ("steps", "rounds", "prompt", "texts", "batch_tokens", "turns", "context", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def load_options(self) -> dict[str, Any]:
        """A context for each kind of call: one text with its candidates, or a batch of texts."""
        n_ctx = max(self.prompt + self.steps + WARM_UP, 2 * self.texts * (self.prompt + self.batch_tokens))
        n_seq_max = max(MOST_CANDIDATES, 2 * self.texts)
        return {"n_ctx": n_ctx, "n_seq_max": n_seq_max, "n_threads": self.threads, "n_gpu_layers": 0}


@dataclass(frozen=True)
class Files:
    """The models, in a folder."""

    folder: Path

    @property
    def base(self) -> Path:
        """Without Otter."""
        return self.folder / "base.gguf"

    @property
    def second(self) -> Path:
        """Other weights of the same geometry."""
        return self.folder / "second.gguf"

    @property
    def second_head(self) -> Path:
        """The second model's head, a sidecar of width 0."""
        return self.folder / "second.otter.gguf"

    def sidecar(self, type: str) -> Path:
        """The insertion in a weight type."""
        return self.folder / f"{type}.otter.gguf"


def make_files(work: Path, settings: Settings) -> Files:
    """Write the models that are not there."""
    geometry = synthetic.GEOMETRIES[settings.geometry]
    files = Files(work / f"{settings.geometry}-{settings.seed}")
    files.folder.mkdir(parents=True, exist_ok=True)
    for path, seed in ((files.base, settings.seed), (files.second, settings.seed + 1)):
        if not path.exists():
            say(f"writing {path}")
            synthetic.write_base(path, geometry, "Q4_0", seed)
    for type in SIDECAR_TYPES:
        if not files.sidecar(type).exists():
            config = insertion(geometry)
            synthetic.write_sidecar(files.sidecar(type), files.base, config, type, settings.seed)
    if not files.second_head.exists():
        head = HeadConfig(input="base")
        config = InsertionConfig.uniform(geometry.base, 0, 0, heads=(head,))
        synthetic.write_sidecar(files.second_head, files.second, config, "Q8_0", settings.seed)
    return files


def insertion(geometry: synthetic.Geometry) -> InsertionConfig:
    """Width 64, one KV head, inner size 256 in every layer; a value head and a vocabulary head."""
    heads = (HeadConfig(), HeadConfig("next", ("reward",), "both", kind="vocabulary", rank=RANK))
    return InsertionConfig.uniform(geometry.base, 64, 1, 256, heads=heads)


def say(message: str) -> None:
    """Progress on stderr."""
    print(f"guidance_cost: {message}", file=sys.stderr, flush=True)
