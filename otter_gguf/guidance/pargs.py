"""PARGS: ARGS with a reward of unfinished texts (arXiv 2406.07780, COLM 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from .args import ARGS


@dataclass(frozen=True)
class PARGS(ARGS):
    """``score(v) = ln p(v) + weight * reward(text v)``: :class:`ARGS` with the settings of its successor.

    What PARGS adds is in the training: a reward model fitted to pairs of prefixes of every length, so that the reward
    of an unfinished text is one that was asked for.
    """

    weight: float = 2.0
    """As of :class:`ARGS`; the paper draws with 2.0 and takes the best with 1.0."""
    log_probabilities: bool = True
    """As of :class:`ARGS`."""
