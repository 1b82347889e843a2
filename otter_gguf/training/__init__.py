"""Insertion and training in torch: insert a reward model into a frozen language model, train it on preference pairs.

Needs the ``train`` extra. Nothing else in the package imports this, or torch.
"""

from __future__ import annotations

from .calibration import calibrate
from .data import PairDataset, PairOptions, load_pairs, tokenise_pairs
from .insert import insert
from .model import OtterModel, OtterOutput, geometry
from .trainer import OtterTrainer, TrainConfig

__all__ = [
    "OtterModel",
    "OtterOutput",
    "OtterTrainer",
    "PairDataset",
    "PairOptions",
    "TrainConfig",
    "calibrate",
    "geometry",
    "insert",
    "load_pairs",
    "tokenise_pairs",
]
