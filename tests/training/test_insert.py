"""First values of the inserted tensors, and what `copy` promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.architectures import find
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError
from otter_gguf.training import geometry, insert
from otter_gguf.training.layout import layout
from tests.refusals import refused
from tests.training.toy import toy_base, toy_otter

TOKENS = torch.randint(0, 256, (2, 19), generator=torch.Generator().manual_seed(2))
WIDTH, OFFSET = 8, 3


def states(model: Any) -> tuple[Tensor, ...]:
    """(B, T, d + e) after the embedding, each layer, and the final norm."""
    with torch.no_grad():
        return tuple(model(TOKENS, output_hidden_states=True).hidden_states)


def distance_to_copied_channels(model: Any) -> float:
    d = model.insertion.base.n_embd
    return max(float((x[..., d:] - x[..., OFFSET : OFFSET + WIDTH]).abs().max()) for x in states(model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", [{}, {"state_source": "table"}, {"n_head_kv": 3, "n_ff": 60}])
def test_copy_makes_h_prime_its_channels_of_h_at_every_layer(attention: str, changes: dict[str, Any]) -> None:
    model = toy_otter("copy", toy_base(attn_implementation=attention), **changes)
    assert len(states(model)) == 4
    assert distance_to_copied_channels(model) <= 1e-4


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_drawn_values_do_not(init: str) -> None:
    assert distance_to_copied_channels(toy_otter(init)) > 0.1


@pytest.mark.parametrize(
    "name", ["layers.1.self_attn.o_proj", "layers.0.mlp.down_proj", "layers.2.input_layernorm", "norm"]
)
def test_a_changed_copy_does_not(name: str) -> None:
    model = toy_otter("copy")
    with torch.no_grad():
        model.inserted_parameters()[f"model.{name}.otter.weight"].mul_(1.1)
    if name.endswith("input_layernorm"):  # reaches h' through inserted heads, whose output columns start at zero
        assert distance_to_copied_channels(model) <= 1e-4
        with torch.no_grad():
            model.inserted_parameters()["model.layers.2.self_attn.o_proj.otter.weight"].add_(0.1)
    assert distance_to_copied_channels(model) > 1e-2


def test_copy_takes_the_rows_of_the_same_group() -> None:
    """Inserted KV head j stands for the base's j mod H_kv, its query heads for that one's group."""
    base = toy_base()
    rows = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    keys = base.model.layers[0].self_attn.k_proj.weight.detach().clone()
    tensors = toy_otter("copy", base, n_head_kv=3).inserted_parameters()
    q, k = (tensors[f"model.layers.0.self_attn.{name}_proj.otter.weight"] for name in "qk")
    head, group = 8, 16
    assert q.shape == (3 * group, 32 + WIDTH)
    assert torch.equal(q[:, :32], torch.cat([rows[:group], rows[group:], rows[:group]]))
    assert torch.equal(k[:, :32], torch.cat([keys[:head], keys[head:], keys[:head]]))
    assert not q[:, 32:].any()


@pytest.mark.parametrize(("init", "bound"), [("normal", math.inf), ("uniform", 0.02 * math.sqrt(3))])
def test_drawn_values_have_the_standard_deviation_asked_for(init: Any, bound: float) -> None:
    base = toy_base()
    model = insert(base, InsertionConfig.uniform(geometry(base), 32, 2, 48, state_source="table"), init, 0.02)
    for name, tensor in model.inserted_parameters().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif not name.startswith("heads."):
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), name
            assert tensor.abs().max() <= bound, name


def test_the_default_standard_deviation_is_the_bases() -> None:
    base = toy_base(initializer_range=0.1)
    model = insert(base, InsertionConfig.uniform(geometry(base), 32, 2, 48), "normal")
    drawn = model.inserted_parameters()["model.layers.0.mlp.up_proj.otter.weight"]
    assert drawn.std().item() == pytest.approx(0.1, rel=0.1)


def test_heads_start_with_rewards_of_about_unit_size() -> None:
    model = toy_otter(heads=(HeadConfig("many", tuple(f"label{i}" for i in range(64))),))
    tensors = model.inserted_parameters()
    assert tensors["heads.many.otter.weight"].std().item() == pytest.approx((WIDTH + 1) ** -0.5, rel=0.15)
    assert not tensors["heads.many.otter.bias"].any()


@pytest.mark.parametrize("init", ["copy", "normal", "uniform"])
def test_a_seed_fixes_everything_drawn(init: Any) -> None:
    first, second, other = (
        insert(base, InsertionConfig.uniform(geometry(base), 8), init, seed=seed).inserted_parameters()
        for base, seed in ((toy_base(), 5), (toy_base(), 5), (toy_base(), 6))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["heads.reward.otter.weight"], other["heads.reward.otter.weight"])


def test_half_precision_bases_get_inserted_tensors_in_full_precision() -> None:
    model = toy_otter("copy", toy_base().to(torch.bfloat16))
    assert {tensor.dtype for tensor in model.inserted_parameters().values()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    assert states(model)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("init", "std", "names"),
    [
        ("zeros", 0.1, ("'zeros'", "copy, normal, uniform")),
        ("normal", 0.0, ("deviation", 0.0)),
        ("normal", math.nan, ("deviation", math.nan)),
    ],
)
def test_refuses_unknown_initialisation(init: Any, std: float, names: tuple[object, ...]) -> None:
    base = toy_base()
    with refused(ConfigError, *names):
        insert(base, InsertionConfig.uniform(geometry(base), 8), init, std)


def test_refuses_to_copy_channels_that_are_not_there() -> None:
    base = toy_base()
    config = InsertionConfig.uniform(geometry(base), 40, state_source="table")
    with refused(ConfigError, 40, 32, "normal"):
        insert(base, config, "copy")
    assert insert(base, config, "normal").rewards(TOKENS).shape == (2, 19, 1)


def test_layout_names_every_replaced_module_once() -> None:
    base = toy_base()
    config = InsertionConfig(geometry(base), 8, (1, 0, 2), (0, 6, 7))
    paths = [widening.path for widening in layout(find("llama"), config)]
    assert len(set(paths)) == len(paths)
    kinds = {widening.path: widening.kind for widening in layout(find("llama"), config)}
    assert kinds["model.layers.1.input_layernorm"] == "narrow"
    assert kinds["model.layers.1.self_attn.o_proj"] == "pad"
    assert "model.layers.1.self_attn.q_proj" not in kinds
    assert kinds["model.layers.0.mlp.down_proj"] == "pad"
    assert kinds["model.layers.2.mlp.down_proj"] == "linear"
    assert kinds["lm_head"] == "narrow"


def test_layout_without_insertion_is_empty() -> None:
    config = InsertionConfig.uniform(geometry(toy_base()), 0, 0, heads=(HeadConfig(input="base"),))
    assert layout(find("llama"), config) == []
