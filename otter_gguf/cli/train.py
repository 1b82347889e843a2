"""``otter-gguf train``: train an insertion on preference pairs."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError, FileError
from ._common import add_options, given, print_json
from .insert import InsertOptions, add_insert_arguments, insert_from, require_training, summary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..training import OtterModel, OtterTrainer, TrainConfig

HELP = "train an insertion on preference pairs"

_SHOWN = ("eval_loss", "eval_accuracy", "eval_prefix_accuracy", "eval_margin")


def _flags(flags: str, text: str) -> dict[str, Any]:
    return {"flags": tuple(flags.split()), "help": text}


@dataclass(frozen=True)
class TrainOptions:
    """How the insertion is trained; most become fields of transformers' ``TrainingArguments``."""

    epochs: float = field(default=1.0, metadata=_flags("--epochs", "passes over the data"))
    max_steps: int = field(default=0, metadata=_flags("--max-steps", "optimizer steps instead of epochs; 0 = epochs"))
    batch_size: int = field(default=8, metadata=_flags("-b --batch-size", "pairs at once on each device"))
    accumulate: int = field(default=1, metadata=_flags("--accumulate", "batches a step (gradient accumulation)"))
    learning_rate: float = field(default=1e-3, metadata=_flags("--lr", "peak learning rate"))
    schedule: Literal["linear", "cosine", "constant"] = field(
        default="linear", metadata=_flags("--schedule", "learning rate after the warm-up")
    )
    warmup: float = field(default=0.0, metadata=_flags("--warmup", "steps of warm-up; below 1 a share of all steps"))
    weight_decay: float = field(default=0.0, metadata=_flags("--weight-decay", "of AdamW"))
    loss: Literal["prefix", "final"] = field(
        default="prefix", metadata=_flags("--loss", "Bradley-Terry at every response length, or on whole responses")
    )
    center: float = field(default=0.0, metadata=_flags("--center", "weight of a term that keeps rewards around 0"))
    max_length: int = field(
        default=1024, metadata=_flags("--max-length", "tokens of prompt and response; longer pairs are cut")
    )
    append_eos: bool = field(
        default=True, metadata=_flags("--no-eos", "do not end responses with the end-of-text token")
    )
    calibrate: bool = field(
        default=True, metadata=_flags("--no-calibrate", "leave rewards as trained, not with mean 0 and deviation 1")
    )
    logging_steps: int = field(default=10, metadata=_flags("--logging-steps", "steps between lines of the log"))
    eval_steps: int = field(default=500, metadata=_flags("--eval-steps", "steps between evaluations"))
    save_steps: int = field(default=500, metadata=_flags("--save-steps", "steps between checkpoints"))
    keep: int = field(default=2, metadata=_flags("--keep", "checkpoints that are kept"))
    bf16: bool = field(default=False, metadata=_flags("--bf16", "mixed precision"))
    recompute: bool = field(
        default=False, metadata=_flags("--recompute", "less memory: recompute activations in the backward pass")
    )
    cpu: bool = field(default=False, metadata=_flags("--cpu", "do not use a GPU"))
    threads: int = field(default=0, metadata=_flags("-t --threads", "CPU threads; 0 = torch's own choice"))
    seed: int = field(default=0, metadata=_flags("-s --seed", "of the order of pairs and of everything drawn"))

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "accumulate": 1, "logging_steps": 1, "eval_steps": 1, "save_steps": 1, "keep": 1}
        for name, minimum in {**least, "max_steps": 0, "threads": 0, "warmup": 0, "weight_decay": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {minimum}")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}; writes an adapter folder."
    parser.add_argument("adapter", nargs="?", type=Path, metavar="ADAPTER", help="adapter folder to start from")
    parser.add_argument("--base", metavar="DIR", help="Hugging Face model; without ADAPTER a fresh insertion is made")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL with prompt, chosen, rejected")
    parser.add_argument("--eval-data", type=Path, metavar="FILE", help="the same, held out")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="adapter folder to write")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint of --output")
    start.add_argument("--force", action="store_true", help="replace a run that is in --output")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")
    add_options(parser.add_argument_group("training"), TrainOptions, ())
    add_insert_arguments(parser, leave_out=("seed",))


def run(args: argparse.Namespace) -> int:
    """Train and save; prints the folder and the last metrics."""
    options = TrainOptions(**given(args, TrainOptions))
    _check_start(args)
    require_training()
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log; stdout is for the result
        trainer = _trainer(args, options)
        result = trainer.train(resume_from_checkpoint=True if args.resume else None)
        metrics = {"steps": result.global_step, "train_loss": result.training_loss}
        if args.eval_data:
            metrics.update({name: value for name, value in trainer.evaluate().items() if name.startswith(_SHOWN)})
        if options.calibrate:
            _calibrate(trainer)
        trainer.save_model()
    if not trainer.is_world_process_zero():
        return 0
    if args.json:
        print_json({"output": str(args.output), **metrics, **summary(trainer.otter)})
    else:
        print(" ".join(f"{name}={value:.4g}" for name, value in metrics.items()))
        print(args.output)
    return 0


def _check_start(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and an output that holds another run."""
    insertion = [name for name in given(args, InsertOptions) if name != "seed"] + (["head"] if args.head else [])
    if insertion and (args.adapter or args.resume):
        source = "ADAPTER has its insertion" if args.adapter else "--resume keeps the run's insertion"
        raise ConfigError(f"{source}; leave out {', '.join(insertion)}")
    if not (args.adapter or args.base or args.resume):
        raise ConfigError("give an ADAPTER folder to start from, or --base for a fresh insertion")
    if args.resume or args.force or not args.output.exists():
        return
    if (args.output / "otter_config.json").exists() or any(args.output.glob("checkpoint-*")):
        raise ConfigError(f"{args.output}: holds a run already; --resume continues it, --force replaces it")


def _trainer(args: argparse.Namespace, options: TrainOptions) -> OtterTrainer:
    """Model, data and configuration as the command line says; with ``--force`` the old run's checkpoints go."""
    import torch

    from ..training import OtterTrainer, PairOptions, load_pairs
    from ..training.runs import checkpoints

    if options.threads:
        torch.set_num_threads(options.threads)
    model = _model(args)
    tokenizer = _tokenizer(model)
    pairs = PairOptions(options.max_length, options.append_eos, model.insertion.reward_labels)
    data = load_pairs(args.data, tokenizer, pairs)
    evaluation = load_pairs(args.eval_data, tokenizer, pairs) if args.eval_data else None
    for dataset in filter(None, (data, evaluation)):
        print(f"{len(dataset)} pairs, {dataset.n_tokens} tokens, {dataset.truncated} cut, {dataset.dropped} dropped")
    if args.force:
        # Else a later --resume would continue the run that was replaced.
        for checkpoint in checkpoints(args.output):
            shutil.rmtree(checkpoint, ignore_errors=True)  # each process of a distributed run tries
    return OtterTrainer(model, _config(args, options), data, evaluation)


def _calibrate(trainer: OtterTrainer) -> None:
    from ..training import PairDataset, calibrate

    assert isinstance(trainer.train_dataset, PairDataset)
    for label, (mean, deviation) in calibrate(trainer.otter, trainer.train_dataset).items():
        print(f"{label}: mean {mean:.4g} and deviation {deviation:.4g} calibrated to 0 and 1")


def _model(args: argparse.Namespace) -> OtterModel:
    from ..training import OtterModel
    from ..training.checkpoint import load_base
    from ..training.runs import latest_checkpoint

    if args.resume:
        return OtterModel.from_pretrained(args.base, latest_checkpoint(args.output))
    if args.adapter:
        return OtterModel.from_pretrained(args.base, args.adapter)
    return insert_from(args, load_base(args.base))


def _tokenizer(model: OtterModel) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.base_name, revision=model.base_revision, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{model.base_name}: cannot load the tokenizer: {str(error).splitlines()[0]}") from None
    # What some versions of transformers make of a folder without a tokenizer.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise FileError(f"{model.base_name}: cannot load the tokenizer: it has no vocabulary")
    return tokenizer


def _config(args: argparse.Namespace, options: TrainOptions) -> TrainConfig:
    from ..training import TrainConfig

    renamed = "activation_checkpointing" in TrainConfig.__dataclass_fields__  # in the course of transformers 5
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    recompute: dict[str, Any] = {name: options.recompute}
    return TrainConfig(
        output_dir=str(args.output),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        loss=options.loss,
        center_rewards_coefficient=options.center,
        logging_steps=options.logging_steps,
        eval_strategy="steps" if args.eval_data else "no",
        eval_steps=options.eval_steps,
        save_steps=options.save_steps,
        save_total_limit=options.keep,
        bf16=options.bf16,
        use_cpu=options.cpu,
        seed=options.seed,
        **recompute,
    )
