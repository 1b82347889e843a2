"""The losses against loops, and every gradient against central differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig
from otter_gguf.training.data import Pair, collate_pairs
from otter_gguf.training.losses import LOSSES, align_pairs, centering_loss, final_loss, pair_metrics, prefix_loss
from tests.training.toy import toy_base, toy_otter

START = torch.tensor([2, 1, 3])
LENGTH = torch.tensor([5, 6, 4, 3, 6, 7])  # chosen, then rejected
REWARDS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def written_out(rewards: Tensor) -> tuple[float, float]:
    """Prefix and final loss, pair by pair and length by length."""
    prefix, final = [], []
    for pair in range(3):
        start = int(START[pair])
        chosen = rewards[pair, start : int(LENGTH[pair])].tolist()
        rejected = rewards[pair + 3, start : int(LENGTH[pair + 3])].tolist()
        longest = max(len(chosen), len(rejected))
        chosen += chosen[-1:] * (longest - len(chosen))
        rejected += rejected[-1:] * (longest - len(rejected))
        losses = [-log_sigmoid(c - r) for c, r in zip(chosen, rejected, strict=True)]
        prefix.append(sum(losses) / len(losses))
        final.append(losses[-1])
    return sum(prefix) / 3, sum(final) / 3


def test_losses_are_what_the_formula_says() -> None:
    pairs = align_pairs(REWARDS, START, LENGTH)
    prefix, final = written_out(REWARDS)
    assert prefix_loss(pairs).item() == pytest.approx(prefix, abs=1e-12)
    assert final_loss(pairs).item() == pytest.approx(final, abs=1e-12)
    assert prefix != pytest.approx(final, abs=1e-3)


def test_prompt_and_padding_do_not_count() -> None:
    changed = REWARDS.clone()
    for row in range(6):
        changed[row, : START[row % 3]] += 5
        changed[row, LENGTH[row] :] -= 7
    assert written_out(changed) == written_out(REWARDS)
    for loss in LOSSES.values():
        before, after = (loss(align_pairs(rewards, START, LENGTH)) for rewards in (REWARDS, changed))
        assert torch.equal(before, after)


def test_every_response_token_counts_in_the_prefix_loss_alone() -> None:
    rewards = REWARDS.clone().requires_grad_()
    prefix_loss(align_pairs(rewards, START, LENGTH)).backward()
    steps = torch.arange(7)
    inside = (steps >= START.repeat(2)[:, None]) & (steps < LENGTH[:, None])
    assert rewards.grad is not None
    assert torch.equal(rewards.grad != 0, inside)
    rewards = REWARDS.clone().requires_grad_()
    final_loss(align_pairs(rewards, START, LENGTH)).backward()
    assert rewards.grad is not None
    assert torch.equal(rewards.grad != 0, steps == LENGTH[:, None] - 1)


def test_swapping_the_responses_changes_the_loss() -> None:
    swapped = align_pairs(REWARDS.roll(3, 0), START, LENGTH.roll(3, 0))
    assert prefix_loss(swapped).item() != pytest.approx(
        prefix_loss(align_pairs(REWARDS, START, LENGTH)).item(), abs=1e-3
    )


def test_centering_pulls_rewards_to_zero() -> None:
    pairs = align_pairs(REWARDS, START, LENGTH)
    chosen, rejected = pairs.final
    assert centering_loss(pairs).item() == pytest.approx(((chosen + rejected) ** 2).mean().item())
    assert centering_loss(align_pairs(REWARDS + 10, START, LENGTH)) > centering_loss(pairs)
    opposite = torch.cat([REWARDS[:3], -REWARDS[:3]])
    assert centering_loss(align_pairs(opposite, START, LENGTH[:3].repeat(2))).item() == 0


def test_extreme_differences_stay_finite() -> None:
    rewards = (REWARDS * 1e6).requires_grad_()
    for loss in LOSSES.values():
        value = loss(align_pairs(rewards, START, LENGTH))
        value.backward()
        assert torch.isfinite(value)
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()


def test_metrics_have_trls_names_and_meanings() -> None:
    rewards = torch.tensor([[0.0, 2.0, 3.0], [0.0, 1.0, 1.0], [0.0, 5.0, 1.0], [0.0, 0.0, 4.0]])
    metrics = pair_metrics(align_pairs(rewards, torch.tensor([1, 1]), torch.tensor([3, 3, 3, 3])))
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["margin"].tolist() == [2, -3]
    assert metrics["prefix_accuracy"].tolist() == [0.5, 0.5]
    assert metrics["mean_reward"].tolist() == [2, 2.5]
    assert metrics["min_reward"].tolist() == [1, 1]
    assert metrics["max_reward"].tolist() == [3, 4]


def asymmetry(model: Any, loss_name: str) -> tuple[float, float]:
    """Mean and maximum of |a - n| / (|a| + |n|) over entries of every inserted tensor; n by central differences."""
    batch = collate_pairs(
        [
            Pair(chosen=[1, 2, 40, 41, 42], rejected=[1, 2, 50, 51], start=2, label=0),
            Pair(chosen=[7, 60, 61], rejected=[7, 70, 71, 72, 73], start=1, label=0),
        ]
    )

    def loss() -> Tensor:
        rewards = model.rewards(batch["input_ids"]).squeeze(2)
        return LOSSES[loss_name](align_pairs(rewards, batch["start"], batch["length"]))

    model.zero_grad()
    loss().backward()
    draw, step, ratios = torch.Generator().manual_seed(4), 1e-5, []
    for tensor in model.inserted_parameters().values():
        for index in torch.randperm(tensor.numel(), generator=draw)[:4].tolist():
            analytic = tensor.grad.view(-1)[index].item()
            with torch.no_grad():
                entry = tensor.view(-1)[index]
                value = entry.item()
                sides = []
                for sign in (1, -1):
                    entry.fill_(value + sign * step)
                    sides.append(loss().item())
                entry.fill_(value)
            numeric = (sides[0] - sides[1]) / (2 * step)
            if max(abs(analytic), abs(numeric)) > 1e-7:  # rows of tokens that do not occur have no gradient
                ratios.append(abs(analytic - numeric) / (abs(analytic) + abs(numeric)))
    assert len(ratios) > 60
    return sum(ratios) / len(ratios), max(ratios)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("activation", ["none", "sigmoid", "tanh"])
def test_gradients_agree_with_central_differences(loss: str, activation: Any) -> None:
    heads = (HeadConfig(input="both", activation=activation, scale=(2.0,)),)
    mean, largest = asymmetry(toy_otter("normal", toy_base().double(), heads=heads, state_source="table"), loss)
    assert mean <= 1e-4
    assert largest <= 1e-2


def test_a_wrong_gradient_is_noticed() -> None:
    model = toy_otter("normal", toy_base().double())
    model.inserted_parameters()["model.norm.otter.weight"].register_hook(lambda gradient: gradient * 1.05)
    mean, _ = asymmetry(model, "prefix")
    assert mean > 1e-4
