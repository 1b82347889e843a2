"""Joining and parting the state [h, h'] without copies (otter_gguf/training/parts.py), and the partial norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from otter_gguf.training.modules import WidenedRMSNorm
from otter_gguf.training.parts import base_part, factor, inserted_part, join
from tests.training.toy import toy_base, toy_otter

D, E = 6, 2


def state() -> tuple[Tensor, Tensor, Tensor]:
    """h, h' and what they are joined to."""
    h, inserted = torch.randn(3, D), torch.randn(3, E, requires_grad=True)
    return h, inserted, join(h, inserted)


def test_parts_of_a_joined_state_are_not_copied() -> None:
    h, inserted, x = state()
    assert torch.equal(x, torch.cat([h, inserted], dim=-1))
    assert base_part(x, D) is h
    assert inserted_part(x, D) is inserted


def other_tensor(x: Tensor) -> Tensor:
    return x * 1


def written_to(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.mul_(2)


@pytest.mark.parametrize(
    ("change", "cut"), [(other_tensor, D), (written_to, D), (written_to, D - 1), (other_tensor, D + 1)]
)
def test_parts_are_cut_out_where_they_are_not_known(change: Callable[[Tensor], Tensor], cut: int) -> None:
    _, _, x = state()
    x = change(x)
    h, inserted = base_part(x, cut), inserted_part(x, cut)
    assert torch.equal(torch.cat([h, inserted], dim=-1), x)
    assert h.is_contiguous()
    assert inserted.is_contiguous()


def test_known_parts_are_not_used_for_another_cut() -> None:
    h, _, x = state()
    assert torch.equal(base_part(x, D - 1), h[:, : D - 1])
    assert inserted_part(x, D - 1).shape == (3, E + 1)


@pytest.mark.parametrize("change", [lambda x: x, other_tensor])
def test_gradients_reach_the_inserted_part_alone(change: Callable[[Tensor], Tensor]) -> None:
    _, inserted, x = state()
    x = change(x)
    assert not base_part(x, D).requires_grad
    (inserted_part(x, D) * 3).sum().backward()
    assert inserted.grad is not None
    assert torch.equal(inserted.grad, torch.full((3, E), 3.0))


def test_without_gradients_nothing_is_remembered() -> None:
    """A tensor of inference mode has no version to compare."""
    with torch.inference_mode():
        _, _, x = state()
        assert torch.equal(base_part(x, D), x[:, :D])
        assert torch.equal(inserted_part(x, D), x[:, D:])


def test_a_hook_that_writes_to_a_norm_reaches_the_logits() -> None:
    """As steering does: what is remembered must not hide what somebody has changed."""
    tokens = torch.arange(8)[None]
    for change in (0.0, 1.0):
        base, model = toy_base(), toy_otter()
        plain, widened = (m.get_submodule("model.layers.1.input_layernorm") for m in (base, model.base_model))

        def write(_module: object, _inputs: object, output: Tensor, change: float = change) -> None:
            with torch.no_grad():
                output[..., :32].add_(change)

        expected = base(tokens).logits
        plain.register_forward_hook(write)
        widened.register_forward_hook(write)
        changed, found = base(tokens).logits, model(tokens).logits
        assert torch.equal(found, changed)
        assert torch.equal(expected, changed) == (change == 0)


def factors() -> tuple[Tensor, Tensor, Tensor]:
    """The inserted part of a gate, the gate as a factor, and what it is multiplied with."""
    h, inserted, x = state()
    up = join(torch.randn_like(h), torch.randn_like(inserted, requires_grad=True))
    return inserted, factor(x), up


def kept_numbers(compute: Callable[[], Tensor]) -> int:
    """Numbers that are kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = compute()
    assert output.requires_grad
    return sum(kept.values())


PRODUCTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a * b,
    lambda a, b: b * a,
    torch.mul,
    lambda a, b: b.mul(a),
    lambda a, b: torch.multiply(b, a),
]


@pytest.mark.parametrize("multiply", PRODUCTS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_product_is_the_same_by_parts_and_keeps_the_inserted_ones_alone(
    multiply: Callable[[Tensor, Tensor], Tensor], fused: bool
) -> None:
    inserted, gate, up = factors()
    if fused:  # a slice of the output of a fused map, whose parts are not known
        up = torch.cat([up, up], dim=-1).chunk(2, dim=-1)[1]
    plain = torch.Tensor.as_subclass(gate, Tensor)
    product, expected = multiply(gate, up), multiply(plain, up)
    assert torch.equal(product, expected)
    assert type(product) is Tensor
    assert not base_part(product, D).requires_grad
    assert torch.equal(inserted_part(product, D), expected[:, D:])
    found, wanted = (torch.autograd.grad(x[:, D:].square().sum(), inserted)[0] for x in (product, multiply(plain, up)))
    assert torch.equal(found, wanted)
    assert kept_numbers(lambda: multiply(gate, up)) == 3 * 2 * E
    assert kept_numbers(lambda: multiply(plain, up)) >= 3 * 2 * (D + E)


def test_a_product_of_what_was_written_to_is_that_of_the_new_values() -> None:
    _, gate, up = factors()
    with torch.no_grad():
        gate[:, 0] = 5.0
    assert torch.equal(gate * up, torch.Tensor.as_subclass(gate, Tensor) * up)
    assert torch.equal((gate * up)[:, 0], 5 * up[:, 0])


def test_other_operations_and_shapes_see_a_plain_tensor() -> None:
    _, gate, up = factors()
    plain = torch.Tensor.as_subclass(gate, Tensor)
    for compute in (
        lambda x: x + up,
        lambda x: x * 2,
        lambda x: 2 * x,
        lambda x: x * up[:, :1],
        lambda x: x * up[0],
        lambda x: x * up[None],
        lambda x: torch.relu(x),
        lambda x: x[..., 1:],
        lambda x: torch.cat([x, up]),
    ):
        assert torch.equal(compute(gate), compute(plain))
        assert type(compute(gate)) is Tensor


def test_a_model_keeps_nothing_as_wide_as_its_inner_state() -> None:
    model, tokens = toy_otter("normal"), torch.arange(8)[None]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    columns: set[int] = set()

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            columns.add(x.untyped_storage().nbytes() // x.element_size() // tokens.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.rewards(tokens)
    n_ff, inserted = model.insertion.base.n_ff, model.insertion.n_ff[0]
    assert {n_ff, inserted} <= columns
    assert n_ff + inserted not in columns


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_the_partial_norm_divides_by_the_rms_of_h_alone(epsilon: float) -> None:
    """w' * h' / sqrt(mean(h^2) + epsilon), with an epsilon that is nothing beside h and one that is not."""
    norm = WidenedRMSNorm(nn.RMSNorm(D, eps=epsilon), E, D, epsilon)
    nn.init.normal_(norm.otter.weight)
    x = torch.randn(3, D + E)
    h, inserted = x[:, :D], x[:, D:]
    expected = norm.otter.weight * inserted / torch.sqrt(h.square().mean(-1, keepdim=True) + epsilon)
    assert torch.allclose(norm(x)[:, D:], expected, atol=1e-6)
    assert torch.equal(norm(x)[:, :D], norm.base(h))
