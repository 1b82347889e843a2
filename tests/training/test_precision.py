"""Half precision and gradient checkpointing: the gradients of one training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.training import OtterTrainer, TrainConfig, tokenise_rows
from otter_gguf.training.renamed import CHECKPOINTING
from tests.training.toy import toy_base, toy_otter, toy_rows, toy_tokenizer


def gradients(output: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """What one step of plain gradient descent subtracts from each inserted tensor, as OtterTrainer takes it."""
    model = toy_otter("normal", base=toy_base(seed).to(dtype), state_source="table")
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    settings: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        # Without centering the gradient of a head's bias is zero but for rounding.
        "center_rewards_coefficient": 0.1,
    }
    config = TrainConfig(
        output_dir=str(output), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings, **options
    )
    OtterTrainer(model, config, tokenise_rows(toy_rows(8), toy_tokenizer())).train()
    after = model.inserted_parameters()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    return {name: tensor - after[name].detach() for name, tensor in before.items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """|first - second| / |first| over all tensors as one vector."""
    one, other = (torch.cat([tensor.flatten() for tensor in found.values()]) for found in (first, second))
    return float((one - other).norm() / one.norm())


def cosines(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[float]:
    """Of every tensor with more than one entry."""
    return [
        float(torch.nn.functional.cosine_similarity(tensor.flatten(), second[name].flatten(), dim=0))
        for name, tensor in first.items()
        if tensor.numel() > 1
    ]


@pytest.mark.parametrize(
    ("dtype", "mixed", "reentrant"),
    [
        (torch.float32, False, False),
        (torch.float32, False, True),
        (torch.bfloat16, False, False),
        (torch.float32, True, False),
    ],
)
def test_checkpointing_changes_no_bit(tmp_path: Path, dtype: torch.dtype, mixed: bool, reentrant: bool) -> None:
    plain = gradients(tmp_path, dtype, bf16=mixed)
    options: dict[str, Any] = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    recomputed = gradients(tmp_path, dtype, bf16=mixed, **options)
    assert [name for name, tensor in plain.items() if not torch.equal(tensor, recomputed[name])] == []
    assert [name for name, tensor in plain.items() if not tensor.any()] == []


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)])
def test_half_precision_gives_nearly_the_gradient_of_full(tmp_path: Path, dtype: torch.dtype, mixed: bool) -> None:
    full, half = gradients(tmp_path), gradients(tmp_path, dtype, bf16=mixed)
    assert 0 < distance(full, half) < 0.05
    assert min(cosines(full, half)) > 0.97


def test_the_gradient_of_another_base_is_far_away(tmp_path: Path) -> None:
    full, other = gradients(tmp_path), gradients(tmp_path, seed=1)
    assert distance(full, other) > 0.5
    assert min(cosines(full, other)) < 0.5
