"""Training of vocabulary heads: the value head, asked about candidates that the text did not take, is the teacher.

A text shows one next token at each position. Trained on that alone, a vocabulary head learns the rows of the tokens
that the data chose, and the ranking of the others stays what it was. So the base's most likely candidates at sampled
positions are fed to the value head as well, all in one more forward pass, and scores are trained towards their rewards.

The value head itself was never told what to think of candidates that no text took. Where several answers fit the data
equally well it may as well give one that can be foreseen: gradients flow into both sides of the comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from ..train_options import TrainOptions
from .model import OtterModel, OtterOutput
from .vocabulary import VocabularyHead

_TINY = 1e-8  # a variance that is taken for none


@dataclass(frozen=True)
class DistillConfig:
    """How vocabulary heads learn from value heads."""

    candidates: int = TrainOptions.distill_candidates
    """The base's most likely next tokens that are scored at a position, k."""
    positions: int = TrainOptions.distill_positions
    """Positions of a sequence that are looked at in a step, m."""
    share: float = 0.25
    """Share of a batch's sequences that are looked at; many positions of few sequences cost less than the reverse."""
    weight: float = TrainOptions.distill_weight
    """Of this loss beside the others."""
    train_blocks: bool = True
    """Whether inserted blocks and value heads learn from this loss too, on both sides of the comparison: states to be
    scored from, rewards to be predictable. False: the vocabulary heads alone learn from it."""

    def __post_init__(self) -> None:
        for name in ("candidates", "positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distillation: {name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.share <= 1:
            raise ConfigError(f"distillation: share is {self.share}, expected more than 0 and at most 1")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"distillation: weight is {self.weight}, expected more than 0")


@dataclass(frozen=True)
class Candidates:
    """Next tokens at some positions of N sequences."""

    position: Tensor
    """(N, m): index of the last token of the prefix."""
    tokens: Tensor
    """(N, m, k): what may follow it."""
    mask: Tensor
    """(N, m): False where a sequence has fewer than m positions."""


class Distillation:
    """The loss of all vocabulary heads of a model; an ``ExtraLoss`` of :class:`.trainer.OtterTrainer`."""

    def __init__(self, config: DistillConfig | None = None) -> None:
        self.config = config or DistillConfig()

    def __call__(
        self, model: OtterModel, inputs: dict[str, Tensor], output: OtterOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of the heads' :func:`candidate_loss`.

        Logged, as means over the heads: ``distill_error``, that loss; of the candidates of a position ``distill_rank``,
        the rank correlation of score and reward, and ``distill_top``, how often both put the same one first.

        Raises:
            ConfigError: the model has no vocabulary head.
        """
        heads = model.vocabulary_heads
        if not heads or output.final_state is None:
            raise ConfigError("distillation needs a vocabulary head; insert one, with a rank")
        texts = self._texts(len(inputs["input_ids"]), model.training).to(model.device)
        tokens, length = inputs["input_ids"][texts], inputs["length"][texts]  # (N, T), (N)
        first = (inputs["start"][inputs["row"][texts]] - 1).clamp_min(0)  # the response's first token is chosen too
        position, mask = draw_positions(first, length - 1, self.config.positions, model.training)  # (N, m) each
        state = output.final_state[texts[:, None], position]  # (N, m, d + e)
        candidates = Candidates(position, self.propose(model, tokens, position, state.detach()), mask)
        with torch.set_grad_enabled(self.config.train_blocks and torch.is_grad_enabled()):
            rewards = candidate_rewards(model, tokens, candidates)
        if not self.config.train_blocks:
            state = state.detach()
        losses, logged = [], []
        for head in heads.values():
            target = score_targets(model, head, rewards)  # (N, m, k)
            scores = head.raw(head(state), candidates.tokens)  # (N, m, k)
            losses.append(candidate_loss(scores, target, mask))
            logged.append(agreement(scores.detach(), target, mask))
        loss = torch.stack(losses).mean()
        rank, top = torch.stack(logged).mean(0)
        return self.config.weight * loss, {"distill_error": loss.detach(), "distill_rank": rank, "distill_top": top}

    def _texts(self, count: int, training: bool) -> Tensor:
        """Indices of the sequences that are looked at: drawn in training, all in evaluation."""
        if not training:
            return torch.arange(count)
        return torch.randperm(count)[: max(1, round(count * self.config.share))]

    def propose(self, model: OtterModel, tokens: Tensor, position: Tensor, state: Tensor) -> Tensor:
        """The candidates (N, m, k) behind ``position`` (N, m) of ``tokens`` (N, T), final normed ``state`` there."""
        return top_candidates(model, state, self.config.candidates)


def draw_positions(first: Tensor, end: Tensor, count: int, training: bool) -> tuple[Tensor, Tensor]:
    """Different positions in [first, end) of each sequence: drawn in training, evenly spread in evaluation.

    Args:
        first, end: (N).

    Returns:
        Positions (N, count) in rising order, and which of them are there (N, count): a sequence may have fewer.
    """
    steps = torch.arange(count, device=first.device)
    available = (end - first).clamp_min(0)[:, None]  # (N, 1)
    if training:
        # Drawn on the CPU from the generator that checkpoints save, so that a resumed run draws the same.
        longest = max(int(available.max()), count)
        order = torch.rand(len(first), longest).to(first.device)  # (N, longest)
        order = order.masked_fill(torch.arange(longest, device=first.device) >= available, 2.0)
        offset = order.argsort(dim=1)[:, :count]  # (N, count)
        offset = torch.where(steps < available, offset, longest).sort(dim=1).values
    else:
        offset = torch.where(available > count, (steps * available + available // 2) // count, steps)
    mask = steps < available  # (N, count)
    return torch.where(mask, first[:, None] + offset, 0), mask


@torch.no_grad()
def top_candidates(model: OtterModel, state: Tensor, count: int) -> Tensor:
    """The base's most likely next tokens (..., count) behind final normed states (..., d + e)."""
    logits = model.base_model.get_submodule(model.architecture.lm_head)(state.to(model.dtype))
    return cast(Tensor, logits).topk(min(count, logits.shape[-1]), dim=-1).indices


class CandidateRewards(NamedTuple):
    """What the value heads say of candidates, (N, m, k, n_rewards) each."""

    rewards: Tensor
    """Calibrated."""
    raw: Tensor
    """Before activation and calibration."""


def candidate_rewards(model: OtterModel, tokens: Tensor, candidates: Candidates) -> CandidateRewards:
    """The rewards of every candidate, as if it were fed behind its prefix, from one forward pass.

    The candidates stand behind the sequence; a mask shows each its prefix and itself alone, and its position is the
    one behind the prefix.

    Args:
        tokens: (N, T), padding on the right.

    Raises:
        UnsupportedError: an attention implementation that takes no mask of this kind.
    """
    n, m, k = candidates.tokens.shape
    prefix = int(candidates.position.max()) + 1
    owner = candidates.position.repeat_interleave(k, dim=1)  # (N, m k)
    row = torch.arange(prefix, device=tokens.device).expand(n, -1)  # (N, P), P = prefix
    last = torch.cat([row, owner], dim=1)  # the last token of the sequence that a row may see
    visible = row[:, None, :] <= last[:, :, None]  # (N, P + m k, P)
    itself = torch.eye(m * k, dtype=torch.bool, device=tokens.device)  # (m k, m k)
    own = torch.cat([itself.new_zeros(prefix, m * k), itself]).expand(n, -1, -1)  # (N, P + m k, m k)
    output: OtterOutput = model(
        torch.cat([tokens[:, :prefix], candidates.tokens.flatten(1)], dim=1),
        attention_mask=_attention_mask(model, torch.cat([visible, own], dim=2)[:, None]),
        position_ids=torch.cat([row, owner + 1], dim=1),
        use_cache=False,
        return_logits=False,
    )
    rewards, raw = cast(Tensor, output.rewards), cast(Tensor, output.raw_rewards)  # (N, P + m k, n_rewards)
    return CandidateRewards(*(x[:, prefix:].unflatten(1, (m, k)) for x in (rewards, raw)))


def score_targets(model: OtterModel, head: VocabularyHead, rewards: CandidateRewards) -> Tensor:
    """What :meth:`VocabularyHead.raw` shall be (N, m, k) for its scores to be the rewards of the candidates.

    Before the activation, where nothing saturates: two rewards of 0.9999 are of no use to a ranking.
    """
    label = head.config.labels[0]
    column = model.insertion.reward_labels.index(label)
    source, index = head.teacher(model.value_heads)
    if head.config.activation == "none":
        return (rewards.rewards[..., column] - head.shift) / head.scale
    if source.config.activation != "softmax":
        return rewards.raw[..., column]
    labels = rewards.raw[..., column - index : column - index + len(source.config.labels)]
    others = [i for i in range(len(source.config.labels)) if i != index]
    return labels[..., index] - labels[..., others].logsumexp(-1)  # the logit of the label's probability


def _attention_mask(model: OtterModel, visible: Tensor) -> Tensor:
    """A mask (N, 1, rows, columns) in the form that the base's attention takes."""
    implementation = model.config._attn_implementation
    if implementation == "sdpa":
        return visible
    if implementation == "eager":
        lowest = torch.finfo(model.dtype).min
        return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill(~visible, lowest)
    raise UnsupportedError(f"distillation needs attention 'sdpa' or 'eager', the base uses {implementation!r}")


def candidate_loss(scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Error of the candidates' mean, and of each candidate's distance from it, as shares of the targets' own variances.

    Rewards differ far more from prefix to prefix than from candidate to candidate: a plain squared error is small for
    scores that rank the candidates at random. So both parts count alike, and every position as much as the next:

        mean_p (mean_k e)^2 / var_p (mean_k y)  +  mean_p var_k e / (var_k y + floor),   e = scores - y

    over positions p and candidates k, with a tenth of the mean var_k y as the floor. The variances have gradients too:
    held fixed, scores rank the candidates far worse.

    Args:
        scores, target: (N, m, k).
        mask: (N, m), positions that count.

    Returns:
        Scalar; 0 if no position counts.
    """
    error = scores - target  # (N, m, k)
    mean, within = target.mean(-1), target.var(-1, unbiased=False)  # (N, m) each
    floor = 0.1 * _mean(within, mask)
    between = _mean((mean - _mean(mean, mask)).square(), mask)
    own = error.var(-1, unbiased=False) / (within + floor).clamp_min(_TINY)  # (N, m)
    return _mean(error.mean(-1).square(), mask) / between.clamp_min(_TINY) + _mean(own, mask)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp_min(1)


@torch.no_grad()
def agreement(scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean rank correlation, and share of positions with the same best candidate: (2), NaN if no position counts."""
    same = (scores.argmax(-1) == target.argmax(-1)).to(scores.dtype)  # (N, m)
    correlation = rank_correlation(scores, target).to(scores.dtype)  # (N, m)
    return torch.stack([correlation[mask].nanmean(), same[mask].mean()])


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation over the last dimension, F64; equal values are ranked by position. NaN for one value."""
    ranks = [x.argsort(dim=-1, stable=True).argsort(dim=-1).double() for x in (a, b)]
    a, b = (x - x.mean(-1, keepdim=True) for x in ranks)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
