"""Insertion and training in torch: insert a reward model into a frozen language model, and train it.

Needs the ``train`` extra. Nothing else in the package imports this, or torch.
"""

from __future__ import annotations

from .base import geometry
from .calibration import calibrate
from .data import DataOptions, RewardDataset, load_rows, tokenise_rows
from .full import FullRewardModel, full_reward_model
from .insert import insert
from .loading import load
from .memory import MemoryEstimate, memory_estimate
from .model import OtterModel, OtterOutput
from .reward_model import OtterRewardModel
from .trainer import ExtraLoss, OtterTrainer, TrainConfig
from .widened import export_widened, load_widened

__all__ = [
    "DataOptions",
    "ExtraLoss",
    "FullRewardModel",
    "MemoryEstimate",
    "OtterModel",
    "OtterOutput",
    "OtterRewardModel",
    "OtterTrainer",
    "RewardDataset",
    "TrainConfig",
    "calibrate",
    "export_widened",
    "full_reward_model",
    "geometry",
    "insert",
    "load",
    "load_rows",
    "load_widened",
    "memory_estimate",
    "tokenise_rows",
]
