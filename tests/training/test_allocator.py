"""Memory that the C library holds back is given back while training (otter_gguf/training/allocator.py)."""

from __future__ import annotations

import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otter_gguf.training import OtterTrainer, TrainConfig, allocator, tokenise_rows
from otter_gguf.training.allocator import PAUSE, Trim, little_held_back
from otter_gguf.training.free_memory import resident_memory
from otter_gguf.training.renamed import CHECKPOINTING
from tests.training.toy import toy_otter, toy_rows, toy_tokenizer

MIB = 1 << 20
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not resident_memory(), reason="needs glibc")


@pytest.mark.parametrize("growth", [0.0, 0.1])
def test_it_is_called_where_the_process_has_grown_and_after_a_pause(growth: float) -> None:
    """Memory in use grows by a part of 100 with each layer; half as much again is held back."""
    held, in_use, passes, calls = 100.0, 100.0, 0, []

    def trim(_: int) -> int:
        nonlocal held
        calls.append(passes)
        held = in_use
        return 1

    hook = Trim(trim, lambda: int(held))
    while passes < 200:
        in_use += 100 * growth
        held += 150 * growth
        hook()
        passes += 1
    assert calls[0] == 0
    assert [later - earlier for earlier, later in pairwise(calls)] == [PAUSE + 1] * (len(calls) - 1)
    assert len(calls) == (200 // (PAUSE + 1) + 1 if growth else 1)
    assert hook.most >= in_use - 100 * growth * PAUSE


@needs_glibc
def test_holes_between_tensors_that_are_kept_are_given_back() -> None:
    del_me = torch.ones(MIB)
    del del_me  # from here on glibc takes blocks of this size from its heap
    blocks = [torch.ones(MIB // 4) for _ in range(300)]
    kept = blocks[::2]
    del blocks
    before = resident_memory()
    trim = allocator._malloc_trim()
    assert trim
    assert before
    Trim(trim)()
    after = resident_memory()
    assert after
    assert before - after > 100 * MIB
    assert all(bool((block == 1).all()) for block in kept)


@pytest.mark.parametrize("recompute", [False, True])
def test_training_looks_at_every_layer_and_leaves_no_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(allocator, "_malloc_trim", lambda: calls.append)
    monkeypatch.setattr(allocator, "resident_memory", lambda: 1)
    monkeypatch.setattr(allocator.Trim, "__call__", lambda *_: calls.append(1))
    model, checkpointing = toy_otter(), dict[str, Any]({CHECKPOINTING: recompute})
    config = TrainConfig(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", **checkpointing
    )
    OtterTrainer(model, config, tokenise_rows(toy_rows(8), toy_tokenizer())).train()
    layers, modules = model.insertion.base.n_layer, 4  # two norms, attention, FFN
    assert len(calls) >= layers * modules * (1 + recompute) - (layers if recompute else 0)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert not any(isinstance(hook, Trim) for hook in hooks)


@pytest.mark.parametrize("missing", [lambda: None, lambda: lambda _: 0])
def test_without_glibc_or_figures_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, missing: Callable[[], object]
) -> None:
    monkeypatch.setattr(allocator, "_malloc_trim", missing)
    monkeypatch.setattr(allocator, "resident_memory", lambda: None)
    module = nn.Linear(2, 2)
    with little_held_back([module]):
        assert not module._forward_hooks


@needs_glibc
def test_hooks_are_there_inside_and_gone_after_an_error() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(KeyError), little_held_back([module]):
        raise KeyError(len(module._forward_hooks))
    assert not module._forward_hooks
    with little_held_back([module]):
        assert module._forward_hooks
