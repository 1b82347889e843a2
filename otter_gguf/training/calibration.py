"""Rewards in a common unit, so that a guidance weight means the same across models and runs.

Bradley-Terry fixes differences of rewards, and how far training went fixes their spread. Calibration shifts and scales
each head so that rewards over all prefixes of real responses have mean 0 and standard deviation 1. It changes the
head's own weights, so that a calibrated adapter differs from the trained one in its tensors alone. Grades, classes and
steps have labels in a unit of their own; rewards that they train are left in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..errors import ConfigError
from .data import Pair, RewardDataset, collate
from .model import OtterModel
from .modules import ValueHead
from .objectives import head_columns


@torch.no_grad()
def calibrate(
    model: OtterModel, dataset: RewardDataset, batch_size: int = 8, max_pairs: int = 1000
) -> dict[str, tuple[float, float]]:
    """Calibrate every value head without activation, and the heads that share its unit; bounded ones stay.

    Args:
        dataset: its first ``max_pairs`` pairs are read, chosen and rejected responses alike; without pairs nothing
            is calibrated. A head stays as it is where another kind of row trains one of its rewards.

    Returns:
        Mean and standard deviation before, for each of ``insertion.reward_labels`` that was calibrated.

    Raises:
        ConfigError: a reward is the same for all prefixes, so there is no scale that could be applied.
    """
    pairs = [row for row in dataset.rows if isinstance(row, Pair)][:max_pairs]
    if not pairs:
        return {}
    labelled = {column for row in dataset.rows if not isinstance(row, Pair) for column in row.rewards}
    rewards = torch.cat([_rewards(model, pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)])
    deviation, mean = torch.std_mean(rewards, dim=0)
    found: dict[str, tuple[float, float]] = {}
    for columns, config in head_columns(model.insertion).items():
        if config.activation != "none" or labelled & set(columns):
            continue
        for index in columns:
            label = model.insertion.reward_labels[index]
            found[label] = (mean[index].item(), deviation[index].item())
            if not found[label][1] > 0:
                raise ConfigError(f"reward {label!r} is the same for all prefixes; it cannot be calibrated")
        _rescale(model.value_heads[config.name], mean[[*columns]], deviation[[*columns]])
        for index in columns:
            label = model.insertion.reward_labels[index]
            for head in model.other_heads.values():
                head.follow(label, *found[label])
    return found


def _rewards(model: OtterModel, pairs: Sequence[Pair]) -> Tensor:
    """Rewards (prefixes, n_rewards) in F64 of all response prefixes of one batch."""
    batch = collate(pairs)
    position = torch.arange(batch["input_ids"].shape[1])
    inside = (position >= batch["start"][batch["row"]][:, None]) & (position < batch["length"][:, None])
    return model.rewards(batch["input_ids"].to(model.device)).cpu()[inside].double()


def _rescale(head: ValueHead, mean: Tensor, deviation: Tensor) -> None:
    """Weights whose reward, after the head's own scale and shift, is (reward - mean) / deviation."""
    weight, bias = head.otter.weight, cast(Tensor, head.otter.bias)
    mean, deviation = mean.to(weight), deviation.to(weight)
    weight.div_(deviation[:, None])
    bias.div_(deviation).add_(((head.shift - mean) / deviation - head.shift) / head.scale)
