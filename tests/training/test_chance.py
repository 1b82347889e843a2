"""What a run says that has learnt nothing, and one that has does not (otter_gguf/training/chance.py)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.training import OtterModel, OtterTrainer, RewardDataset, TrainConfig, tokenise_rows
from otter_gguf.training.chance import no_better_than_chance
from otter_gguf.training.objectives import METRICS
from otter_gguf.training.trainer import CHANCE
from tests.refusals import assert_names
from tests.training.mixed import OPTIONS, mixed_otter, mixed_rows
from tests.training.toy import toy_base, toy_otter, toy_rows, toy_tokenizer

LN2 = math.log(2)


def table(**columns: list[float]) -> Tensor:
    """Rows with these metrics, of the first reward."""
    metrics = torch.full((len(next(iter(columns.values()))), len(METRICS)), torch.nan)
    metrics[:, METRICS.index("reward_column")] = 0
    for name, values in columns.items():
        metrics[:, METRICS.index(name)] = torch.tensor(values)
    return metrics


def pair_table(right: int, wrong: int, loss: float) -> Tensor:
    count = right + wrong
    return table(accuracy=[1.0] * right + [0.0] * wrong, pair_loss=[loss] * count, pair_coin_loss=[LN2] * count)


@pytest.mark.parametrize(
    ("right", "wrong", "loss", "learnt"),
    [
        (20, 16, 0.6, False),  # 0.556 of 36 pairs, whose error is 0.083
        (200, 160, 0.6, True),  # the same share of ten times as many
        (24, 12, 0.6, True),
        (12, 24, 0.6, False),
        (30, 6, 0.7, False),  # in order, but surer than right
        (30, 6, 0.69, True),
    ],
)
def test_pairs_are_compared_with_a_coin_toss(right: int, wrong: int, loss: float, learnt: bool) -> None:
    found = no_better_than_chance(pair_table(right, wrong, loss), ("reward",), "held-out")
    assert len(found) == 1 - learnt
    if found:
        accuracy = right / (right + wrong)
        assert found[0].startswith("loss ") == (right == 30)
        assert_names(found[0], f"{right + wrong} held-out pairs", f"{accuracy:.3f}", f"{loss:.3f}", f"{LN2:.3f}")


def test_the_loss_of_a_coin_toss_is_higher_with_margins() -> None:
    count = 40
    columns = {"accuracy": [1.0] * count, "pair_loss": [0.8] * count}
    assert no_better_than_chance(table(**columns, pair_coin_loss=[LN2] * count), ("reward",), "held-out")
    assert not no_better_than_chance(table(**columns, pair_coin_loss=[0.97] * count), ("reward",), "held-out")


def graded(noise: float, count: int = 50) -> Tensor:
    """Labels of variance 1/12, and rewards that differ from them by a deviation of ``noise``."""
    draw = random.Random(0)
    labels = [draw.random() for _ in range(count)]
    return table(squared_error=[draw.gauss(0, noise) ** 2 for _ in labels], graded_label=labels)


def test_grades_are_compared_with_their_mean() -> None:
    assert not no_better_than_chance(graded(0.1), ("grade",), "held-out")
    (line,) = no_better_than_chance(graded(0.3), ("grade",), "held-out")
    assert_names(line, "50 held-out graded", "variance")
    assert no_better_than_chance(graded(0.27), ("grade",), "held-out")  # above 0, by less than its error


def test_grades_that_are_all_the_same_teach_nothing() -> None:
    assert no_better_than_chance(table(squared_error=[0.0] * 9, graded_label=[1.0] * 9), ("grade",), "held-out")


def test_steps_are_compared_with_their_mean() -> None:
    labels = {"step_accuracy": [1.0] * 30, "step_label": [0.5] * 30, "step_squared_label": [0.5] * 30}
    assert not no_better_than_chance(table(**labels, step_squared_error=[0.05] * 30), ("step",), "held-out")
    (line,) = no_better_than_chance(table(**labels, step_squared_error=[0.26] * 30), ("step",), "held-out")
    assert_names(line, 30, "-4.0%")


@pytest.mark.parametrize(
    ("right", "loss", "learnt"),
    [
        ([1.0] * 32 + [0.0] * 8, 1.0, False),  # always class 3
        ([1.0] * 32 + [1.0] * 6 + [0.0] * 2, 1.0, True),  # the others are told apart too
        ([1.0] * 32 + [0.0] * 8, 0.1, True),  # they are not, but class 3 is less probable there
        ([0.0] * 40, 2.0, False),
    ],
)
def test_classes_are_compared_with_the_most_frequent_one(right: list[float], loss: float, learnt: bool) -> None:
    classes = table(class_accuracy=right, class_label=[3.0] * 32 + [1.0] * 8, class_loss=[loss] * 40)
    classes[:, METRICS.index("reward_column")] = 1
    found = no_better_than_chance(classes, ("a", "tone.x", "tone.y", "tone.z"), "training")
    assert len(found) == 1 - learnt
    if found:
        assert_names(found[0], "40 training classed", "tone", f"{sum(right) / 40:.3f}", "0.800")


def test_each_reward_is_judged_by_its_own_rows() -> None:
    good, bad = pair_table(30, 6, 0.4), pair_table(18, 18, 0.9)
    bad[:, METRICS.index("reward_column")] = 1
    (line,) = no_better_than_chance(torch.cat([good, bad]), ("kind", "true"), "held-out")
    assert_names(line, "true", "36 held-out pairs", "0.500")
    assert "kind" not in line


# ---- runs ------------------------------------------------------------------------------------------------------


def shuffled(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The same rows with labels drawn at random, whatever they were."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        row = dict(row)
        if "chosen" in row and draw.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        if "label" in row:
            row["label"] = draw.random()
        if "class" in row:
            row["class"] = draw.choice(["light", "dark"])
        if "labels" in row:
            row["labels"] = [draw.random() < 0.5 for _ in row["labels"]]
        found.append(row)
    return found


def run(folder: Path, model: OtterModel, data: RewardDataset, held_out: RewardDataset | None, steps: int) -> list[str]:
    config = TrainConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=5e-3,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=3,
    )
    trainer = OtterTrainer(model, config, data, held_out)
    trainer.train()
    if held_out is not None:
        trainer.evaluate()
    found = trainer.chance_warnings()
    trainer.save_model()
    return found


@pytest.mark.parametrize("held_out", [True, False])
def test_shuffled_pairs_are_warned_of_and_real_ones_are_not(tmp_path: Path, held_out: bool) -> None:
    """Without held-out rows in one epoch: later even labels without sense are known by heart."""
    steps = 48 if held_out else 16
    for name, change in (("real", list), ("shuffled", shuffled)):
        data, others = (tokenise_rows(change(toy_rows(count, count)), toy_tokenizer()) for count in (128, 64))
        found = run(tmp_path / name, toy_otter(), data, others if held_out else None, steps)
        assert len(found) == (name == "shuffled"), found
        if found:
            assert_names(found[0], "64 held-out pairs" if held_out else "64 training pairs")
        record = json.loads((tmp_path / name / "otter_config.json").read_text())["training"]
        assert record.get(CHANCE, []) == found
        assert OtterModel.from_pretrained(toy_base(), tmp_path / name).training_record == record


def test_every_kind_of_shuffled_rows_is_warned_of_and_no_real_one(tmp_path: Path) -> None:
    for change, kinds in ((list, []), (shuffled, ["pairs", "graded", "classed", "steps"])):
        data, others = (
            tokenise_rows(change(mixed_rows(count, count)), toy_tokenizer(), OPTIONS) for count in (400, 160)
        )
        found = run(tmp_path, mixed_otter(), data, others, 120)
        assert len(found) == len(kinds), found
        for line, kind, reward in zip(found, kinds, ["reward", "grade", "tone", "step"], strict=False):
            assert_names(line, kind, reward)


def test_a_run_that_learns_later_loses_the_warning(tmp_path: Path) -> None:
    model = toy_otter()
    data, others = (tokenise_rows(toy_rows(count, count), toy_tokenizer()) for count in (128, 64))
    assert run(tmp_path, model, tokenise_rows(shuffled(toy_rows(128, 128)), toy_tokenizer()), others, 1)
    assert CHANCE in model.training_record
    assert not run(tmp_path, model, data, others, 48)
    assert CHANCE not in model.training_record
