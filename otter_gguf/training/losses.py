"""Losses over the rewards of every prefix: one function a kind of row, each giving one value a row.

Guided decoding asks for the reward of unfinished text, but a loss on the last token leaves those rewards undetermined.
So each kind has a form that trains every response token (``prefix``), beside the one on whole responses (``final``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PairRewards:
    """Rewards of B pairs, aligned by response length; N = the longest response."""

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
    response_length = (length.view(2, n_pairs) - start).amax(dim=0)  # (B)
    steps = torch.arange(int(response_length.max()), device=rewards.device)  # (N)
    # Past its end a response continues with its last reward.
    index = torch.minimum(start.repeat(2)[:, None] + steps, length[:, None] - 1)  # (2B, N)
    chosen, rejected = rewards.gather(1, index).view(2, n_pairs, -1)  # (B, N) each
    return PairRewards(chosen, rejected, steps < response_length[:, None])


def prefix_loss(pairs: PairRewards, margin: Tensor | None = None) -> Tensor:
    """Bradley-Terry at every response length (PARGS, arXiv 2406.07780), (B).

    For a pair (x, y_w, y_l) with margin m, n tokens in the longer response:

        mean over i = 1 .. n of  -log sigmoid( r(x, y_w[:i]) - r(x, y_l[:i]) - m i / n )

    Where one response is longer, the shorter continues with its last reward: its text has ended, and so has its score.
    A margin is said of whole responses. Prefixes part by and by (at length 0 they are equal), so the part asked
    for grows with the length, and the whole is asked for at the end.

    Args:
        margin: (B); ``None`` = 0.
    """
    lengths = pairs.mask.sum(dim=1)  # (B)
    ahead = pairs.chosen - pairs.rejected  # (B, N)
    if margin is not None:
        steps = torch.arange(1, ahead.shape[1] + 1, device=ahead.device)  # (N)
        ahead = ahead - margin[:, None] * steps / lengths[:, None]  # (B, N)
    return (-functional.logsigmoid(ahead) * pairs.mask).sum(dim=1) / lengths


def final_loss(pairs: PairRewards, margin: Tensor | None = None) -> Tensor:
    """Bradley-Terry on the whole responses alone, as a sequence-level reward model is trained (TRL), (B):

        -log sigmoid( r(x, y_w) - r(x, y_l) - m )

    Args:
        margin: (B); ``None`` = 0.
    """
    chosen, rejected = pairs.final
    return -functional.logsigmoid(chosen - rejected if margin is None else chosen - rejected - margin)


def centering_loss(pairs: PairRewards) -> Tensor:
    """(r_w + r_l)^2 of whole responses (arXiv 2312.09244), (B).

    Keeps rewards around 0; Bradley-Terry fixes differences alone.
    """
    chosen, rejected = pairs.final
    return (chosen + rejected).square()


LOSSES = {"prefix": prefix_loss, "final": final_loss}


def prefix_weights(start: Tensor, length: Tensor, rewards: Tensor) -> Tensor:
    """Weight of every token (B, T): 2t / (n (n + 1)) for response token t = 1 .. n, 0 elsewhere; the sum is 1.

    Of RAD's cumulative loss (arXiv 2310.09520): the more of a text is there, the more its reward must be right.

    Args:
        start, length: (B), index of the first response token, and of the first padding token.
        rewards: (B, T, ...), whose type and size the weights take.
    """
    step = torch.arange(1, rewards.shape[1] + 1, device=rewards.device) - start[:, None]  # (B, T)
    n = (length - start)[:, None]  # (B, 1)
    inside = (step > 0) & (step <= n)  # (B, T)
    return 2 * (step * inside).to(rewards.dtype) / (n * (n + 1))


def final_weights(start: Tensor, length: Tensor, rewards: Tensor) -> Tensor:
    """Weight of every token (B, T): 1 for the last response token, 0 elsewhere. Arguments as above."""
    return (torch.arange(rewards.shape[1], device=rewards.device) == (length - 1)[:, None]).to(rewards.dtype)


WEIGHTS = {"prefix": prefix_weights, "final": final_weights}


def graded_loss(rewards: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Cumulative squared error (RAD, arXiv 2310.09520), (B):

        sum over response tokens t = 1 .. n of  w_t (r_t - y)^2,      w_t = 2t / (n (n + 1))

    Args:
        rewards: (B, T).
        label: (B), y.
        weights: (B, T), of :func:`prefix_weights` or :func:`final_weights`.
    """
    return (weights * (rewards - label[:, None]).square()).sum(dim=1)


def class_loss(scores: Tensor, columns: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy over the labels of one head, with the weights of :func:`graded_loss`, (B):

        sum over response tokens t of  -w_t log softmax(z_t)[y],      z_t = the head's raw scores

    Args:
        scores: (B, T, n_rewards), raw scores of all heads.
        columns: (B, 2), first column of the row's head, and the one behind its last.
        label: (B), column of the right class.
        weights: (B, T).
    """
    own = within(columns, scores.shape[2])[:, None]  # (B, 1, n_rewards)
    probability = scores.masked_fill(~own, -torch.inf).log_softmax(dim=2)  # (B, T, n_rewards)
    index = label[:, None, None].expand(-1, scores.shape[1], 1)  # (B, T, 1)
    return -(weights * probability.gather(2, index).squeeze(2)).sum(dim=1)


def within(columns: Tensor, n_rewards: int) -> Tensor:
    """(B, n_rewards): True from columns[0] up to but not including columns[1]; columns (B, 2)."""
    column = torch.arange(n_rewards, device=columns.device)  # (n_rewards)
    return (column >= columns[:, :1]) & (column < columns[:, 1:])


def step_loss(rewards: Tensor, scores: Tensor, label: Tensor, mask: Tensor, sigmoid: Tensor) -> Tensor:
    """Process rewards: the mean over the steps of a text (PRM, arXiv 2305.20050, where labels are classes), (B):

        -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))     for heads with activation sigmoid, z = the raw score
        (r - y)^2                                           for others

    Args:
        rewards, scores: (B, S), reward and raw score at the last token of each step.
        label: (B, S), from 0 to 1.
        mask: (B, S), True where there is a step.
        sigmoid: (B), whether the row's head has activation sigmoid.
    """
    entropy = functional.binary_cross_entropy_with_logits(scores, label, reduction="none")  # (B, S)
    losses = torch.where(sigmoid[:, None], entropy, (rewards - label).square())  # (B, S)
    return (losses * mask).sum(dim=1) / mask.sum(dim=1)


@torch.no_grad()
def pair_metrics(pairs: PairRewards) -> dict[str, Tensor]:
    """TRL's names, one value a pair (B): ``accuracy``, ``margin``, ``min_reward``, ``mean_reward``, ``max_reward`` of
    whole responses, and ``prefix_accuracy``, the share of lengths at which the chosen response is ahead."""
    chosen, rejected = pairs.final
    ahead = (pairs.chosen > pairs.rejected) & pairs.mask  # (B, N)
    return {
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "margin": chosen - rejected,
        "min_reward": torch.minimum(chosen, rejected),
        "mean_reward": (chosen + rejected) / 2,
        "max_reward": torch.maximum(chosen, rejected),
        "prefix_accuracy": (ahead.sum(dim=1) / pairs.mask.sum(dim=1)).to(chosen.dtype),
    }
