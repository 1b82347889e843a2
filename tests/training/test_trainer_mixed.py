"""Training with rows of every kind in one run, extra losses, and rows that do not fit the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError
from otter_gguf.training import (
    DataOptions,
    OtterModel,
    OtterOutput,
    OtterTrainer,
    RewardDataset,
    TrainConfig,
    tokenise_rows,
)
from otter_gguf.training.data import Classed, Graded, Pair, Row
from tests.refusals import refused
from tests.training.mixed import OPTIONS, mixed_otter, mixed_rows
from tests.training.test_trainer import check_accumulation, digests, same_tensors
from tests.training.toy import toy_otter, toy_tokenizer

ROOT = Path(__file__).parents[2]
KIND_METRICS = {
    "accuracy",
    "prefix_accuracy",
    "margin",
    "squared_error",
    "correlation",
    "class_accuracy",
    "step_accuracy",
}


def rows(count: int = 80, seed: int = 0) -> RewardDataset:
    return tokenise_rows(mixed_rows(count, seed), toy_tokenizer(), OPTIONS)


def trainer(output: Path, model: OtterModel | None = None, steps: int = 20, **options: Any) -> OtterTrainer:
    extra = options.pop("extra_losses", ())
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 10,
        "save_strategy": "no",
        "learning_rate": 5e-3,
        "seed": 3,
    }
    config = TrainConfig(
        output_dir=str(output), max_steps=steps, use_cpu=True, disable_tqdm=True, **{**defaults, **options}
    )
    return OtterTrainer(model or mixed_otter(), config, rows(), rows(40, 1), extra_losses=extra)


@pytest.mark.parametrize("loss", ["prefix", "final"])
def test_base_stays_and_every_inserted_tensor_changes(tmp_path: Path, loss: str) -> None:
    model = mixed_otter(state_source="table")
    base = digests(model)
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    assert len(before) == 37
    trainer(tmp_path, model, loss=loss, center_rewards_coefficient=0.01).train()
    assert digests(model) == base
    assert [name for name, tensor in model.inserted_parameters().items() if torch.equal(tensor, before[name])] == []
    assert [
        name
        for name, tensor in model.base_model.named_parameters()
        if ".otter." not in name and tensor.grad is not None
    ] == []


def test_learns_every_kind_at_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=100)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.3
    assert after["eval_squared_error"] < 0.05 < before["eval_squared_error"]
    for name in ("accuracy", "correlation", "class_accuracy", "step_accuracy"):
        assert after[f"eval_{name}"] > 0.8 > before[f"eval_{name}"], name


def test_logs_what_the_rows_have(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=8, logging_steps=4, eval_strategy="steps", eval_steps=8)
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    assert set(lines[0]) >= KIND_METRICS
    assert {f"eval_{name}" for name in KIND_METRICS} <= set(run.state.log_history[-2])
    pairs = RewardDataset([row for row in rows().rows if isinstance(row, Pair)])
    alone = OtterTrainer(mixed_otter(), trainer(tmp_path, steps=8, logging_steps=4).train_config, pairs)
    alone.train()
    lines = [line for line in alone.state.log_history if "loss" in line]
    assert KIND_METRICS & set(lines[0]) == {"accuracy", "prefix_accuracy", "margin"}


def test_every_row_counts_the_same(tmp_path: Path) -> None:
    run = trainer(tmp_path, per_device_eval_batch_size=7)  # 40 rows: the last batch is smaller
    alone = []
    for row in rows(40, 1).rows:
        output = OtterTrainer(run.otter, run.train_config, RewardDataset([row]), RewardDataset([row]))
        alone.append(output.evaluate()["eval_loss"])
    assert run.evaluate()["eval_loss"] == pytest.approx(sum(alone) / len(alone), abs=1e-5)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path / str(i), seed=seed, loss=loss)
        for i, (seed, loss) in enumerate([(3, "prefix"), (3, "prefix"), (4, "prefix"), (3, "final")])
    ]
    for run in runs:
        run.train()
    assert same_tensors(runs[0].otter, runs[1].otter)
    assert not same_tensors(runs[0].otter, runs[2].otter)
    assert not same_tensors(runs[0].otter, runs[3].otter)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 10, "center_rewards_coefficient": 0.01}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-20")
    resumed = trainer(tmp_path / "cut", **options)
    assert not same_tensors(whole.otter, resumed.otter)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 20
    assert same_tensors(whole.otter, resumed.otter)


def test_accumulated_batches_give_the_gradient_of_a_large_one(tmp_path: Path) -> None:
    check_accumulation(trainer, tmp_path, [(8, 1), (2, 4)])


class Shrink:
    """Half the mean square of the rewards, weighted."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(
        self, model: OtterModel, inputs: dict[str, Tensor], output: OtterOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, OtterModel)
        assert output.rewards is not None
        assert output.rewards.shape[:2] == inputs["input_ids"].shape
        square = output.rewards.square().mean() / 2
        return self.weight * square, {"square": square}


def test_extra_losses_are_added_and_logged(tmp_path: Path) -> None:
    plain, extra = trainer(tmp_path / "a"), trainer(tmp_path / "b", extra_losses=[Shrink(0.5), Shrink(1.5)])
    without, found = plain.evaluate(), extra.evaluate()
    assert "eval_square" not in without
    assert found["eval_loss"] == pytest.approx(without["eval_loss"] + 2 * found["eval_square"], abs=1e-4)
    plain.train()
    extra.train()
    plain.extra_losses = (Shrink(0.0),)
    assert extra.evaluate()["eval_square"] < plain.evaluate()["eval_square"]
    assert any("square" in line for line in extra.state.log_history)
    assert not same_tensors(plain.otter, extra.otter)


def test_rows_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), use_cpu=True)
    heads = (
        HeadConfig("a"),
        HeadConfig("tone", ("x", "y"), activation="softmax"),
        HeadConfig("b", ("x", "y"), activation="tanh"),
    )
    model = toy_otter(heads=heads)

    def classed(columns: range) -> Classed:
        return Classed([1, 2, 3], 1, columns, columns[0])

    good: list[Row] = [Graded([1, 2, 3], 1, 0.5, 4), classed(range(1, 3))]
    OtterTrainer(model, config, RewardDataset(good))
    bad: list[tuple[Row, tuple[object, ...]]] = [
        (Pair([1, 2], [1, 3], 1, 5), (6, 5, "rewards", "model.insertion.reward_labels")),
        (classed(range(4)), ("classes", "head", "rewards", "model.insertion.reward_labels")),
        (classed(range(3, 5)), ("head 'b'", "activation", "tanh", "softmax", "none")),
    ]
    for row, names in bad:
        for datasets in ((RewardDataset([*good, row]), None), (RewardDataset(good), RewardDataset([row]))):
            with refused(ConfigError, *names):
                OtterTrainer(model, config, *datasets)


def test_the_options_of_another_insertion_are_noticed(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), use_cpu=True)
    row = {"prompt": "a", "completion": "b", "class": "x"}
    dataset = tokenise_rows([row], toy_tokenizer(), DataOptions(rewards=("tone.x", "tone.y", "tone.z")))
    with refused(ConfigError, "classes", "head", "rewards"):
        OtterTrainer(toy_otter(heads=(HeadConfig("tone", ("x", "y", "z", "w")),)), config, dataset)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from tests.training.test_trainer_mixed import trainer
run = trainer(Path(sys.argv[1]), steps=8, center_rewards_coefficient=0.01,
    per_device_train_batch_size=int(sys.argv[2]), per_device_eval_batch_size=4, logging_steps=8)
run.train()
found = {**run.evaluate(), **run.state.log_history[0]}
tensors = torch.cat([tensor.detach().flatten() for tensor in run.otter.inserted_parameters().values()])
Path(sys.argv[1], f"result{run.args.process_index}.json").write_text(json.dumps([found, tensors.tolist()]))
"""


@pytest.mark.slow
def test_processes_may_have_rows_of_different_kinds(tmp_path: Path) -> None:
    results = {}
    for count, batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(count)
        folder.mkdir()
        script = folder / "run.py"
        script.write_text(TWO_PROCESSES)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        subprocess.run(
            [sys.executable, *launch, str(script), str(folder), str(batch)], env=environment, check=True, timeout=120
        )
        results[count] = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(count)]
    ((alone, weights),) = results[1]
    (first, own), (_, other) = results[2]
    assert own == other
    torch.testing.assert_close(torch.tensor(own), torch.tensor(weights), atol=1e-5, rtol=0)
    for name in KIND_METRICS:
        assert first[name] == pytest.approx(alone[name], abs=1e-4)
        assert first[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], abs=1e-4)
    assert first["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-4)
