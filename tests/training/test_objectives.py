"""Batches of mixed rows: the right loss for each, and every gradient against central differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig
from otter_gguf.training import OtterModel, tokenise_rows
from otter_gguf.training.data import Classed, Graded, Pair, Row, Stepped, collate
from otter_gguf.training.losses import align_pairs, centering_loss, graded_loss, prefix_loss, prefix_weights
from otter_gguf.training.objectives import METRICS, NOT_LOGGED, Objective, summary
from tests.training.mixed import OPTIONS, mixed_otter, mixed_rows
from tests.training.toy import toy_base, toy_otter, toy_tokenizer

PAIRS = [
    Pair(chosen=[1, 2, 40, 41, 42], rejected=[1, 2, 50, 51], start=2, margin=0.8),
    Pair(chosen=[7, 60, 61], rejected=[7, 70, 71, 72, 73], start=1, margin=-0.3),
]
GRADED = [Graded([1, 2, 40, 41, 42], 2, 0.25), Graded([7, 60, 61, 62], 1, 1.0)]
CLASSED = [Classed([1, 2, 40, 41, 42], 2, range(3), 1), Classed([7, 60, 61, 62], 1, range(3), 0)]
STEPPED = [Stepped([1, 2, 40, 41, 42], 2, [2, 4], [1.0, 0.25]), Stepped([7, 60, 61, 62], 1, [3], [0.0])]
CLASSES = ("x", "y", "z")


def evaluate(model: OtterModel, rows: list[Any], loss: str = "prefix", center: float = 0.0) -> tuple[Tensor, Tensor]:
    batch = collate(rows)
    return Objective(model.insertion, loss, center)(model(batch["input_ids"], return_logits=False), batch)


@pytest.fixture(scope="module")
def mixed() -> tuple[OtterModel, list[Row]]:
    return mixed_otter(init="normal"), tokenise_rows(mixed_rows(10), toy_tokenizer(), OPTIONS).rows


@pytest.mark.parametrize("loss", ["prefix", "final"])
def test_a_row_has_the_same_loss_in_any_company(mixed: tuple[OtterModel, list[Row]], loss: str) -> None:
    model, rows = mixed
    losses, metrics = evaluate(model, rows, loss, 0.1)
    assert len({type(row) for row in rows}) == 4
    for index, row in enumerate(rows):
        alone, measured = evaluate(model, [row], loss, 0.1)
        torch.testing.assert_close(alone[0], losses[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(measured[0], metrics[index], atol=1e-5, rtol=0, equal_nan=True)
    assert len({round(value, 4) for value in losses.tolist()}) == len(rows)


def test_each_kind_of_row_meets_its_own_loss(mixed: tuple[OtterModel, list[Row]]) -> None:
    model, rows = mixed
    losses, _ = evaluate(model, rows, center=0.5)
    for row, found in zip(rows, losses, strict=True):
        rewards = [model.rewards(torch.tensor([tokens]))[0] for tokens in row.sequences]
        output = model(torch.tensor([row.sequences[0]]), return_logits=False)
        length = torch.tensor([len(tokens) for tokens in row.sequences])
        start, expected = torch.tensor([row.start]), torch.tensor(0.0)
        if isinstance(row, Pair):
            padded = torch.nn.utils.rnn.pad_sequence([r[:, row.reward] for r in rewards], batch_first=True)
            pairs = align_pairs(padded, start, length)
            expected = prefix_loss(pairs, torch.tensor([row.margin])) + 0.5 * centering_loss(pairs)
        elif isinstance(row, Graded):
            own = rewards[0][None, :, row.reward]
            expected = graded_loss(own, torch.tensor([row.label]), prefix_weights(start, length, own))
        elif isinstance(row, Classed):
            own = rewards[0][row.start :, row.label].log()  # of probabilities, since the head's activation is softmax
            expected = -(prefix_weights(torch.tensor([0]), torch.tensor([len(own)]), own[None]) * own).sum()
        elif isinstance(row, Stepped):
            z = output.raw_rewards[0, row.ends, row.reward]
            label = torch.tensor(row.labels)
            expected = -(label * z.sigmoid().log() + (1 - label) * (1 - z.sigmoid()).log()).mean()
        torch.testing.assert_close(expected.reshape(()), found, atol=1e-5, rtol=1e-5)


def test_metrics_say_how_good_each_kind_is(mixed: tuple[OtterModel, list[Row]]) -> None:
    model, rows = mixed
    _, metrics = evaluate(model, rows)
    assert metrics.shape == (10, len(METRICS))
    logged = [name for name in METRICS if name not in NOT_LOGGED or name.startswith("graded_")]
    found = {
        kind: {name for name in logged if not math.isnan(row[METRICS.index(name)])}
        for kind, row in zip(map(type, rows), metrics, strict=True)
    }
    assert found[Pair] == {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "prefix_accuracy"}
    assert found[Graded] == {"squared_error", "graded_reward", "graded_label"}
    assert (found[Classed], found[Stepped]) == ({"class_accuracy"}, {"step_accuracy"})
    for row, values in zip(rows, metrics, strict=True):
        rewards = model.rewards(torch.tensor([row.sequences[0]]))[0]
        measured = dict(zip(METRICS, values.tolist(), strict=True))
        if isinstance(row, Classed):
            best = max(row.rewards, key=lambda column: rewards[-1, column].item())
            assert measured["class_accuracy"] == (best == row.label)
        elif isinstance(row, Stepped):
            right = [(rewards[end, row.reward] > 0.5) == (y > 0.5) for end, y in zip(row.ends, row.labels, strict=True)]
            assert measured["step_accuracy"] == pytest.approx(sum(map(float, right)) / len(right))
        elif isinstance(row, Graded):
            error = (rewards[-1, row.reward].item() - row.label) ** 2
            assert measured["squared_error"] == pytest.approx(error, abs=1e-5)


def test_what_a_run_is_judged_by_is_measured_too(mixed: tuple[OtterModel, list[Row]]) -> None:
    """Losses of pairs beside those of equal rewards; of classes the loss at the end; errors of steps."""
    model, rows = mixed
    losses, metrics = evaluate(model, rows, center=0.1)
    for row, loss, values in zip(rows, losses, metrics, strict=True):
        measured = dict(zip(METRICS, values.tolist(), strict=True))
        output = model(torch.tensor([row.sequences[0]]), return_logits=False)
        assert measured["reward_column"] == row.rewards[0]
        if isinstance(row, Pair):
            n = max(map(len, row.sequences)) - row.start
            coin = sum(math.log1p(math.exp(row.margin * t / n)) for t in range(1, n + 1)) / n
            assert measured["pair_coin_loss"] == pytest.approx(coin, rel=1e-5)
            assert measured["pair_loss"] < loss  # without centering
            assert measured["pair_loss"] != pytest.approx(coin, rel=1e-5)
        elif isinstance(row, Classed):
            probability = output.rewards[0, -1, row.label].item()
            assert measured["class_loss"] == pytest.approx(-math.log(probability), rel=1e-4)
            assert measured["class_label"] == row.label
        elif isinstance(row, Stepped):
            errors = [
                (output.rewards[0, end, row.reward] - y) ** 2 for end, y in zip(row.ends, row.labels, strict=True)
            ]
            assert measured["step_squared_error"] == pytest.approx(float(sum(errors).detach()) / len(errors), rel=1e-4)
            assert measured["step_label"] == pytest.approx(sum(row.labels) / len(row.labels))
            assert measured["step_squared_label"] == pytest.approx(sum(y * y for y in row.labels) / len(row.labels))
    assert not set(summary(metrics)) & set(NOT_LOGGED)


def test_a_log_line_has_what_its_rows_have() -> None:
    table = torch.full((4, len(METRICS)), torch.nan)
    assert summary(table) == {}
    columns: dict[str, list[float]] = {
        "accuracy": [1, 0],
        "min_reward": [-3, 2],
        "max_reward": [0, 5],
        "squared_error": [0.25, 0.75],
        "graded_reward": [0.1, 0.7, 0.9],
        "graded_label": [0, 0.5, 1],
    }
    for name, values in columns.items():
        table[: len(values), METRICS.index(name)] = torch.tensor(values)
    found = summary(table)
    assert {name: round(value, 4) for name, value in found.items()} == {
        "accuracy": 0.5,
        "min_reward": -3,
        "max_reward": 5,
        "squared_error": 0.5,
        "correlation": 0.9608,
    }
    table[:, METRICS.index("graded_label")] = 1
    assert "correlation" not in summary(table)


CASES: dict[str, tuple[list[Any], HeadConfig, str, float]] = {
    "prefix": ([*PAIRS], HeadConfig(input="both"), "prefix", 0),
    "final": ([*PAIRS], HeadConfig(input="both"), "final", 0),
    "centred": ([*PAIRS], HeadConfig(input="both"), "prefix", 0.3),
    "bounded pairs": ([*PAIRS], HeadConfig(input="both", activation="tanh", scale=(2.0,)), "prefix", 0.3),
    "graded": ([*GRADED], HeadConfig(input="both", activation="sigmoid", scale=(2.0,)), "prefix", 0),
    "graded final": ([*GRADED], HeadConfig(input="both"), "final", 0),
    "classes": ([*CLASSED], HeadConfig("a", CLASSES, "both", "softmax"), "prefix", 0),
    "classes final": ([*CLASSED], HeadConfig("a", CLASSES, "both"), "final", 0),
    "steps": ([*STEPPED], HeadConfig(input="both", activation="sigmoid"), "prefix", 0),
    "steps squared": ([*STEPPED], HeadConfig(input="both"), "prefix", 0),
}


def asymmetries(model: OtterModel, rows: list[Any], loss: str, center: float) -> dict[str, float]:
    """For every inserted tensor the mean of |a - n| / (|a| + |n|) over sampled entries; n by central differences.

    Entries whose gradients are both below 1e-7 count as 0: rows of tokens that do not occur, and biases of heads
    that Bradley-Terry leaves free.
    """

    def value() -> Tensor:
        return evaluate(model, rows, loss, center)[0].mean()

    model.zero_grad()
    value().backward()
    draw, step, found = torch.Generator().manual_seed(4), 1e-5, {}
    for name, tensor in model.inserted_parameters().items():
        assert tensor.grad is not None
        gradient = tensor.grad.view(-1)
        likely = gradient.abs().topk(min(16, gradient.numel())).indices  # of a large table hardly a row occurs
        order = torch.cat([likely[torch.randperm(len(likely), generator=draw)[:3]], torch.tensor([0])])
        ratios = []
        for index in order.tolist():
            analytic = gradient[index].item()
            sides = []
            with torch.no_grad():
                entry = tensor.view(-1)[index]
                before = entry.item()
                for sign in (1, -1):
                    entry.fill_(before + sign * step)
                    sides.append(value().item())
                entry.fill_(before)
            numeric = (sides[0] - sides[1]) / (2 * step)
            size = abs(analytic) + abs(numeric)
            ratios.append(abs(analytic - numeric) / size if size > 2e-7 else 0.0)
        found[name] = sum(ratios) / len(ratios)
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_agree_with_central_differences(case: str) -> None:
    rows, head, loss, center = CASES[case]
    model = toy_otter("normal", toy_base().double(), heads=(head,), state_source="table")
    found = asymmetries(model, rows, loss, center)
    assert len(found) == 31
    assert {name: value for name, value in found.items() if value > 1e-4} == {}
    flat = [name for name, tensor in model.inserted_parameters().items() if tensor.grad.abs().max() < 1e-7]  # type: ignore[union-attr]
    # Bradley-Terry fixes differences of rewards alone.
    assert flat == (["heads.reward.otter.bias"] if case in ("prefix", "final") else [])
    assert [
        name
        for name, tensor in model.base_model.named_parameters()
        if ".otter." not in name and tensor.grad is not None
    ] == []


def test_a_wrong_gradient_is_noticed() -> None:
    model = toy_otter("normal", toy_base().double())
    model.inserted_parameters()["model.norm.otter.weight"].register_hook(lambda gradient: gradient * 1.05)
    found = asymmetries(model, [*PAIRS], "prefix", 0)
    assert [name for name, value in found.items() if value > 1e-4] == ["model.norm.otter.weight"]
