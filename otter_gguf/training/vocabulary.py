"""Vocabulary heads: their first values, and the unit that they share with the reward they predict.

A score is <W s + c, t(v)> + <w, s> + b (:class:`.modules.VocabularyHead`). The table t starts as what the base itself
knows about its tokens, the principal directions of its output embedding; W and c start at zero, so that every score
starts as a reward of the prefix.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .model import OtterModel
from .modules import Narrow, ValueHead, VocabularyHead

_CHUNK = 8192  # rows of the output embedding that are F64 at a time


@torch.no_grad()
def initialise_vocabulary_heads(model: OtterModel) -> None:
    """Fill every vocabulary head: the table from the base's output embedding, W and c with 0, w and b from the value
    head, where both read the same state or the vocabulary head reads more. Nothing is drawn.

    Raises:
        UnsupportedError: the base's output embedding is quantized.
    """
    for head in model.vocabulary_heads.values():
        head.table.otter.weight.copy_(principal_table(output_embedding(model), head.config.rank))
        weight, bias = head.otter.weight, cast(Tensor, head.otter.bias)
        weight.zero_()
        bias.zero_()
        source, index = teacher(model, head)
        columns = source.otter.weight.shape[1]
        same_input = source.config.input == head.config.input
        if same_input or (source.config.input, head.config.input) == ("base", "both"):
            weight[-1, :columns].copy_(source.otter.weight[index])
            bias[-1].copy_(cast(Tensor, source.otter.bias)[index])
        elif head.config.input == "both":
            weight[-1, -columns:].copy_(source.otter.weight[index])
            bias[-1].copy_(cast(Tensor, source.otter.bias)[index])


def teacher(model: OtterModel, head: VocabularyHead) -> tuple[ValueHead, int]:
    """The value head whose reward a vocabulary head predicts, and the index of the label in it."""
    config, index = model.insertion.reward_source(head.config.labels[0])
    return model.value_heads[config.name], index


def output_embedding(model: OtterModel) -> Tensor:
    """The base's output embedding (V, d), tied or not.

    Raises:
        UnsupportedError: its weight is quantized.
    """
    module: nn.Module = model.base_model.get_submodule(model.architecture.lm_head)
    weight = (module.base if isinstance(module, Narrow) else module).weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise UnsupportedError("a vocabulary head starts from the base's output embedding, which is quantized here")
    return weight


def principal_table(embedding: Tensor, rank: int) -> Tensor:
    """The projection of each token's embedding on the leading principal directions of all of them.

    The directions are eigenvectors of the covariance of the rows, exact in F64; each one's largest entry is positive,
    so that the table depends on nothing but the embedding.

    Args:
        embedding: (V, d).
        rank: at most d.

    Returns:
        (V, rank) in F32 on the CPU: columns with mean 0 and mean square 1, uncorrelated, leading direction first. A
        direction in which the embedding does not vary is 0.
    """
    rows = embedding.detach().cpu()
    mean = torch.cat([part.double().sum(0, keepdim=True) for part in rows.split(_CHUNK)]).sum(0) / len(rows)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(_CHUNK):
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / len(rows))
    variance, directions = torch.linalg.eigh(covariance)
    variance, directions = variance.flip(0)[:rank], directions.flip(1)[:, :rank]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scale = torch.where(variance > 1e-12 * variance[0], variance.clamp_min(1e-300).rsqrt(), 0.0)
    directions = directions * largest.sign() * scale
    return torch.cat([((part.double() - mean) @ directions).float() for part in rows.split(_CHUNK)])


@torch.no_grad()
def rescale_vocabulary_heads(model: OtterModel, label: str, mean: float, deviation: float) -> None:
    """Follow a calibration of the reward ``label`` to (reward - mean) / deviation, so that scores keep its unit."""
    for head in model.vocabulary_heads.values():
        if head.config.labels[0] != label:
            continue
        bias = cast(Tensor, head.otter.bias)
        head.otter.weight.div_(deviation)
        bias.div_(deviation)
        bias[-1:] += ((head.shift - mean) / deviation - head.shift) / head.scale
