"""The memory that a training run will need, before its first step.

    peak = held + later + trained + SLACK (activations + work) + distillation

- ``held``: what the process holds already, or what the GPU will once the model is on it: weights in their type,
  libraries, rows.
- ``later``: modules that are imported, and buffers that are made, once training runs.
- ``trained``: per trained parameter its gradient and AdamW's two averages, each as large as the parameter.
- ``activations``: what autograd keeps for the backward pass. It depends on the architecture, on what is inserted where,
  on types and on mixed precision, so it is not derived but counted, in forward passes over 8, 16 and 24 tokens: of one
  text with T tokens it is a polynomial, constant + linear T + quadratic T^2 (the last with ``eager`` attention alone).
  With recomputation: the state [h, h'] at the input of each layer, what is kept outside of layers, and one layer.
- ``work``: what lives only while a layer computes, WORK tensors of the FFN's inner size for all tokens of the batch,
  and with ``eager`` attention its scores.
- ``distillation``: of vocabulary heads, a second forward pass over some of the texts with their candidates behind them,
  and the base's logits at the positions that are looked at, in the base's type and once more sorted.

The batch is the largest that can come: as many of its rows as can be are pairs, and all texts are padded to the longest
of the data. Logits of the base over whole texts, the largest term of most language models, are no term here: training
never computes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from .data import Pair, RewardDataset
from .distillation import Distillation
from .free_memory import free_memory, resident_memory
from .model import OtterModel
from .renamed import CHECKPOINTING

if TYPE_CHECKING:
    from .trainer import ExtraLoss, TrainConfig

SLACK = 1.2
"""Blocks that the allocator cannot use again (:mod:`.allocator`), and buffers of kernels."""
WORK = 8
"""Tensors of the FFN's inner size that live at once."""
LATER = 64 << 20
"""Bytes. All three are measured, by ``benchmarks/training_memory.py``; docs/training.md has the figures."""
_LIBRARIES = 500 << 20  # where the system does not say what the process holds
_PROBE, _TEXTS = 8, 2  # of a single text some tensors are laid out otherwise
_SHORTEST = 16  # tokens; who has less memory needs another base


@dataclass(frozen=True)
class Kept:
    """Bytes that a text of T tokens keeps for the backward pass: constant + linear T + quadratic T^2."""

    constant: float = 0.0
    linear: float = 0.0
    quadratic: float = 0.0

    @classmethod
    def through(cls, values: Sequence[int], step: int, texts: int = 1) -> Kept:
        """The polynomial of some texts that have these values with ``step``, 2 ``step`` and 3 ``step`` tokens."""
        first, second, third = values
        quadratic = max(0.0, (third - 2 * second + first) / (2 * step**2))
        linear = max(0.0, (third - first) / (2 * step) - 4 * step * quadratic)
        constant = max(0.0, third - 3 * step * linear - (3 * step) ** 2 * quadratic)
        return cls(constant, linear / texts, quadratic / texts)

    def __call__(self, texts: int, tokens: int) -> float:
        return self.constant + texts * (self.linear * tokens + self.quadratic * tokens**2)


@dataclass(frozen=True)
class Distilled:
    """The batches of a :class:`Distillation`."""

    candidates: int
    """Of a text: positions times candidates."""
    positions: int
    share: float
    logits: int
    """Bytes of one position."""
    backward: bool


@dataclass(frozen=True)
class MemoryEstimate:
    """The terms of a run's peak, and the settings that change it: ``replace(estimate, rows=2)`` is that of others."""

    rows: int
    """Rows of a batch."""
    pairs: int
    """How many of the data are pairs, whose two texts go through the model in the same pass."""
    all_pairs: bool
    tokens: int
    """Of the longest text."""
    recompute: bool
    held: int
    trained: int
    kept: Kept
    """All that is kept without recomputation."""
    kept_outside: Kept
    """Of it, outside of layers."""
    kept_layer: Kept
    """Of it, in the layer that keeps most."""
    states: int
    """Bytes of one token's state at the inputs of all layers."""
    width: int
    """Bytes of one token's FFN activation."""
    scores: int
    """Bytes of one score of every head, where attention has them in memory."""
    distilled: Distilled | None = None

    @property
    def total(self) -> int:
        """The peak in bytes."""
        return int(sum(self.terms.values()))

    @property
    def further(self) -> int:
        """What the run needs beyond what is held."""
        return self.total - self.held

    @property
    def terms(self) -> dict[str, float]:
        """The terms by name, in bytes."""
        texts = self.rows + min(self.rows, self.pairs)
        return {
            "held": self.held,
            "later": LATER,
            "trained": self.trained,
            "activations": SLACK * self._activations(texts, self.tokens),
            "work": SLACK * self._work(texts, self.tokens),
            "distillation": self._distillation(texts),
        }

    def _activations(self, texts: int, tokens: int) -> float:
        if not self.recompute:
            return self.kept(texts, tokens)
        outside = self.kept_outside(texts, tokens) + self.kept_layer(texts, tokens)
        return outside + texts * tokens * self.states

    def _work(self, texts: int, tokens: int) -> float:
        return texts * (WORK * self.width * tokens + self.scores * tokens**2)

    def _distillation(self, texts: int) -> float:
        if self.distilled is None:
            return 0.0
        texts = max(1, round(texts * self.distilled.share))
        tokens = self.tokens + self.distilled.candidates
        mask = texts * tokens**2 * 5  # booleans, and numbers that attention makes of them
        activations = self._activations(texts, tokens) if self.distilled.backward else 0.0
        return SLACK * (activations + mask) + texts * self.distilled.positions * self.distilled.logits

    def __str__(self) -> str:
        """Such as ``about 10.7 GB for a batch of 8 pairs of 384 tokens``."""
        kind = f"{'pair' if self.all_pairs else 'row'}{'s' * (self.rows != 1)}"
        return f"about {gigabytes(self.total)} for a batch of {self.rows} {kind} of {self.tokens} tokens"


def gigabytes(count: float) -> str:
    """Bytes as a text, such as ``10.7 GB`` or ``0.62 GB``."""
    return f"{count / 1e9:.{1 if count >= 1e9 else 2}f} GB"


def memory_estimate(
    model: OtterModel, config: TrainConfig, dataset: RewardDataset, extra_losses: Sequence[ExtraLoss] = ()
) -> MemoryEstimate:
    """The peak of ``OtterTrainer(model, config, dataset, ...)``, from three short forward passes. Nothing is changed.

    On a GPU it is the peak of the GPU's memory. Extra losses of your own are not counted, nor is what evaluation needs:
    it keeps nothing for a backward pass.
    """
    base = model.insertion.base
    found = [kept_bytes(model, config, tokens) for tokens in (_PROBE, 2 * _PROBE, 3 * _PROBE)]
    parts = [Kept.through(values, _PROBE, _TEXTS) for values in zip(*found, strict=True)]
    layers = parts[:-1] or [Kept()]
    state = (base.n_embd + model.insertion.width) * model.dtype.itemsize
    copies = 3 if config.world_size == 1 else 4  # DistributedDataParallel collects gradients in buckets
    trained = (p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(
        rows=min(config.per_device_train_batch_size, len(dataset)),
        pairs=sum(isinstance(row, Pair) for row in dataset.rows),
        all_pairs=all(isinstance(row, Pair) for row in dataset.rows),
        tokens=max((len(tokens) for row in dataset.rows for tokens in row.sequences), default=1),
        recompute=bool(getattr(config, CHECKPOINTING)),
        held=_held(model, config.device),  # behind the passes, which touch weights that a file is mapped to
        trained=copies * sum(trained),
        kept=_sum(parts),
        kept_outside=parts[-1],
        kept_layer=max(layers, key=lambda kept: kept(1, 1024)),
        states=len(parts[:-1]) * state,
        width=_inner_bytes(model, config),
        scores=3 * 4 * base.n_head if model.config._attn_implementation == "eager" else 0,
        distilled=next((_distilled(model, loss) for loss in extra_losses if isinstance(loss, Distillation)), None),
    )


def kept_bytes(model: OtterModel, config: TrainConfig, tokens: int) -> list[int]:
    """Bytes that two texts keep for the backward pass: in each layer that can be recomputed, then elsewhere.

    Memory that several tensors share counts once, and parameters do not count.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    counts = [0] * (len(layers) + 1)
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    current = -1

    def enter(index: int) -> None:
        nonlocal current
        current = index

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counts[current] += storage.nbytes()
        return tensor

    handles = [layer.register_forward_pre_hook(lambda *_, i=i: enter(i)) for i, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(lambda *_: enter(-1)) for layer in layers]
    was_training = model.training
    model.eval()  # else a model whose layers are recomputed already would keep nothing of them
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept),
            _autocast(model, config),
        ):
            # The output holds what is kept; once that is freed, its addresses may be used again.
            output = model(_texts(model, tokens), use_cache=False, return_logits=False)
        del output
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return counts


def _texts(model: OtterModel, tokens: int) -> Tensor:
    return torch.zeros(_TEXTS, tokens, dtype=torch.long, device=model.device)


def _autocast(model: OtterModel, config: TrainConfig) -> AbstractContextManager[Any]:
    """The mixed precision of the run."""
    if not (config.bf16 or config.fp16):
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16 if config.bf16 else torch.float16)


def _inner_bytes(model: OtterModel, config: TrainConfig) -> int:
    """Bytes of one token's inner FFN state; in a mixture of experts a token has that of each expert it is sent to."""
    base = model.insertion.base
    n_used = int(getattr(model.config, "num_experts_per_tok", None) or 1) if base.n_expert else 1
    element = 2 if config.bf16 or config.fp16 else model.dtype.itemsize
    return (n_used * base.n_ff + max(model.insertion.n_ff)) * element


def _distilled(model: OtterModel, loss: Distillation) -> Distilled:
    config, logits = loss.config, 2 * model.dtype.itemsize * model.insertion.base.n_vocab
    return Distilled(config.positions * config.candidates, config.positions, config.share, logits, config.train_blocks)


def _sum(parts: Sequence[Kept]) -> Kept:
    return Kept(*(sum(getattr(part, name) for part in parts) for name in ("constant", "linear", "quadratic")))


def _held(model: OtterModel, device: torch.device) -> int:
    weights = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type != "cuda"]
    size = sum(tensor.untyped_storage().nbytes() for tensor in weights)
    if device.type == "cuda":  # the trainer moves the model there
        return torch.cuda.memory_allocated(device) + size
    return resident_memory() or size + _LIBRARIES


def fitting(estimate: MemoryEstimate, room: int) -> list[MemoryEstimate]:
    """The settings that would keep the run within ``room`` bytes, each with as little changed as can be.

    Recomputation, and the largest batch that fits, or else both; and the longest texts that fit. Where none of these is
    enough, all at once; an empty list if not even that is.
    """
    recomputed, fewer = replace(estimate, recompute=True), _largest(estimate, "rows", 1, room)
    found = [changed for changed in (recomputed, fewer) if changed.further <= room]
    both = _largest(recomputed, "rows", 1, room)
    found = found or [both]
    found.append(_largest(estimate, "tokens", _SHORTEST, room))
    found = [changed for changed in found if changed.further <= room]
    found = found or [_largest(both, "tokens", _SHORTEST, room)]
    return [changed for changed in found if changed.further <= room and changed != estimate]


def _largest(estimate: MemoryEstimate, name: str, least: int, room: int) -> MemoryEstimate:
    """With the largest value of a setting that fits, or the least."""
    low, high = least, max(least, getattr(estimate, name))
    changed: dict[str, Any] = {name: low}
    while low < high:
        middle = (low + high + 1) // 2
        if replace(estimate, **{**changed, name: middle}).further <= room:
            low = changed[name] = middle
        else:
            high = middle - 1
    return replace(estimate, **changed)


def free_for(config: TrainConfig) -> int | None:
    """Bytes that each process of the run can still get on its device; ``None`` where nobody says."""
    free = free_memory(config.device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if config.device.type == "cpu" else 1
    return None if free is None else free // processes
