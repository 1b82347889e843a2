"""Training on the toy: what changes, what must not, and that a run can be repeated and resumed bit for bit."""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.training import (
    DataOptions,
    OtterModel,
    OtterTrainer,
    RewardDataset,
    TrainConfig,
    load_rows,
    tokenise_rows,
)
from otter_gguf.training.runs import checkpoint_problem, checkpoints, latest_checkpoint
from tests.refusals import assert_names, refused
from tests.training.toy import toy_base, toy_folder, toy_otter, toy_rows, toy_tokenizer, write_rows

ROOT = Path(__file__).parents[2]


def pairs(count: int = 64, seed: int = 0) -> RewardDataset:
    return tokenise_rows(toy_rows(count, seed), toy_tokenizer())


def trainer(output: Path, model: OtterModel | None = None, steps: int = 8, **options: Any) -> OtterTrainer:
    defaults: dict[str, Any] = {"per_device_train_batch_size": 8, "save_steps": 2, "learning_rate": 5e-3, "seed": 3}
    config = TrainConfig(
        output_dir=str(output), max_steps=steps, use_cpu=True, disable_tqdm=True, **{**defaults, **options}
    )
    evaluation = pairs(16, 1) if options.get("eval_strategy") else None
    return OtterTrainer(model or toy_otter(), config, pairs(), evaluation)


def digests(model: OtterModel) -> dict[str, str]:
    """SHA-256 of every tensor of the base."""
    return {
        name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        for name, tensor in model.base_model.state_dict().items()
        if ".otter." not in name
    }


def same_tensors(first: OtterModel, second: OtterModel) -> bool:
    others = second.inserted_parameters()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.inserted_parameters().items())


@pytest.mark.parametrize("changes", [{}, {"state_source": "table"}, {"n_head_kv": 0}])
def test_base_stays_and_every_inserted_tensor_changes(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = toy_otter(**changes)
    base = digests(model)
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    assert len(base) == 30
    # Without centering the gradient of a head's bias is zero but for rounding.
    trainer(tmp_path, model, center_rewards_coefficient=0.01).train()
    assert digests(model) == base
    assert [name for name, tensor in model.inserted_parameters().items() if torch.equal(tensor, before[name])] == []


def test_the_digest_would_notice_a_changed_base() -> None:
    model = toy_otter()
    before = digests(model)
    with torch.no_grad():
        model.base_model.get_parameter("model.layers.2.mlp.up_proj.base.weight")[0, 0] += 1e-6
    assert len(set(before.items()) ^ set(digests(model).items())) == 2


def test_learns_to_prefer_the_chosen_responses(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=60, eval_strategy="steps", eval_steps=60, save_strategy="no")
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.2
    assert after["eval_accuracy"] > 0.9 > before["eval_accuracy"]
    assert after["eval_prefix_accuracy"] > 0.8
    assert after["eval_margin"] > before["eval_margin"]
    assert after["eval_min_reward"] < after["eval_mean_reward"] < after["eval_max_reward"]


def test_logs_trls_metrics(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4, save_strategy="no")
    run.train()
    names = {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "prefix_accuracy", "loss"}
    lines = [line for line in run.state.log_history if "loss" in line]
    assert len(lines) == 2
    assert names <= set(lines[0])
    assert {f"eval_{name}" for name in names} <= set(run.state.log_history[-2])


def test_losses_and_centering_are_chosen_by_name(tmp_path: Path) -> None:
    losses = {}
    choices: dict[str, dict[str, Any]] = {
        "prefix": {},
        "final": {"loss": "final"},
        "centered": {"center_rewards_coefficient": 0.5},
    }
    for name, options in choices.items():
        run = trainer(tmp_path / name, eval_strategy="steps", eval_steps=8, **options)
        losses[name] = run.evaluate()["eval_loss"]
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    assert losses["centered"] > losses["prefix"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"loss": "dpo"}, ("loss", "'dpo'", "prefix", "final")),
        ({"center_rewards_coefficient": -1.0}, ("center_rewards_coefficient", -1.0)),
        ({"center_rewards_coefficient": math.nan}, ("center_rewards_coefficient", math.nan)),
    ],
)
def test_refuses_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        TrainConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)])
def test_learns_in_half_precision(tmp_path: Path, dtype: torch.dtype, mixed: bool) -> None:
    model = toy_otter(base=toy_base().to(dtype))
    run = trainer(tmp_path, model, 40, bf16=mixed, eval_strategy="steps", eval_steps=40, save_strategy="no")
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before - 0.1
    assert {tensor.dtype for tensor in model.inserted_parameters().values()} == {torch.float32}


def test_refuses_to_spread_the_model_over_devices(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), use_cpu=True)
    config.deepspeed = "zero3.json"
    with refused(ConfigError, "DeepSpeed", "FSDP"):
        OtterTrainer(toy_otter(), config, pairs())


def check_accumulation(make: Callable[..., OtterTrainer], folder: Path, splits: Sequence[tuple[int, int]]) -> None:
    """One step with each (batch, accumulation) changes every tensor as the first of them does."""
    models = []
    for batch, accumulate in splits:
        run = make(
            folder / str(batch),
            steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            max_grad_norm=0,
            save_strategy="no",
        )
        run.train()
        models.append(run.otter.inserted_parameters())
    for other in models[1:]:
        for name, tensor in models[0].items():
            torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=0, msg=name)


def test_accumulated_batches_give_the_gradient_of_a_large_one(tmp_path: Path) -> None:
    check_accumulation(trainer, tmp_path, [(8, 1), (4, 2), (2, 4)])


def test_each_pair_trains_the_reward_it_names(tmp_path: Path) -> None:
    heads = (HeadConfig("a"), HeadConfig("b", ("x", "y")))
    model = toy_otter(heads=heads)
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    rows = [{**row, "reward": "b.y"} for row in toy_rows(16)]
    data = tokenise_rows(rows, toy_tokenizer(), DataOptions(rewards=model.insertion.reward_labels))
    config = TrainConfig(output_dir=str(tmp_path), max_steps=3, use_cpu=True, disable_tqdm=True, save_strategy="no")
    OtterTrainer(model, config, data).train()
    after = model.inserted_parameters()
    assert torch.equal(after["heads.a.otter.weight"], before["heads.a.otter.weight"])
    changed = (after["heads.b.otter.weight"] != before["heads.b.otter.weight"]).any(dim=1)
    assert changed.tolist() == [False, True]


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / str(i), seed=seed, save_strategy="no") for i, seed in enumerate((3, 3, 4))]
    for run in runs:
        run.train()
    assert same_tensors(runs[0].otter, runs[1].otter)
    assert not same_tensors(runs[0].otter, runs[2].otter)


@pytest.mark.parametrize("options", [{}, {"lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.1}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(tmp_path / "cut" / name)
    resumed = trainer(tmp_path / "cut", **options)
    assert not same_tensors(whole.otter, resumed.otter)
    resumed.train(resume_from_checkpoint=True)
    assert same_tensors(whole.otter, resumed.otter)
    fresh = trainer(tmp_path / "fresh", steps=4, **options)
    fresh.train()
    assert not same_tensors(whole.otter, fresh.otter)


def test_incomplete_checkpoints_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path).train()
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert latest_checkpoint(tmp_path).name == "checkpoint-8"
    (tmp_path / "checkpoint-8" / "otter_manifest.json").unlink()
    optimizer = tmp_path / "checkpoint-6" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    (tmp_path / "checkpoint-final").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-4"
    newest, older = caplog.messages
    assert_names(newest, "checkpoint-8", "otter_manifest.json")
    assert_names(older, "checkpoint-6", "optimizer.pt")
    with refused(FileError, "checkpoint-6", "optimizer.pt"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_torn_checkpoints_of_every_kind_are_incomplete(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).train()
    whole = tmp_path / "checkpoint-2"
    assert checkpoint_problem(whole) is None
    files = sorted(path.name for path in whole.iterdir())
    draw = random.Random(0)
    for number in range(50):
        torn = tmp_path / f"torn{number}"
        shutil.copytree(whole, torn)
        victim = torn / files[number % len(files)]
        data = bytearray(victim.read_bytes())
        kind = number % 3
        if kind == 0:
            victim.unlink()
        elif kind == 1:
            victim.write_bytes(data[: draw.randrange(len(data))])
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            victim.write_bytes(data)
        # A flipped bit in the blanks of the manifest changes nothing that it says.
        if not (kind == 2 and victim.name == "otter_manifest.json"):
            assert checkpoint_problem(torn) is not None, (victim.name, kind)


def test_a_run_without_complete_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with refused(FileError, tmp_path, "checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_old_checkpoints_go_but_never_the_best(tmp_path: Path) -> None:
    trainer(tmp_path / "limited", steps=10, save_total_limit=2).train()
    assert [path.name for path in checkpoints(tmp_path / "limited")] == ["checkpoint-8", "checkpoint-10"]
    best = trainer(
        tmp_path / "best",
        steps=10,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=1.0,  # so large that the first checkpoint stays the best
    )
    best.train()
    assert best.state.best_model_checkpoint is not None
    kept = Path(best.state.best_model_checkpoint)
    assert checkpoint_problem(kept) is None
    assert same_tensors(OtterModel.from_pretrained(toy_base(), kept), best.otter)


def test_a_torn_checkpoint_does_not_push_out_complete_ones(tmp_path: Path) -> None:
    trainer(tmp_path, steps=6).train()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    resumed = trainer(tmp_path, steps=5, save_steps=1, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-5"


def test_checkpoints_hold_inserted_tensors_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=2)
    run.train()
    run.save_model()
    inserted = sum(tensor.numel() * 4 for tensor in run.otter.inserted_parameters().values())
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert inserted < (folder / "otter_model.safetensors").stat().st_size < inserted + 8192
        assert same_tensors(OtterModel.from_pretrained(toy_base(), folder), run.otter)
    assert not list(tmp_path.glob("**/*.bin"))
    assert not list(tmp_path.glob("**/model*.safetensors"))


KILLED_RUN = """
import sys
from pathlib import Path
from tests.training.test_trainer import trainer
run = trainer(Path(sys.argv[1]), steps=100_000, save_steps=1, save_total_limit=3)
print("ready", flush=True)
run.train()
"""


def kill_and_resume(folder: Path, delay: float) -> None:
    """Start a run that saves at every step, kill it, and resume from what it left."""
    trained = trainer(folder, steps=2)
    trained.train()
    trained.save_model()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(folder)], env=environment, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    time.sleep(delay)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert same_tensors(OtterModel.from_pretrained(toy_base(), folder), trained.otter)
    newest = latest_checkpoint(folder)
    step = int(newest.name.removeprefix("checkpoint-"))
    resumed = trainer(folder, steps=step + 1, save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert resumed.state.global_step == step + 1
    assert same_tensors(OtterModel.from_pretrained(toy_base(), folder), resumed.otter)


def test_a_killed_run_can_be_resumed(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 0.7)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_run_killed_at_any_moment_can_be_resumed(tmp_path: Path, number: int) -> None:
    kill_and_resume(tmp_path, random.Random(number).uniform(0.0, 2.0))


def test_trains_from_a_folder_as_the_documentation_says(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = toy_folder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = toy_otter(base=AutoModelForCausalLM.from_pretrained(folder))
    data = load_rows(write_rows(tmp_path / "pairs.jsonl", toy_rows(16)), tokenizer, DataOptions(max_length=64))
    config = TrainConfig(output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, disable_tqdm=True)
    run = OtterTrainer(model, config, data)
    run.train()
    run.save_model()
    loaded = OtterModel.from_pretrained(str(folder), tmp_path / "out")
    output = loaded(tokenizer("The otter", return_tensors="pt")["input_ids"])
    assert output.rewards.shape == (1, output.logits.shape[1], 1)
