"""Training on preference pairs: Hugging Face ``Trainer`` with our loss, our checkpoints and nothing else changed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..errors import ConfigError, FileError
from .checkpoint import TENSORS_NAME, load_tensors
from .data import PairDataset, collate_pairs
from .losses import LOSSES, PairRewards, align_pairs, centering_loss, pair_metrics
from .model import OtterModel, OtterOutput
from .runs import checkpoint_problem, latest_checkpoint, rotate, write_manifest

_REDUCTIONS = {"min_reward": torch.min, "max_reward": torch.max}


@dataclass
class TrainConfig(TrainingArguments):
    """``TrainingArguments`` with the defaults of reward training, and ours."""

    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two lines of the log"})
    loss: str = field(
        default="prefix",
        metadata={"help": "prefix: Bradley-Terry at every response length; final: on whole responses alone"},
    )
    center_rewards_coefficient: float = field(
        default=0.0, metadata={"help": "weight of mean (r_chosen + r_rejected)^2, which keeps rewards around 0"}
    )

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"loss {self.loss!r}, expected {' or '.join(LOSSES)}")
        if not self.center_rewards_coefficient >= 0:
            raise ConfigError(f"center_rewards_coefficient is {self.center_rewards_coefficient}, expected 0 or more")
        if self.data_seed is None:
            self.data_seed = self.seed  # else every seed would see the pairs in the same order
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.remove_unused_columns = False  # the collator makes the model's inputs
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()


class OtterTrainer(Trainer):
    """Trains the inserted tensors of an :class:`OtterModel`; the base is never written to, in memory or on disk.

    Checkpoints hold the adapter and the state of optimizer, scheduler and random numbers, and a manifest that is
    written last; one without a matching manifest is incomplete and skipped by ``train(resume_from_checkpoint=True)``.
    """

    def __init__(
        self,
        model: OtterModel,
        args: TrainConfig,
        train_dataset: PairDataset,
        eval_dataset: PairDataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.fsdp or args.deepspeed:
            raise ConfigError("FSDP and DeepSpeed are not supported: each device needs the whole model")
        self._logged: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_pairs,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.otter, self.train_config = model, args
        # compute_loss gives the mean of a micro-batch; the Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The preference loss of a batch of :func:`~otter_gguf.training.data.collate_pairs`."""
        output: OtterOutput = model(inputs["input_ids"], use_cache=False, return_logits=False)
        pairs = _pair_rewards(output, inputs)
        loss = LOSSES[self.train_config.loss](pairs)
        if self.train_config.center_rewards_coefficient:
            loss = loss + self.train_config.center_rewards_coefficient * centering_loss(pairs)
        logged = self._logged["train" if model.training else "eval"]
        for name, values in pair_metrics(pairs).items():
            logged[name].append(self.accelerator.gather_for_metrics(values).float().cpu())
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
        for name, values in self._logged[mode].items():
            logs[prefix + name] = float(_REDUCTIONS.get(name, torch.mean)(torch.cat(values)))
        self._logged[mode].clear()
        super().log(logs, start_time)

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
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.otter.save_pretrained(output_dir or str(self.args.output_dir), force=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_tensors(self.otter, Path(resume_from_checkpoint) / TENSORS_NAME)

    def _load_best_model(self) -> None:
        load_tensors(self.otter, Path(str(self.state.best_model_checkpoint)) / TENSORS_NAME)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The manifest makes the checkpoint valid; only then may older ones go."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_manifest(checkpoint)
            best = self.state.best_model_checkpoint
            rotate(checkpoint, limit, keep={Path(best)} if best else set())


def _pair_rewards(output: OtterOutput, inputs: dict[str, Tensor]) -> PairRewards:
    """The trained label's rewards of each pair."""
    assert output.rewards is not None
    label = inputs["label"].repeat(2)[:, None, None].expand(-1, output.rewards.shape[1], 1)
    return align_pairs(output.rewards.gather(2, label).squeeze(2), inputs["start"], inputs["length"])
