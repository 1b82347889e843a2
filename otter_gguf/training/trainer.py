"""Training: Hugging Face ``Trainer`` with our losses, our checkpoints and nothing else changed."""

from __future__ import annotations

import shutil
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..errors import ConfigError, FileError
from ..train_options import TrainOptions
from .allocator import little_held_back
from .chance import no_better_than_chance
from .data import Classed, RewardDataset, collate
from .losses import LOSSES
from .model import OtterModel, OtterOutput
from .objectives import Objective, head_columns, summary
from .runs import checkpoint_problem, latest_checkpoint, rotate, write_manifest

CHANCE = "no_better_than_chance"
"""Key of an adapter's record of its training: the lines of :meth:`OtterTrainer.chance_warnings`."""
_MANY = 10_000  # rows that are looked at of a source that does not say how many it has


@dataclass
class TrainConfig(TrainingArguments):
    """``TrainingArguments`` with the defaults of reward training, and ours."""

    learning_rate: float = field(default=TrainOptions.learning_rate, metadata={"help": "peak learning rate"})
    logging_steps: float = field(
        default=TrainOptions.logging_steps, metadata={"help": "steps between two lines of the log"}
    )
    loss: str = field(
        default=TrainOptions.loss,
        metadata={
            "help": "prefix: at every response token; final: on whole responses alone; steps always at their ends"
        },
    )
    center_rewards_coefficient: float = field(
        default=TrainOptions.center,
        metadata={"help": "weight of mean (r_chosen + r_rejected)^2, which keeps rewards around 0"},
    )

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"loss {self.loss!r}, expected {' or '.join(LOSSES)}")
        if not self.center_rewards_coefficient >= 0:
            raise ConfigError(f"center_rewards_coefficient is {self.center_rewards_coefficient}, expected 0 or more")
        if self.data_seed is None:
            self.data_seed = self.seed  # else every seed would see the rows in the same order
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.remove_unused_columns = False  # the collator makes the model's inputs
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()


class ExtraLoss(Protocol):
    """A further term of the loss, computed from the same batch and forward pass."""

    def __call__(
        self, model: OtterModel, inputs: dict[str, Tensor], output: OtterOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term (scalar, weighted already) that is added, and scalars to log.

        Args:
            model: the model itself, not what accelerate wraps it into; in training or evaluation mode.
            inputs: the batch, as :func:`~otter_gguf.training.data.collate` makes it, on the model's device.
            output: of the forward pass over ``inputs["input_ids"]``; no logits.

        In a distributed run every process must log the same names for every batch.
        """


class OtterTrainer(Trainer):
    """Trains the inserted tensors of an :class:`OtterModel`; the base is never written to, in memory or on disk.

    Checkpoints hold the adapter and the state of optimizer, scheduler and random numbers, and a manifest that is
    written last; one without a matching manifest is incomplete and skipped by ``train(resume_from_checkpoint=True)``.
    """

    objective: Objective

    def __init__(
        self,
        model: OtterModel,
        args: TrainConfig,
        train_dataset: RewardDataset,
        eval_dataset: RewardDataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        extra_losses: Sequence[ExtraLoss] = (),
    ) -> None:
        if args.fsdp or args.deepspeed:
            raise ConfigError("FSDP and DeepSpeed are not supported: each device needs the whole model")
        for dataset in (train_dataset, eval_dataset):
            _check_rewards(model, dataset)
        self._metrics: dict[str, list[Tensor]] = {"train": [], "eval": []}
        self._extra: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._recent: deque[Tensor] = deque()
        self._evaluated: Tensor | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.otter, self.train_config, self.extra_losses = model, args, tuple(extra_losses)
        self.objective = Objective(model.insertion, args.loss, args.center_rewards_coefficient)
        # compute_loss gives the mean of a micro-batch; the Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over the rows of a batch of :func:`~otter_gguf.training.data.collate`, and the extra losses."""
        output: OtterOutput = model(inputs["input_ids"], use_cache=False, return_logits=False)
        losses, metrics = self.objective(output, inputs)
        loss = losses.mean()
        mode = "train" if model.training else "eval"
        self._metrics[mode].append(self.accelerator.gather_for_metrics(metrics).cpu())
        if mode == "train":
            self._remember(self._metrics[mode][-1])
        for extra in self.extra_losses:
            term, values = extra(self.otter, inputs, output)
            loss = loss + term
            for name, value in values.items():
                self._extra[mode][name].append(self.accelerator.gather(value.detach().reshape(1)).float().cpu())
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """Evaluation: the loss of one batch; metrics are collected by :meth:`compute_loss`."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics collected since the last line."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        found = summary(torch.cat(self._metrics[mode])) if self._metrics[mode] else {}
        if mode == "eval" and self._metrics[mode]:
            self._evaluated = torch.cat(self._metrics[mode])
        found.update({name: float(torch.cat(values).mean()) for name, values in self._extra[mode].items()})
        logs.update({prefix + name: value for name, value in found.items()})
        self._metrics[mode].clear()
        self._extra[mode].clear()
        super().log(logs, start_time)

    def _remember(self, metrics: Tensor) -> None:
        """Keep the rows of the last half epoch: what the model made of those before them is no longer true."""
        rows = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else _MANY
        self._recent.append(metrics)
        while sum(map(len, self._recent)) - len(self._recent[0]) >= rows / 2:
            self._recent.popleft()

    def chance_warnings(self) -> list[str]:
        """A line for each reward and kind of row that is no better than chance (:mod:`.chance`); none where it is.

        Judged by the last evaluation, without one by the training rows of the last half epoch. The lines become part of
        the adapter's record of its training, so call this before :meth:`save_model`.
        """
        if self._evaluated is not None:
            rows, table = "held-out", self._evaluated
        elif self._recent:
            rows, table = "training", torch.cat([*self._recent])
        else:  # a run that was complete when it was resumed
            return list(self.otter.training_record.get(CHANCE, []))
        found = no_better_than_chance(table, self.otter.insertion.reward_labels, rows)
        self.otter.training_record.pop(CHANCE, None)
        if found:
            self.otter.training_record[CHANCE] = found
        return found

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``; ``True`` resumes from the newest complete checkpoint of the output folder."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(latest_checkpoint(Path(str(self.args.output_dir))))
        elif resume_from_checkpoint and (problem := checkpoint_problem(Path(resume_from_checkpoint))):
            raise FileError(f"{resume_from_checkpoint}: {problem}")
        with little_held_back(_sub_layers(self.otter) if self.args.device.type == "cpu" else ()):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.otter.save_pretrained(output_dir or str(self.args.output_dir), force=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.otter.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.otter.load_weights(str(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The manifest makes the checkpoint valid; only then may older ones go."""
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(checkpoint)
        except (OSError, RuntimeError, FileError) as error:  # torch has no class for a full disk
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise FileError(f"{checkpoint}: cannot write the checkpoint: {' '.join(str(error).split())}") from None
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(checkpoint, limit, keep={Path(best)} if best else set())


def _sub_layers(model: OtterModel) -> Iterator[nn.Module]:
    """The norms, attention and FFN of every layer of the base: what runs again where a layer is recomputed."""
    for layer in model.base_model.get_submodule(model.architecture.layers).children():
        yield from layer.children()


def _check_rewards(model: OtterModel, dataset: RewardDataset | None) -> None:
    """Refuse rows that train what the model does not have; they were tokenised for another insertion."""
    if not isinstance(dataset, RewardDataset):
        return
    n_rewards, heads = model.insertion.n_rewards, head_columns(model.insertion)
    for classed, columns in {(isinstance(row, Classed), tuple(row.rewards)) for row in dataset.rows}:
        head = heads.get(range(columns[0], columns[-1] + 1))
        if columns[-1] >= n_rewards:
            problem = f"a row trains reward {columns[-1] + 1} of {n_rewards}"
        elif classed and head is None:
            problem = "a row's classes are not those of one head"
        elif classed and head is not None and head.activation not in ("none", "softmax"):
            raise ConfigError(f"head {head.name!r} has activation {head.activation}; classes need softmax or none")
        else:
            continue
        raise ConfigError(f"{problem}; tokenise with rewards=model.insertion.reward_labels")
