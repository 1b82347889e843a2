"""Rewards in a common unit, so that a guidance weight means the same across models and runs.

Bradley-Terry fixes differences of rewards, and how far training went fixes their spread. Calibration shifts and scales
each head so that rewards over all prefixes of real responses have mean 0 and standard deviation 1. It changes the
head's own weights, so that a calibrated adapter differs from the trained one in its tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..errors import ConfigError
from .data import Pair, PairDataset, collate_pairs
from .model import OtterModel
from .modules import ValueHead


@torch.no_grad()
def calibrate(
    model: OtterModel, dataset: PairDataset, batch_size: int = 8, max_pairs: int = 1000
) -> dict[str, tuple[float, float]]:
    """Calibrate every head without activation; heads with one are bounded and stay.

    Args:
        dataset: the first ``max_pairs`` of it are read, chosen and rejected responses alike.

    Returns:
        Mean and standard deviation before, for each of ``insertion.reward_labels`` that was calibrated.

    Raises:
        ConfigError: a reward is the same for all prefixes, so there is no scale that could be applied.
    """
    pairs = dataset.pairs[:max_pairs]
    rewards = torch.cat([_rewards(model, pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)])
    deviation, mean = torch.std_mean(rewards, dim=0)
    found: dict[str, tuple[float, float]] = {}
    column = 0
    for head in (cast(ValueHead, module) for module in model.heads.values()):
        columns = slice(column, column + len(head.config.labels))
        column = columns.stop
        if head.config.activation != "none":
            continue
        for index in range(columns.start, columns.stop):
            label = model.insertion.reward_labels[index]
            found[label] = (mean[index].item(), deviation[index].item())
            if not found[label][1] > 0:
                raise ConfigError(f"reward {label!r} is the same for all prefixes; it cannot be calibrated")
        _rescale(head, mean[columns], deviation[columns])
    return found


def _rewards(model: OtterModel, pairs: Sequence[Pair]) -> Tensor:
    """Rewards (prefixes, n_rewards) in F64 of all response prefixes of one batch."""
    batch = collate_pairs(pairs)
    position = torch.arange(batch["input_ids"].shape[1])
    inside = (position >= batch["start"].repeat(2)[:, None]) & (position < batch["length"][:, None])
    return model.rewards(batch["input_ids"].to(model.device)).cpu()[inside].double()


def _rescale(head: ValueHead, mean: Tensor, deviation: Tensor) -> None:
    """Weights whose reward, after the head's own scale and shift, is (reward - mean) / deviation."""
    weight, bias = head.otter.weight, cast(Tensor, head.otter.bias)
    mean, deviation = mean.to(weight), deviation.to(weight)
    weight.div_(deviation[:, None])
    bias.div_(deviation).add_(((head.shift - mean) / deviation - head.shift) / head.scale)
