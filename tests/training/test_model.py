"""What the widened model computes: the base's logits bit for bit, and the rewards of the written-out method."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, MismatchError, UnsupportedError
from otter_gguf.training import OtterModel, geometry, insert
from tests.refusals import refused
from tests.training.reference import reference
from tests.training.toy import toy_base, toy_otter

HEADS = (
    HeadConfig("safety", ("harmless", "helpful"), "both", "sigmoid", (2.0, 3.0), (0.5, -1.0)),
    HeadConfig("tone", input="base", activation="tanh"),
    HeadConfig("plain"),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "table": {"state_source": "table"},
    "attention only": {"n_ff": 0},
    "ffn only": {"n_head_kv": 0},
    "more KV heads than the base": {"n_head_kv": 3},
    "heads of every kind": {"heads": HEADS},
    "a head that reads h alone": {"heads": (HeadConfig(input="base"),)},
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 21), generator=torch.Generator().manual_seed(1))


def uneven(model: Any) -> InsertionConfig:
    """Other sizes in every layer and sub-layer."""
    return InsertionConfig(geometry(model), 5, (0, 2, 1), (7, 0, 3), heads=HEADS, state_offset=11)


def otter_of(variant: str) -> OtterModel:
    if variant == "uneven layers":
        base = toy_base()
        return insert(base, uneven(base), "normal", 0.3)
    if variant == "heads alone":
        return toy_otter("normal", width=0, n_head_kv=0, n_ff=0, heads=(HeadConfig(input="base"),))
    return toy_otter("normal", **VARIANTS[variant])


ALL_VARIANTS = [*VARIANTS, "uneven layers", "heads alone"]


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_agrees_with_the_method_written_out(variant: str, tokens: Tensor) -> None:
    base = {name: tensor.clone() for name, tensor in toy_base().state_dict().items()}
    model = otter_of(variant)
    with torch.no_grad():
        rewards = model.rewards(tokens)
    for row in range(len(tokens)):
        _, expected = reference(model.insertion, base, model.inserted_parameters(), tokens[row])
        assert rewards[row].shape == (21, model.insertion.n_rewards)
        torch.testing.assert_close(rewards[row].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_inserted_tensor_counts_and_none_touches_the_logits(variant: str, tokens: Tensor) -> None:
    model = otter_of(variant)
    with torch.no_grad():
        plain = toy_base()(tokens).logits
        before = model(tokens)
        assert torch.equal(before.logits, plain)
        for name, tensor in model.inserted_parameters().items():
            if not _is_read(model, name):
                continue
            kept = tensor.clone()
            tensor.mul_(1.5).add_(0.1)
            after = model(tokens)
            assert torch.equal(after.logits, plain), name
            assert (after.rewards - before.rewards).abs().max() > 1e-3, name
            tensor.copy_(kept)


def _is_read(model: OtterModel, name: str) -> bool:
    """With heads that read h alone, nothing else counts."""
    return name.startswith("heads.") or any(head.input != "base" for head in model.insertion.heads)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_are_the_bases_bit_for_bit(attention: str, dtype: torch.dtype, padding: str, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    if padding != "none":
        mask[1, :6] = 0
        mask = mask.flip(1) if padding == "right" else mask
    base = toy_base(attn_implementation=attention).to(dtype)
    with torch.no_grad():
        plain = base(tokens, attention_mask=mask).logits
        other = toy_base(seed=1).to(dtype)(tokens, attention_mask=mask).logits
        output = toy_otter("normal", base)(tokens, attention_mask=mask)
    # Rows of padding alone are NaN in F64 with eager attention, in the base as well.
    torch.testing.assert_close(output.logits, plain, atol=0, rtol=0, equal_nan=True)
    assert (output.logits[0] != other[0]).any()
    assert output.rewards.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_logits_are_the_same_while_training(tokens: Tensor) -> None:
    with torch.no_grad():
        plain = toy_base(attention_dropout=0.5)(tokens).logits
    model = toy_otter(base=toy_base(attention_dropout=0.5)).train()
    assert torch.equal(model(tokens).logits, plain)


def test_changed_base_weights_change_the_logits(tokens: Tensor) -> None:
    model = toy_otter("normal")
    with torch.no_grad():
        before = model(tokens)
        model.base_model.get_parameter("model.layers.1.mlp.down_proj.base.weight").mul_(1.01)
        after = model(tokens)
    assert not torch.equal(before.logits, after.logits)
    assert not torch.equal(before.rewards, after.rewards)


@pytest.mark.parametrize("chunks", [[1] * 21, [13, 8], [20, 1]])
def test_cache_gives_the_same_as_the_whole_text(chunks: list[int], tokens: Tensor) -> None:
    model = toy_otter("normal")
    with torch.no_grad():
        whole = model(tokens)
        cache, parts = None, []
        for chunk in tokens.split(chunks, dim=1):
            output = model(chunk, cache=cache, use_cache=True)
            cache = output.cache
            parts.append(output)
        without = [model(chunk).rewards for chunk in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat([part.rewards for part in parts], 1), whole.rewards, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([part.logits for part in parts], 1), whole.logits, atol=1e-4, rtol=0)
    assert (torch.cat(without, 1) - whole.rewards).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_rewards_alone(side: str, tokens: Tensor) -> None:
    model = toy_otter("normal")
    padding, ones = torch.full((3, 4), 7), torch.ones_like(tokens)
    zeros = torch.zeros_like(padding)
    padded, mask = ([padding, tokens], [zeros, ones]) if side == "left" else ([tokens, padding], [ones, zeros])
    real = slice(4, None) if side == "left" else slice(None, -4)
    with torch.no_grad():
        expected = model.rewards(tokens)
        rewards = model.rewards(torch.cat(padded, 1), torch.cat(mask, 1))[:, real]
        unmasked = model.rewards(torch.cat(padded, 1))[:, real]
    torch.testing.assert_close(rewards, expected, atol=1e-4, rtol=0)
    if side == "left":
        assert (unmasked - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(unmasked, expected, atol=1e-4, rtol=0)


def test_rewards_without_logits_are_the_same(tokens: Tensor) -> None:
    model = toy_otter("normal")
    with torch.no_grad():
        output = model(tokens, logits_to_keep=1)
        assert output.logits.shape == (3, 1, 258)
        assert torch.equal(model.rewards(tokens), output.rewards)
        assert model(tokens, return_logits=False).logits is None


def test_disabled_insertion_is_the_base(tokens: Tensor) -> None:
    model = toy_otter("normal")
    with torch.no_grad():
        plain = toy_base()(tokens, output_hidden_states=True)
        with model.disable_insertion():
            with model.disable_insertion():
                output = model(tokens, output_hidden_states=True)
            assert model(tokens).rewards is None
        assert model(tokens).rewards is not None
    assert torch.equal(output.logits, plain.logits)
    assert output.rewards is None
    assert output.hidden_states[1].shape == plain.hidden_states[1].shape


def test_disabled_insertion_comes_back_after_an_error(tokens: Tensor) -> None:
    model = toy_otter()
    with pytest.raises(RuntimeError, match="inside"), model.disable_insertion():
        raise RuntimeError("inside")
    assert model(tokens).rewards is not None


def test_base_model_generates_as_before() -> None:
    prompt, generating = torch.tensor([[1, 2, 3]]), cast(Any, toy_otter("normal").base_model)
    expected = toy_base().generate(prompt, max_new_tokens=12, do_sample=False)
    assert torch.equal(generating.generate(prompt, max_new_tokens=12, do_sample=False), expected)
    other = toy_base(seed=1).generate(prompt, max_new_tokens=12, do_sample=False)
    assert not torch.equal(other, expected)


def test_only_inserted_tensors_have_gradients(tokens: Tensor) -> None:
    model = toy_otter("normal", state_source="table").train()
    model(tokens).rewards.square().mean().backward()
    inserted = {id(parameter) for parameter in model.inserted_parameters().values()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in inserted), name
        if id(parameter) in inserted:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_recomputed_activations_give_the_same_gradients(tokens: Tensor) -> None:
    gradients = []
    for recompute in (False, True):
        model = toy_otter("normal").train()
        if recompute:
            model.activation_checkpointing_enable()
        model.rewards(tokens).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.inserted_parameters().values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert torch.equal(plain, recomputed)


def test_prints_the_share_of_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_otter()
    model.print_trainable_parameters()
    inserted = sum(tensor.numel() for tensor in model.inserted_parameters().values())
    total = inserted + toy_base().num_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {inserted:,d} || all params: {total:,d} || trainable%: {100 * inserted / total:.4f}\n"
    )


def test_refuses_another_base() -> None:
    config = InsertionConfig.uniform(geometry(toy_base()), 8)
    with refused(MismatchError, "n_layer", 3, 2, "n_ff", 48, 64):
        insert(toy_base(num_hidden_layers=2, intermediate_size=64), config)
    insert(toy_base(seed=1), config)


def test_refuses_a_second_insertion() -> None:
    model = toy_otter()
    with refused(ConfigError, "insertion"):
        insert(model.base_model, model.insertion)


def test_refuses_biases() -> None:
    base = toy_base(attention_bias=True)
    before = str(base)
    with refused(UnsupportedError, "model.layers.0.self_attn.o_proj", "bias"):
        toy_otter(base=base)
    assert str(base) == before
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_refuses_models_without_language_head_and_unknown_architectures() -> None:
    base = toy_base()
    with refused(UnsupportedError, "LlamaModel", "LlamaForCausalLM"):
        geometry(base.model)
    base.config.model_type = "../llama"
    with refused(UnsupportedError, "'../llama'", "llama, mistral"):
        geometry(base)
