"""``otter-gguf train``: train an insertion on preference pairs, graded or classed texts, or texts in steps."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapter_format import CONFIG_NAME
from ..errors import ConfigError
from ..train_options import TrainOptions
from ._common import add_options, given, print_json
from .insert import (
    InsertOptions,
    add_insert_arguments,
    add_tokenizer_check,
    insert_from,
    insertion_config,
    require_training,
    summary,
)

if TYPE_CHECKING:
    from ..training import ExtraLoss, OtterModel, OtterTrainer, TrainConfig
    from ..training.memory import MemoryEstimate

HELP = "train an insertion on preferences, grades, classes or steps"

_DATA = "JSONL (also .gz), Parquet, or a folder of Dataset.save_to_disk, with TRL's columns"
_FULL_LEARNING_RATE = 2e-5
_NO_MEMORY_CHECK = "--no-memory-check"
_DISTILL = ("distill_candidates", "distill_positions", "distill_weight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}; writes an adapter folder."
    parser.add_argument("adapter", nargs="?", type=Path, metavar="ADAPTER", help="adapter folder to start from")
    parser.add_argument(
        "--base", metavar="DIR", help="Hugging Face model or GGUF file; without ADAPTER a fresh insertion is made"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help=_DATA)
    parser.add_argument("--eval-data", type=Path, metavar="FILE", help="the same, held out")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="adapter folder to write")
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"fine-tune all of the base with heads instead of an insertion (--lr then {_FULL_LEARNING_RATE:g})",
    )
    add_tokenizer_check(parser, "train")
    parser.add_argument(
        _NO_MEMORY_CHECK, action="store_true", help="train although more memory is needed than seems to be free"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint of --output")
    start.add_argument("--force", action="store_true", help="replace a run that is in --output")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")
    add_options(parser.add_argument_group("training"), TrainOptions, ())
    add_insert_arguments(parser, leave_out=("seed",))


def run(args: argparse.Namespace) -> int:
    """Train and save; prints the folder and the last metrics."""
    rate = {"learning_rate": _FULL_LEARNING_RATE} if args.full else {}
    options = TrainOptions(**{**rate, **given(args, TrainOptions)})
    _check_start(args)
    require_training()
    from ..training.trainer import CHANCE

    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log; stdout is for the result
        trainer = _trainer(args, options)
        result = trainer.train(resume_from_checkpoint=True if args.resume else None)
        metrics = {"steps": result.global_step, "train_loss": result.training_loss}
        if args.eval_data:
            metrics.update({name: value for name, value in trainer.evaluate().items() if _is_result(name)})
        warnings = trainer.chance_warnings()
        if options.calibrate:
            _calibrate(trainer, options.batch_size)
        trainer.save_model()
    if not trainer.is_world_process_zero():
        return 0
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    if args.json:
        print_json({"output": str(args.output), **metrics, CHANCE: warnings, **summary(trainer.otter)})
    else:
        print(" ".join(f"{name}={value:.4g}" for name, value in metrics.items()))
        print(args.output)
    return 0


def _is_result(name: str) -> bool:
    """Whether an evaluation's figure says how well, not how fast."""
    return name.startswith("eval_") and not name.endswith(("_runtime", "_time", "_per_second", "_reward"))


def _check_start(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and an output that holds another run."""
    insertion = [name for name in given(args, InsertOptions) if name != "seed"]
    if args.full and (others := [name for name in insertion if name != "activation"]):
        raise ConfigError(f"--full inserts nothing; leave out {', '.join(others)}")
    insertion += [name for name in ("head", "full") if getattr(args, name)]
    if insertion and (args.adapter or args.resume):
        source = "ADAPTER has its insertion" if args.adapter else "--resume keeps the run's insertion"
        raise ConfigError(f"{source}; leave out {', '.join(insertion)}")
    if not (args.adapter or args.base or args.resume):
        raise ConfigError("give an ADAPTER folder to start from, or --base for a fresh insertion")
    if args.resume or args.force or not args.output.exists():
        return
    if (args.output / CONFIG_NAME).exists() or any(args.output.glob("checkpoint-*")):
        raise ConfigError(f"{args.output}: holds a run already; --resume continues it, --force replaces it")


def _trainer(args: argparse.Namespace, options: TrainOptions) -> OtterTrainer:
    """Model, data and configuration as the command line says; with ``--force`` the old run's checkpoints go."""
    import torch

    from ..training import DataOptions, OtterTrainer, load_rows
    from ..training.base import load_tokenizer
    from ..training.full import FullRewardModel
    from ..training.memory import memory_estimate
    from ..training.runs import checkpoints

    if options.threads:
        torch.set_num_threads(options.threads)
    model = _model(args)
    tokenizer = load_tokenizer(model, check=not args.no_tokenizer_check)
    if isinstance(model, FullRewardModel):
        model.tokenizer = tokenizer  # written beside its base, where conversion to GGUF needs it
    rows = DataOptions(
        options.max_length,
        options.append_eos,
        DataOptions.step_separator if options.step_separator is None else options.step_separator,
        model.insertion.reward_labels,
    )
    data = load_rows(args.data, tokenizer, rows)
    evaluation = load_rows(args.eval_data, tokenizer, rows) if args.eval_data else None
    for dataset in filter(None, (data, evaluation)):
        print(dataset)
    config, extra_losses = _config(args, options), _extra_losses(args, model)
    _check_memory(memory_estimate(model, config, data, extra_losses), config, options, ignore=args.no_memory_check)
    if args.force:
        # Else a later --resume would continue the run that was replaced.
        for checkpoint in checkpoints(args.output):
            shutil.rmtree(checkpoint, ignore_errors=True)  # each process of a distributed run tries
    return OtterTrainer(model, config, data, evaluation, extra_losses=extra_losses)


def _check_memory(estimate: MemoryEstimate, config: TrainConfig, options: TrainOptions, *, ignore: bool) -> None:
    """Say what the run will need; ``ConfigError`` with the flags that would help if it is more than there is."""
    from ..training.memory import fitting, free_for, gigabytes

    free = free_for(config)
    if free is None:
        print(f"This run will need {estimate}; how much is free is not known here.")
        return
    room = f"{gigabytes(estimate.held + free)} can be had"
    if estimate.further <= free or ignore:
        print(f"This run will need {estimate}; {room}.")
        return
    helpful = " or ".join(_flags_of(changed, estimate, options) for changed in fitting(estimate, free))
    advice = f"give {helpful}" if helpful else "take a smaller base, a smaller insertion or another machine"
    raise ConfigError(f"this run will need {estimate}, but only {room}; {advice}, or go on with {_NO_MEMORY_CHECK}")


def _flags_of(changed: MemoryEstimate, estimate: MemoryEstimate, options: TrainOptions) -> str:
    """The flags of other settings, and what the run needs with them."""
    from ..training.memory import gigabytes

    flags = ["--recompute"] if changed.recompute != estimate.recompute else []
    if changed.rows != estimate.rows:
        flags.append(f"--batch-size {changed.rows}")
        accumulate = -(-options.accumulate * estimate.rows // changed.rows)  # an optimizer step sees as many rows
        flags.append(f"--accumulate {accumulate}")
    if changed.tokens != estimate.tokens:
        flags.append(f"--max-length {changed.tokens}")
    return f"{' '.join(flags)} ({gigabytes(changed.total)})"


def _extra_losses(args: argparse.Namespace, model: OtterModel) -> list[ExtraLoss]:
    """The distillation of the model's vocabulary heads, if it has some."""
    from ..training.distillation import Distillation, DistillConfig

    wanted = {name.removeprefix("distill_"): getattr(args, name) for name in _DISTILL if hasattr(args, name)}
    if model.vocabulary_heads:
        return [Distillation(DistillConfig(**wanted))]
    if wanted:
        flag = f"--distill-{next(iter(wanted))}"
        raise ConfigError(f"{flag}: the model has no vocabulary head; add --vocabulary-rank to a fresh insertion")
    return []


def _calibrate(trainer: OtterTrainer, batch_size: int) -> None:
    from ..training import RewardDataset, calibrate

    assert isinstance(trainer.train_dataset, RewardDataset)
    for label, (mean, deviation) in calibrate(trainer.otter, trainer.train_dataset, batch_size).items():
        print(f"{label}: mean {mean:.4g} and deviation {deviation:.4g} calibrated to 0 and 1")


def _model(args: argparse.Namespace) -> OtterModel:
    from ..training import load
    from ..training.base import load_base
    from ..training.runs import latest_checkpoint

    if args.resume:
        return load(latest_checkpoint(args.output), args.base)
    if args.adapter:
        return load(args.adapter, args.base)
    return _full_model(args) if args.full else insert_from(args, load_base(args.base))


def _full_model(args: argparse.Namespace) -> OtterModel:
    from ..training import geometry
    from ..training.base import load_base
    from ..training.full import full_reward_model

    base = load_base(args.base)
    options = InsertOptions(**{**given(args, InsertOptions), "width": 0})
    return full_reward_model(base, insertion_config(options, geometry(base), args.head or ()).heads, options.seed)


def _config(args: argparse.Namespace, options: TrainOptions) -> TrainConfig:
    from ..training import TrainConfig
    from ..training.renamed import CHECKPOINTING

    recompute: dict[str, Any] = {CHECKPOINTING: options.recompute}
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
