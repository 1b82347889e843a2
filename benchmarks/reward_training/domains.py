"""Where the arms are compared: a base, pairs to train on, held-out pairs, and how training runs there."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.demo_model.stories import preference_pairs
from otter_gguf.demo import demo_files
from otter_gguf.training import DataOptions, RewardDataset, tokenise_rows
from otter_gguf.training.base import load_base, load_tokenizer

from .arms import Arm
from .base import make_base

SPLIT_SEED = 20240820
"""Of the one split of real pairs that every arm and seed shares."""


@dataclass(frozen=True)
class Recipe:
    """How an arm is trained."""

    rates: Mapping[str, float]
    """Peak learning rate by kind of arm, found on pairs that are neither trained on nor held out here."""
    epochs: int
    batch: int = 16
    mixed_precision: bool = False


@dataclass(frozen=True)
class Domain:
    """A base and its pairs."""

    name: str
    base: Path
    """Hugging Face folder or GGUF."""
    train: Sequence[dict[str, Any]] = field(repr=False)
    held_out: Sequence[dict[str, Any]] = field(repr=False)
    options: DataOptions
    recipe: Recipe

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base anew, as every run widens its own."""
        return load_base(self.base), load_tokenizer(self.base)

    def datasets(self, tokenizer: PreTrainedTokenizerBase) -> tuple[RewardDataset, RewardDataset]:
        """Tokenised pairs: to train on, and held out."""
        return tokenise_rows(self.train, tokenizer, self.options), tokenise_rows(self.held_out, tokenizer, self.options)

    def rate(self, arm: Arm) -> float:
        """Peak learning rate of an arm."""
        return self.recipe.rates[arm.kind]


def real_pairs(path: Path, work: Path, *, validate: bool = False) -> Domain:
    """Human preference pairs from a JSONL file, a third held out; the base is made in ``work`` on first use.

    Args:
        validate: hold out a fifth of the training pairs instead, which is how the learning rates were found.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(SPLIT_SEED).shuffle(rows)
    third = len(rows) // 3
    held_out, train = rows[:third], rows[third:]
    base = work / "base"
    if not (base / "model.safetensors").exists():
        make_base(base, [row["prompt"] + row["chosen"] for row in train])
    if validate:
        fifth = len(train) // 5
        train, held_out = train[:-fifth], train[-fifth:]
    recipe = Recipe({"head": 1e-2, "insertion": 3e-3, "full": 1e-4}, epochs=2, mixed_precision=True)
    return Domain("real pairs", base, train, held_out, DataOptions(max_length=128), recipe)


def demo_pairs(train: int = 320, held_out: int = 320) -> Domain:
    """The demo's stories: trained on words of group A, held out with words of group B that no training pair has."""
    return Domain(
        "demo",
        demo_files().base,
        list(islice(preference_pairs(1, train, "A"), train)),
        list(islice(preference_pairs(2, held_out, "B"), held_out)),
        DataOptions(),
        Recipe({"head": 1e-2, "insertion": 2e-3, "full": 3e-4}, epochs=1),
    )
