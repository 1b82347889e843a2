"""The benchmark of training steps (benchmarks/training_speed.py), at sizes of no interest."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import pytest
import torch

pytest.importorskip("peft")

from benchmarks import training_speed
from benchmarks.training_speed import MODELS, Batch, Ratio, Sizes, Step, make_base, saved_bytes, training_step

TINY = Sizes(
    hidden=64, layers=2, heads=4, kv_heads=2, inner=256, vocabulary=50, prompt=4, response=28, rank=4, rounds=3
)
ARGUMENTS = [word for name, value in asdict(TINY).items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_only_full_fine_tuning_changes_the_base() -> None:
    for name, make in MODELS.items():
        base = make_base(TINY)
        weights = dict(base.named_parameters())
        before = {key: value.detach().clone() for key, value in weights.items()}
        training_step(make(base, TINY), Batch.random(TINY))()
        changed = [key for key, value in weights.items() if not torch.equal(value, before[key])]
        assert bool(changed) == (name == "full"), changed


@pytest.mark.parametrize("name", MODELS)
def test_every_contestant_learns_the_batch(name: str) -> None:
    model, batch = MODELS[name](make_base(TINY), TINY), Batch.random(TINY)
    with torch.no_grad():
        before = batch.loss(model(batch.tokens)).item()
    step = training_step(model, batch)
    for _ in range(5):
        step()
    with torch.no_grad():
        assert batch.loss(model(batch.tokens)).item() < before


def test_the_insertion_keeps_less_for_the_backward_pass_than_lora() -> None:
    kept = {name: saved_bytes(make(make_base(TINY), TINY), Batch.random(TINY)) for name, make in MODELS.items()}
    assert 0 < kept["otter"] < kept["lora"]
    assert kept["otter"] < kept["full"]


def test_nothing_as_wide_as_both_parts_of_the_state_is_kept() -> None:
    """Of the base alone the inputs of its linear maps are kept; views of [h, h'] would keep all of it."""
    model, batch = MODELS["otter"](make_base(TINY), TINY), Batch.random(TINY)
    columns: set[int] = set()

    def pack(x: torch.Tensor) -> torch.Tensor:
        columns.add(x.untyped_storage().nbytes() // x.element_size() // batch.tokens.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        batch.loss(model(batch.tokens))
    assert TINY.hidden in columns
    assert TINY.hidden // TINY.share in columns
    assert TINY.hidden + TINY.hidden // TINY.share not in columns


def test_steps_alternate_and_the_first_of_each_is_not_timed() -> None:
    order: list[str] = []
    steps: dict[str, Step] = {name: partial(order.append, name) for name in ("a", "b", "c")}
    seconds = training_speed.time_steps(steps, rounds=3)
    rounds = ["".join(order[begin : begin + 3]) for begin in range(0, 12, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert {names[0] for names in rounds} == {"a", "b", "c"}
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_of_neighbours() -> None:
    """A machine that is half as fast in the second round changes nothing."""
    assert Ratio.of([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == Ratio(0.5, (0.5, 0.5))
    assert Ratio.of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == Ratio(3.0, (2.0, 4.0))
    assert Ratio.of([3.0], [2.0]) == Ratio(1.5, (1.5, 1.5))


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_speed.main([*ARGUMENTS, "--no-memory", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sizes"] == asdict(TINY)
    assert result["base_parameters"] == make_base(TINY).num_parameters()
    assert set(result["seconds"]) == {"forward", *MODELS}
    assert result["ratios"]["full/forward"]["median"] > 1
    lines = training_speed.table(result).splitlines()
    assert [line.split()[1] for line in lines[2:]] == list(MODELS)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    otter, full = (training_speed.measure_memory(name, TINY) for name in ("otter", "full"))
    assert 0 < otter.saved < full.saved
    assert 0 < otter.trained < full.trained
    assert otter.peak > otter.saved
