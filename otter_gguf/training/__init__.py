"""Insertion and training in torch: insert a reward model into a frozen language model, and train it.

Needs the ``train`` extra. Nothing else in the package imports this, or torch.
"""

from __future__ import annotations

from .calibration import calibrate
from .data import DataOptions, RewardDataset, load_rows, tokenise_rows
from .full import FullRewardModel, full_reward_model
from .insert import insert
from .memory import MemoryEstimate, memory_estimate
from .model import OtterModel, OtterOutput, geometry
from .trainer import ExtraLoss, OtterTrainer, TrainConfig

__all__ = [
    "DataOptions",
    "ExtraLoss",
    "FullRewardModel",
    "MemoryEstimate",
    "OtterModel",
    "OtterOutput",
    "OtterTrainer",
    "RewardDataset",
    "TrainConfig",
    "calibrate",
    "full_reward_model",
    "geometry",
    "insert",
    "load_rows",
    "memory_estimate",
    "tokenise_rows",
]
