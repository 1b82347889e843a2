"""The estimate of a run's memory (otter_gguf/training/memory.py): what it counts, and beside a run's peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.training_memory import Setting, measured
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.training import (
    MemoryEstimate,
    OtterModel,
    OtterTrainer,
    RewardDataset,
    TrainConfig,
    full_reward_model,
    geometry,
    insert,
    memory_estimate,
)
from otter_gguf.training.data import Graded, Pair, collate
from otter_gguf.training.distillation import Distillation
from otter_gguf.training.memory import LATER, Kept, fitting, kept_bytes
from otter_gguf.training.renamed import CHECKPOINTING
from tests.refusals import assert_names
from tests.training.toy import toy_base, toy_otter

MIB = 1 << 20


def config(folder: Path, recompute: bool = False, **options: Any) -> TrainConfig:
    checkpointing: dict[str, Any] = {CHECKPOINTING: recompute}
    return TrainConfig(
        output_dir=str(folder),
        max_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **checkpointing,
        **options,
    )


def pairs(count: int = 16, tokens: int = 40) -> RewardDataset:
    """The first is the longest."""
    rows = [Pair([*range(1, 2 + tokens - 1 - (n > 0))], [7, 8], 0) for n in range(count)]
    return RewardDataset([*rows])


def estimate(
    folder: Path, model: OtterModel | None = None, data: RewardDataset | None = None, **options: Any
) -> MemoryEstimate:
    return memory_estimate(model or toy_otter(), config(folder, **options), data or pairs())


@pytest.mark.parametrize("kept", [Kept(7, 0, 0), Kept(0, 5, 0), Kept(11, 5, 0), Kept(3, 2, 4), Kept()])
def test_a_polynomial_is_found_again(kept: Kept) -> None:
    for texts in (1, 2):
        assert Kept.through([int(kept(texts, tokens)) for tokens in (8, 16, 24)], 8, texts) == kept


BASES: dict[str, Callable[[], OtterModel]] = {
    "insertion": toy_otter,
    "table": lambda: toy_otter(state_source="table"),
    "some layers": lambda: insert(toy_base(), InsertionConfig(geometry(toy_base()), 8, (0, 1, 0), (0, 12, 0))),
    "head alone": lambda: toy_otter(width=0, n_head_kv=0, n_ff=0, heads=(HeadConfig("reward", input="base"),)),
    "BF16": lambda: toy_otter(base=toy_base().to(torch.bfloat16)),
    "eager": lambda: toy_otter(base=toy_base(attn_implementation="eager")),
    "full": lambda: full_reward_model(toy_base()),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("bf16", [False, True])
def test_what_a_batch_keeps_follows_from_three_short_texts(tmp_path: Path, name: str, bf16: bool) -> None:
    model, run = BASES[name](), config(tmp_path, bf16=bf16)
    found = estimate(tmp_path, model, bf16=bf16)
    for texts, tokens in ((2, 40), (6, 40), (4, 100)):
        kept = 0
        seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

        def keep(x: torch.Tensor, seen: set[int] = seen) -> torch.Tensor:
            nonlocal kept
            storage = x.untyped_storage()
            kept += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", enabled=bf16):
            output = model(torch.zeros(texts, tokens, dtype=torch.long), use_cache=False, return_logits=False)
        assert kept == pytest.approx(found.kept(texts, tokens), rel=0.03)  # sines and cosines are shared by the texts
        del output
    assert sum(kept_bytes(model, run, 8)) == pytest.approx(found.kept(2, 8), rel=1e-6)


def test_attention_that_keeps_its_scores_is_quadratic_and_others_are_not(tmp_path: Path) -> None:
    assert estimate(tmp_path, BASES["eager"]()).kept.quadratic > 0
    assert estimate(tmp_path).kept.quadratic == 0


def test_the_terms_follow_the_settings(tmp_path: Path) -> None:
    found = estimate(tmp_path, per_device_train_batch_size=4)
    assert (found.rows, found.tokens, found.recompute) == (4, 40, False)
    trained = sum(4 * p.numel() for p in toy_otter().inserted_parameters().values())
    assert found.terms["trained"] == 3 * trained
    assert found.total == int(sum(found.terms.values()))
    for larger in (replace(found, rows=5), replace(found, tokens=41)):
        for name in ("activations", "work"):
            assert larger.terms[name] > found.terms[name]
    recomputed = replace(found, recompute=True)
    assert recomputed.terms["activations"] < found.terms["activations"]
    assert estimate(tmp_path, per_device_train_batch_size=4, recompute=True).terms["activations"] == pytest.approx(
        recomputed.terms["activations"]
    )


def test_a_batch_is_as_large_as_one_can_be(tmp_path: Path) -> None:
    """Never more rows than there are; two texts of each pair, one of other rows; the longest of all texts."""
    mixed = RewardDataset([*pairs(2, 10).rows, *(Graded([1, 2, 3, 4] * 5, 1, 0.5) for _ in range(4))])
    few, many = (estimate(tmp_path, data=mixed, per_device_train_batch_size=rows) for rows in (3, 100))
    assert (few.rows, few.tokens, many.rows) == (3, 20, 6)
    for found, texts in ((few, 5), (many, 8)):
        assert max(len(collate(rows)["input_ids"]) for rows in combinations(mixed.rows, found.rows)) == texts
        assert replace(found, rows=texts, pairs=0).terms == found.terms
    assert_names(str(few), "3 rows", "20 tokens")
    assert_names(str(estimate(tmp_path, per_device_train_batch_size=1)), "1 pair", "40 tokens")


def test_estimating_changes_nothing(tmp_path: Path) -> None:
    model = toy_otter().train()
    model.activation_checkpointing_enable()
    before, state = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    first, second = estimate(tmp_path, model), estimate(tmp_path, model.eval())
    assert first.kept == second.kept
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    modes = []
    for mode in (False, True):
        estimate(tmp_path, model.train(mode))
        modes.append({module.training for module in (model, *model.base_model.modules())})
    assert modes == [{False}, {False, True}]


def test_vocabulary_heads_cost_a_second_pass(tmp_path: Path) -> None:
    heads = (HeadConfig("reward"), HeadConfig("next", ("reward",), "both", kind="vocabulary", rank=4))
    model = toy_otter(heads=heads)
    without, plain = (memory_estimate(model, config(tmp_path), pairs(), losses) for losses in ((), (Distillation(),)))
    assert without.terms["distillation"] == 0 < plain.terms["distillation"]


def test_training_never_computes_the_logits_of_the_base(tmp_path: Path) -> None:
    """They would be the largest term by far, which is not in the estimate."""
    model, calls = toy_otter(), []
    model.base_model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    trainer = OtterTrainer(model, config(tmp_path), pairs(), pairs(4))
    trainer.train()
    trainer.evaluate()
    assert not calls
    model(torch.zeros(1, 2, dtype=torch.long))
    assert calls


# ---- what fits -------------------------------------------------------------------------------------------------


LARGE = MemoryEstimate(
    rows=8,
    pairs=100,
    all_pairs=True,
    tokens=512,
    recompute=False,
    held=1000 * MIB,
    trained=100 * MIB,
    kept=Kept(0, MIB, 0),
    kept_outside=Kept(),
    kept_layer=Kept(0, MIB // 30, 0),
    states=MIB // 10,
    width=1000,
    scores=0,
)


def changed(found: MemoryEstimate) -> set[str]:
    names = ("rows", "tokens", "recompute")
    return {name for name in names if getattr(found, name) != getattr(LARGE, name)}


@pytest.mark.parametrize("room", [8000 * MIB, 3000 * MIB])
def test_each_remedy_fits_and_one_more_of_it_would_not(room: int) -> None:
    assert LARGE.further > room
    found = fitting(LARGE, room)
    assert [changed(remedy) for remedy in found] == [{"recompute"}, {"rows"}, {"tokens"}]
    _, rows, tokens = found
    assert all(remedy.further <= room for remedy in found)
    assert replace(rows, rows=rows.rows + 1).further > room
    assert replace(tokens, tokens=tokens.tokens + 1).further > room


@pytest.mark.parametrize(
    ("room", "names"),
    [
        (900 * MIB, [{"recompute", "rows"}, {"tokens"}]),
        (350 * MIB, [{"recompute", "rows"}]),
        (200 * MIB, [{"recompute", "rows", "tokens"}]),
    ],
)
def test_where_one_change_is_not_enough_there_are_two_and_then_three(room: int, names: list[set[str]]) -> None:
    found = fitting(LARGE, room)
    assert [changed(remedy) for remedy in found] == names
    assert all(remedy.further <= room for remedy in found)
    assert replace(found[0], rows=found[0].rows + 1).further > room


def test_where_nothing_helps_nothing_is_named() -> None:
    assert fitting(LARGE, LATER + 99 * MIB) == []


def test_what_is_recomputed_already_is_no_remedy() -> None:
    recomputed = replace(LARGE, recompute=True)
    found = fitting(recomputed, recomputed.further - MIB)
    assert [(remedy.rows < 8, remedy.tokens < 512) for remedy in found] == [(True, False), (False, True)]
    assert all(remedy.recompute for remedy in found)


# ---- beside a run ----------------------------------------------------------------------------------------------

SMALL = Setting(hidden=256, inner=768, layers=6, heads=4, kv_heads=2, vocabulary=1024, pairs=4, tokens=160)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_needs_what_was_said(recompute: bool) -> None:
    """Of what a run needs beyond what it held, without which a much too small estimate would pass as well."""
    found = measured(replace(SMALL, recompute=recompute))
    further, needed = found["estimate"] - found["held"], found["peak"] - found["held"]
    assert found["peak"] <= found["estimate"] <= 1.5 * found["peak"]
    assert needed <= further
    assert needed > further / 3
