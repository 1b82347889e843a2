"""The losses against loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.training.losses import (
    LOSSES,
    WEIGHTS,
    align_pairs,
    centering_loss,
    class_loss,
    final_loss,
    graded_loss,
    pair_metrics,
    prefix_loss,
    step_loss,
)

START = torch.tensor([2, 1, 3])
LENGTH = torch.tensor([5, 6, 4, 3, 6, 7])  # chosen, then rejected
REWARDS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCORES = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MARGIN = torch.tensor([0.7, 0.0, -1.5], dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def written_out(rewards: Tensor, margin: Tensor | None = None) -> tuple[list[float], list[float]]:
    """Prefix and final loss, pair by pair and length by length."""
    prefix, final = [], []
    for pair in range(3):
        start, m = int(START[pair]), 0.0 if margin is None else margin[pair].item()
        chosen = rewards[pair, start : int(LENGTH[pair])].tolist()
        rejected = rewards[pair + 3, start : int(LENGTH[pair + 3])].tolist()
        n = max(len(chosen), len(rejected))
        chosen += chosen[-1:] * (n - len(chosen))
        rejected += rejected[-1:] * (n - len(rejected))
        losses = [-log_sigmoid(chosen[i - 1] - rejected[i - 1] - m * i / n) for i in range(1, n + 1)]
        prefix.append(sum(losses) / n)
        final.append(losses[-1])
    return prefix, final


@pytest.mark.parametrize("margin", [None, MARGIN])
def test_losses_of_pairs_are_what_the_formula_says(margin: Tensor | None) -> None:
    pairs = align_pairs(REWARDS, START, LENGTH)
    prefix, final = written_out(REWARDS, margin)
    assert prefix_loss(pairs, margin).tolist() == pytest.approx(prefix, abs=1e-12)
    assert final_loss(pairs, margin).tolist() == pytest.approx(final, abs=1e-12)
    assert prefix != pytest.approx(final, abs=1e-3)


def test_a_margin_asks_for_more_and_a_negative_one_for_less() -> None:
    pairs = align_pairs(REWARDS, START, LENGTH)
    for loss in LOSSES.values():
        change = loss(pairs, MARGIN) - loss(pairs)
        assert change.sign().tolist() == MARGIN.sign().tolist()


def test_a_margin_asks_for_little_at_first_and_for_all_at_the_end() -> None:
    rewards = torch.zeros(2, 4, dtype=torch.float64).requires_grad_()
    loss = prefix_loss(align_pairs(rewards, torch.tensor([0]), torch.tensor([4, 4])), torch.tensor([2.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    expected = [-1 / (1 + math.exp(-2 * i / 4)) / 4 for i in range(1, 5)]
    assert gradient[0].tolist() == pytest.approx(expected)


def each_loss() -> dict[str, Callable[[Tensor], Tensor]]:
    """Every loss as a function of (6, 7) rewards, with the tokens that may count."""
    start, scores = START.repeat(2), SCORES.clone()

    def classes(rewards: Tensor, name: str) -> Tensor:
        z = scores + rewards[:, :, None] * torch.arange(5)
        columns, label = torch.tensor([[0, 5]] * 6), torch.arange(6) % 5
        return class_loss(z, columns, label, WEIGHTS[name](start, LENGTH, z))

    def graded(rewards: Tensor, name: str) -> Tensor:
        return graded_loss(rewards, torch.full((6,), 0.4), WEIGHTS[name](start, LENGTH, rewards))

    def pairs(rewards: Tensor, name: str) -> Tensor:
        return LOSSES[name](align_pairs(rewards, START, LENGTH), MARGIN)

    return {
        f"{loss.__name__} {name}": partial(loss, name=name)
        for loss in (pairs, graded, classes)
        for name in ("prefix", "final")
    }


@pytest.mark.parametrize("name", list(each_loss()))
def test_prompt_and_padding_do_not_count(name: str) -> None:
    changed = REWARDS.clone()
    for row in range(6):
        changed[row, : START[row % 3]] += 5
        changed[row, LENGTH[row] :] -= 7
    loss = each_loss()[name]
    assert torch.equal(loss(changed), loss(REWARDS))
    changed[:, 3] += 1  # one inside all but one response
    if name.endswith("prefix"):
        assert not torch.equal(loss(changed), loss(REWARDS))


@pytest.mark.parametrize("name", list(each_loss()))
def test_every_response_token_counts_in_a_prefix_loss_alone(name: str) -> None:
    rewards = REWARDS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(each_loss()[name](rewards).sum(), rewards)
    steps = torch.arange(7)
    inside = (steps >= START.repeat(2)[:, None]) & (steps < LENGTH[:, None])
    assert torch.equal(gradient != 0, inside if name.endswith("prefix") else steps == LENGTH[:, None] - 1)


@pytest.mark.parametrize("name", list(each_loss()))
def test_extreme_rewards_stay_finite(name: str) -> None:
    rewards = (REWARDS * 1e6).requires_grad_()
    loss = each_loss()[name](rewards)
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_swapping_the_responses_changes_the_loss() -> None:
    swapped = align_pairs(REWARDS.roll(3, 0), START, LENGTH.roll(3, 0))
    assert (prefix_loss(swapped) - prefix_loss(align_pairs(REWARDS, START, LENGTH))).abs().min() > 1e-3


def test_centering_pulls_rewards_to_zero() -> None:
    pairs = align_pairs(REWARDS, START, LENGTH)
    chosen, rejected = pairs.final
    assert centering_loss(pairs).tolist() == pytest.approx(((chosen + rejected) ** 2).tolist())
    assert (centering_loss(align_pairs(REWARDS + 10, START, LENGTH)) > centering_loss(pairs)).all()
    opposite = torch.cat([REWARDS[:3], -REWARDS[:3]])
    assert centering_loss(align_pairs(opposite, START, LENGTH[:3].repeat(2))).tolist() == [0, 0, 0]


def test_weights_grow_with_the_length_and_sum_to_one() -> None:
    weights = WEIGHTS["prefix"](START, LENGTH[:3], REWARDS[:3])
    for row in range(3):
        n = int(LENGTH[row] - START[row])
        expected = [2 * t / (n * (n + 1)) for t in range(1, n + 1)]
        assert weights[row].tolist() == pytest.approx([0] * int(START[row]) + expected + [0] * int(7 - LENGTH[row]))
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert WEIGHTS["final"](START, LENGTH[:3], REWARDS[:3]).nonzero().tolist() == [[0, 4], [1, 5], [2, 3]]


def test_graded_loss_is_what_the_formula_says() -> None:
    label = torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64)
    rewards, length = REWARDS[:3], LENGTH[:3]
    found = graded_loss(rewards, label, WEIGHTS["prefix"](START, length, rewards))
    for row in range(3):
        n = int(length[row] - START[row])
        terms = [t * (rewards[row, START[row] + t - 1] - label[row]).item() ** 2 for t in range(1, n + 1)]
        assert found[row].item() == pytest.approx(2 / (n * (n + 1)) * sum(terms), abs=1e-12)
    final = graded_loss(rewards, label, WEIGHTS["final"](START, length, rewards))
    assert final[0].item() == pytest.approx((rewards[0, 4] - label[0]).item() ** 2, abs=1e-12)


def test_class_loss_is_what_the_formula_says() -> None:
    columns, label = torch.tensor([[0, 2], [2, 5], [2, 5]]), torch.tensor([1, 2, 4])
    scores, length = SCORES[:3], LENGTH[:3]
    found = class_loss(scores, columns, label, WEIGHTS["prefix"](START, length, scores))
    for row in range(3):
        n, (first, last) = int(length[row] - START[row]), columns[row].tolist()
        total = 0.0
        for t in range(1, n + 1):
            z = scores[row, START[row] + t - 1]
            probability = math.exp(z[label[row]]) / sum(math.exp(x) for x in z[first:last])
            total += 2 * t / (n * (n + 1)) * -math.log(probability)
        assert found[row].item() == pytest.approx(total, abs=1e-12)


def test_another_heads_scores_do_not_count_in_the_class_loss() -> None:
    columns, label = torch.tensor([[2, 5]] * 3), torch.tensor([2, 3, 4])
    weights = WEIGHTS["prefix"](START, LENGTH[:3], SCORES[:3])
    changed = SCORES[:3].clone()
    changed[:, :, :2] += 9
    assert torch.equal(class_loss(changed, columns, label, weights), class_loss(SCORES[:3], columns, label, weights))
    assert not torch.equal(
        class_loss(changed, torch.tensor([[1, 5]] * 3), label, weights),
        class_loss(SCORES[:3], torch.tensor([[1, 5]] * 3), label, weights),
    )


def test_step_loss_is_what_the_formula_says() -> None:
    rewards, scores = REWARDS[:2, :3], SCORES[:2, :3, 0]
    label = torch.tensor([[1.0, 0.25, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    mask, sigmoid = torch.tensor([[True, True, False], [True, True, True]]), torch.tensor([True, False])
    entropy = [-y * log_sigmoid(z) - (1 - y) * log_sigmoid(-z) for z, y in zip(scores[0], label[0], strict=True)][:2]
    squares = [(r - y) ** 2 for r, y in zip(rewards[1], label[1], strict=True)]
    expected: list[Any] = [sum(entropy) / 2, sum(squares) / 3]
    found = step_loss(rewards, scores, label, mask, sigmoid)
    assert found.tolist() == pytest.approx([float(value) for value in expected], abs=1e-12)
    swapped = step_loss(rewards, scores, label, mask, ~sigmoid)
    assert ((swapped - found).abs() > 1e-3).all()


def test_metrics_have_trls_names_and_meanings() -> None:
    rewards = torch.tensor([[0.0, 2.0, 3.0], [0.0, 1.0, 1.0], [0.0, 5.0, 1.0], [0.0, 0.0, 4.0]])
    metrics = pair_metrics(align_pairs(rewards, torch.tensor([1, 1]), torch.tensor([3, 3, 3, 3])))
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["margin"].tolist() == [2, -3]
    assert metrics["prefix_accuracy"].tolist() == [0.5, 0.5]
    assert metrics["mean_reward"].tolist() == [2, 2.5]
    assert metrics["min_reward"].tolist() == [1, 1]
    assert metrics["max_reward"].tolist() == [3, 4]
