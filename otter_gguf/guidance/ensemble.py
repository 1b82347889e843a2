"""Several rewards as one: weighted sums, and the cautious readings of a set of reward models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .._numbers import finite, shown
from ..errors import ConfigError

Float32 = npt.NDArray[np.float32]
Combination = Literal["sum", "mean", "min", "cautious"]


@dataclass(frozen=True)
class Ensemble:
    """A combination of rewards, wherever a policy takes a ``label``.

    With weights w and rewards r of the members: ``sum`` is Σ w r, ``mean`` is Σ w r / Σ w (weights must not sum to 0),
    ``min`` is the smallest w r, and ``cautious`` is mean(w r) - caution * std(w r), with the population's standard
    deviation: disagreement among the members counts against a text (uncertainty-weighted optimisation, arXiv
    2310.02743).

    Members are labels of one sidecar, or of several reward models (``name:label``, see ``reward_model`` of
    :meth:`otter_gguf.Otter.create_completion`).
    """

    weights: Mapping[str, float]
    """Weight of each label."""
    combination: Combination = "sum"
    caution: float = 1.0
    """Rewards per standard deviation; for ``cautious``."""

    def __post_init__(self) -> None:
        weights = dict(self.weights)
        if not weights or not all(_is_finite(weight) for weight in weights.values()):
            raise ConfigError(
                f"Ensemble: weights are {shown(weights)}, expected a finite number for each of some labels"
            )
        if self.combination not in get_args(Combination):
            known = ", ".join(get_args(Combination))
            raise ConfigError(f"Ensemble: combination is {shown(self.combination)}, expected one of {known}")
        if self.combination == "mean" and sum(weights.values()) == 0:
            raise ConfigError("Ensemble: the weights of a mean sum to 0")
        finite(self.caution, "Ensemble: caution")
        frozen = MappingProxyType({name: float(weight) for name, weight in weights.items()})
        object.__setattr__(self, "weights", frozen)

    # What a read-only mapping lacks by itself: copies, pickles and a hash.

    def __reduce__(self) -> tuple[type[Ensemble], tuple[dict[str, float], str, float]]:
        return Ensemble, (dict(self.weights), self.combination, self.caution)

    def __hash__(self) -> int:
        return hash((tuple(self.weights.items()), self.combination, self.caution))

    def combine(self, rewards: Float32) -> Float32:
        """(k,) from (k, members), the columns in the order of ``weights``."""
        weights = np.fromiter(self.weights.values(), np.float32)
        weighted: Float32 = rewards * weights
        if self.combination == "sum":
            combined = weighted.sum(axis=1)
        elif self.combination == "mean":
            combined = weighted.sum(axis=1) / weights.sum()
        elif self.combination == "min":
            combined = weighted.min(axis=1)
        else:
            combined = weighted.mean(axis=1) - np.float32(self.caution) * weighted.std(axis=1)
        return np.asarray(combined, np.float32)


def _is_finite(value: object) -> bool:
    try:
        finite(value, "a weight")
    except ConfigError:
        return False
    return True
