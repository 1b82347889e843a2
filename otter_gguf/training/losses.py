"""Preference losses over the rewards of every prefix, and the metrics logged beside them.

Prefix Bradley-Terry (PARGS, arXiv 2406.07780): guided decoding asks for the reward of unfinished text, but a loss on
the last token leaves those rewards undetermined. So a pair (x, y_w, y_l) is compared at every response length i:

    loss = mean over i of -log sigmoid( r(x, y_w[:i]) - r(x, y_l[:i]) )

Where one response is longer, the shorter continues with its last reward: its text has ended, and so has its score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PairRewards:
    """Rewards of a batch of B pairs, aligned by response length; N = the longest response of the batch."""

    chosen: Tensor
    """(B, N)"""
    rejected: Tensor
    """(B, N)"""
    mask: Tensor
    """(B, N): True up to the longer response of the pair."""

    @property
    def final(self) -> tuple[Tensor, Tensor]:
        """Rewards of the whole responses, each (B)."""
        return self.chosen[:, -1], self.rejected[:, -1]


def align_pairs(rewards: Tensor, start: Tensor, length: Tensor) -> PairRewards:
    """Gather the rewards of the responses.

    Args:
        rewards: (2B, T), one scalar a token, chosen first, then rejected; padding on the right.
        start: (B), index of the first response token, which both responses of a pair share.
        length: (2B), tokens without padding.
    """
    n_pairs = start.shape[0]
    response_length = (length.view(2, n_pairs) - start).amax(dim=0)
    steps = torch.arange(int(response_length.max()), device=rewards.device)
    # Past its end a response continues with its last reward.
    index = torch.minimum(start.repeat(2)[:, None] + steps, length[:, None] - 1)
    chosen, rejected = rewards.gather(1, index).view(2, n_pairs, -1)
    return PairRewards(chosen, rejected, steps < response_length[:, None])


def prefix_loss(pairs: PairRewards) -> Tensor:
    """Bradley-Terry at every response length: mean over the lengths of a pair, then over pairs. Scalar."""
    losses = -functional.logsigmoid(pairs.chosen - pairs.rejected)
    return ((losses * pairs.mask).sum(dim=1) / pairs.mask.sum(dim=1)).mean()


def final_loss(pairs: PairRewards) -> Tensor:
    """Bradley-Terry on the whole responses alone, as a sequence-level reward model is trained. Scalar."""
    chosen, rejected = pairs.final
    return -functional.logsigmoid(chosen - rejected).mean()


def centering_loss(pairs: PairRewards) -> Tensor:
    """mean (r_w + r_l)^2: keeps final rewards around 0, which Bradley-Terry leaves free (arXiv 2312.09244). Scalar."""
    chosen, rejected = pairs.final
    return (chosen + rejected).square().mean()


LOSSES = {"prefix": prefix_loss, "final": final_loss}


@torch.no_grad()
def pair_metrics(pairs: PairRewards) -> dict[str, Tensor]:
    """TRL's names, one value a pair (B): ``accuracy``, ``margin``, ``min_reward``, ``mean_reward``, ``max_reward`` of
    whole responses, and ``prefix_accuracy``, the share of lengths at which the chosen response is ahead."""
    chosen, rejected = pairs.final
    ahead = (pairs.chosen > pairs.rejected) & pairs.mask
    return {
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "margin": chosen - rejected,
        "min_reward": torch.minimum(chosen, rejected),
        "mean_reward": (chosen + rejected) / 2,
        "max_reward": torch.maximum(chosen, rejected),
        "prefix_accuracy": (ahead.sum(dim=1) / pairs.mask.sum(dim=1)).to(chosen.dtype),
    }
