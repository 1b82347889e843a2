"""One run: an arm trained with a seed, and what it reaches on held-out pairs."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from otter_gguf.training import OtterModel, OtterTrainer, RewardDataset, TrainConfig, geometry, insert
from otter_gguf.training.data import Pair, collate
from otter_gguf.training.full import full_reward_model

from .arms import Arm
from .domains import Domain

CURVE_POINTS = 4
CURVE_PAIRS = 128
"""Held-out pairs that a learning curve is measured on; nothing is chosen by it."""
_EVAL_BATCH = 32


@dataclasses.dataclass
class Record:
    """What is kept of a run, one JSON line."""

    domain: str
    arm: dict[str, Any]
    """Fields of the arm without its name, so that suites share runs."""
    seed: int
    parameters: int
    """Trained ones."""
    steps: int
    seconds: float
    margins: list[float]
    """Reward of the chosen whole response less that of the rejected, by held-out pair."""
    prefix_accuracy: list[float]
    """Share of response lengths at which the chosen response is ahead, by held-out pair."""
    curve: list[dict[str, float]]
    """Held-out ``loss``, ``accuracy`` and ``prefix_accuracy`` by ``step``."""


def key(arm: Arm) -> dict[str, Any]:
    """What identifies an arm's runs."""
    fields = dataclasses.asdict(arm)
    del fields["name"]
    return fields


def read(path: Path) -> list[Record]:
    """Every record of a results file; none if there is no file."""
    if not path.exists():
        return []
    return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, record: Record) -> None:
    """Add a record to a results file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(record)) + "\n")


class _Curve(TrainerCallback):
    """Collects the held-out metrics of a run."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        found = {name: (metrics or {})[f"eval_{name}"] for name in ("loss", "accuracy", "prefix_accuracy")}
        self.points.append({"step": float(state.global_step), **found})


def run(domain: Domain, arm: Arm, seed: int) -> Record:
    """Train an arm; the seed fixes what is drawn and the order of the pairs."""
    base, tokenizer = domain.load()
    train, held_out = domain.datasets(tokenizer)
    model = build(base, arm, seed)
    curve = _Curve()
    with tempfile.TemporaryDirectory() as folder:
        some = RewardDataset(held_out.rows[:CURVE_PAIRS])
        trainer = trainer_of(model, domain, arm, seed, folder, train, some)
        trainer.add_callback(curve)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    margins, prefix_accuracy = evaluate(model, held_out)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Record(
        domain.name,
        key(arm),
        seed,
        trained,
        trainer.state.global_step,
        seconds,
        margins,
        prefix_accuracy,
        curve.points,
    )


def build(base: PreTrainedModel, arm: Arm, seed: int) -> OtterModel:
    """The untrained model of an arm."""
    if arm.kind == "full":
        return full_reward_model(base, seed=seed)
    return insert(base, arm.insertion(geometry(base)), arm.init, seed=seed)


def trainer_of(
    model: OtterModel,
    domain: Domain,
    arm: Arm,
    seed: int,
    folder: str,
    train: RewardDataset,
    held_out: RewardDataset,
) -> OtterTrainer:
    """The package's own trainer, set up as the domain says; nothing is saved in ``folder``."""
    steps = -(-len(train) // domain.recipe.batch) * domain.recipe.epochs
    return OtterTrainer(model, _config(domain, arm, seed, folder, steps), train, held_out)


def _config(domain: Domain, arm: Arm, seed: int, folder: str, steps: int) -> TrainConfig:
    recipe = domain.recipe
    return TrainConfig(
        output_dir=folder,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=_EVAL_BATCH,
        num_train_epochs=recipe.epochs,
        learning_rate=domain.rate(arm),
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        loss=arm.loss,
        bf16=recipe.mixed_precision,
        eval_strategy="steps",
        eval_steps=max(1, steps // CURVE_POINTS),
        save_strategy="no",
        logging_steps=steps,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=True,
    )


@torch.no_grad()
def evaluate(model: OtterModel, pairs: RewardDataset) -> tuple[list[float], list[float]]:
    """Margin of the whole responses and share of lengths at which the chosen one is ahead, for each pair."""
    margins: list[float] = []
    shares: list[float] = []
    rows = [row for row in pairs.rows if isinstance(row, Pair)]
    for first in range(0, len(rows), _EVAL_BATCH):
        batch = rows[first : first + _EVAL_BATCH]
        rewards = model.rewards(collate(batch)["input_ids"])[..., 0].float()
        for index, row in enumerate(batch):
            chosen = rewards[index, row.start : len(row.chosen)]
            rejected = rewards[len(batch) + index, row.start : len(row.rejected)]
            margins.append(float(chosen[-1] - rejected[-1]))
            shares.append(_share_ahead(chosen, rejected))
    return margins, shares


def _share_ahead(chosen: Tensor, rejected: Tensor) -> float:
    """The shorter response continues with its last reward."""
    length = max(len(chosen), len(rejected))
    index = torch.arange(length)
    ahead = chosen[index.clamp(max=len(chosen) - 1)] > rejected[index.clamp(max=len(rejected) - 1)]
    return float(ahead.float().mean())
