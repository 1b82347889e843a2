"""The options of training that the command line has, with their defaults; torch's side takes its own from here.

Flags and help are made of the metadata. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ConfigError


def flags(names: str, text: str) -> dict[str, Any]:
    """The metadata of a field that is an option of the command line."""
    return {"flags": tuple(names.split()), "help": text}


@dataclass(frozen=True)
class TrainOptions:
    """How the insertion is trained; most become fields of transformers' ``TrainingArguments``."""

    epochs: float = field(default=1.0, metadata=flags("--epochs", "passes over the data"))
    max_steps: int = field(default=0, metadata=flags("--max-steps", "optimizer steps instead of epochs; 0 = epochs"))
    batch_size: int = field(default=8, metadata=flags("-b --batch-size", "rows at once on each device"))
    accumulate: int = field(default=1, metadata=flags("--accumulate", "batches a step (gradient accumulation)"))
    learning_rate: float = field(default=1e-3, metadata=flags("--lr", "peak learning rate"))
    schedule: Literal["linear", "cosine", "constant"] = field(
        default="linear", metadata=flags("--schedule", "learning rate after the warm-up")
    )
    warmup: float = field(default=0.0, metadata=flags("--warmup", "steps of warm-up; below 1 a share of all steps"))
    weight_decay: float = field(default=0.0, metadata=flags("--weight-decay", "of AdamW"))
    loss: Literal["prefix", "final"] = field(
        default="prefix", metadata=flags("--loss", "train every response token, or whole responses (final)")
    )
    center: float = field(
        default=0.0, metadata=flags("--center", "weight of a term that keeps pairs' rewards around 0")
    )
    max_length: int = field(
        default=1024, metadata=flags("--max-length", "tokens of prompt and response; longer texts are cut")
    )
    append_eos: bool = field(
        default=True, metadata=flags("--no-eos", "do not end responses with the end-of-text token")
    )
    step_separator: str | None = field(
        default=None, metadata=flags("--step-separator", "what ends each step of a text in steps; else a line break")
    )
    calibrate: bool = field(
        default=True, metadata=flags("--no-calibrate", "leave rewards as trained, not with mean 0 and deviation 1")
    )
    distill_candidates: int = field(
        default=20, metadata=flags("--distill-candidates", "next tokens that a vocabulary head learns at a position")
    )
    distill_positions: int = field(
        default=8, metadata=flags("--distill-positions", "positions of a text at which it learns in a step")
    )
    distill_weight: float = field(
        default=0.3, metadata=flags("--distill-weight", "weight of the vocabulary head's loss")
    )
    logging_steps: int = field(default=10, metadata=flags("--logging-steps", "steps between lines of the log"))
    eval_steps: int = field(default=500, metadata=flags("--eval-steps", "steps between evaluations"))
    save_steps: int = field(default=500, metadata=flags("--save-steps", "steps between checkpoints"))
    keep: int = field(default=2, metadata=flags("--keep", "checkpoints that are kept"))
    bf16: bool = field(default=False, metadata=flags("--bf16", "mixed precision"))
    recompute: bool = field(
        default=False, metadata=flags("--recompute", "less memory: recompute activations in the backward pass")
    )
    cpu: bool = field(default=False, metadata=flags("--cpu", "do not use a GPU"))
    threads: int = field(default=0, metadata=flags("-t --threads", "CPU threads; 0 = torch's own choice"))
    seed: int = field(default=0, metadata=flags("-s --seed", "of the order of rows and of everything drawn"))

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "accumulate": 1, "logging_steps": 1, "eval_steps": 1, "save_steps": 1, "keep": 1}
        for name, minimum in {**least, "max_steps": 0, "threads": 0, "warmup": 0, "weight_decay": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {minimum}")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
