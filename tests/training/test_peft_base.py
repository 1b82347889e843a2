"""Bases whose maps are no plain matrices: with an adapter of PEFT, active or merged, or with quantized weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from otter_gguf.config import InsertionConfig
from otter_gguf.errors import MismatchError, UnsupportedError
from otter_gguf.training import OtterModel, export_widened, geometry, insert
from otter_gguf.training.peft_base import linear_rows
from tests.refusals import refused
from tests.training.toy import toy_base, toy_folder, toy_otter

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "every map": {"target_modules": LINEAR},
    "two maps": {"target_modules": ["q_proj", "v_proj"]},
    "embedding and head": {"target_modules": ["embed_tokens", "down_proj", "lm_head"]},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "bias": {"target_modules": LINEAR, "lora_bias": True},
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (2, 15), generator=torch.Generator().manual_seed(1))


def lora(seed: int = 5, base: Any = None, **options: Any) -> PeftModel:
    """The toy base with an untrained LoRA that changes its logits."""
    base = base if base is not None else toy_base()
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"target_modules": LINEAR, "r": 4, "lora_alpha": 8, "lora_dropout": 0.5, **options}
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "bias" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def lora_tensors(model: OtterModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.base_model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_peft_models_and_only_inserted_tensors_learn(variant: str, tokens: Tensor) -> None:
    adapted = lora(**VARIANTS[variant])
    with torch.no_grad():
        expected = copy.deepcopy(adapted)(tokens).logits
        assert not torch.equal(expected, toy_base()(tokens).logits)
    model = toy_otter(base=adapted, state_source="table").train()
    output = model(tokens)
    assert torch.equal(output.logits, expected)
    output.rewards.sum().backward()
    assert lora_tensors(model)
    assert [name for name, tensor in lora_tensors(model).items() if tensor.grad is not None] == []
    assert [name for name, tensor in model.inserted_parameters().items() if tensor.grad is None] == []


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "bias"])
@torch.no_grad()
def test_copies_the_rows_that_the_adapted_maps_have(variant: str) -> None:
    adapted = lora(**VARIANTS[variant])
    merged = copy.deepcopy(adapted).merge_and_unload()
    model = toy_otter(base=adapted, state_source="table", n_head_kv=2)
    expected, plain = (toy_otter(base=base, state_source="table", n_head_kv=2) for base in (merged, toy_base()))
    others, before = expected.inserted_parameters(), plain.inserted_parameters()
    for name, tensor in model.inserted_parameters().items():
        torch.testing.assert_close(tensor, others[name], atol=1e-5, rtol=0, msg=name)
    assert any((tensor - before[name]).abs().max() > 0.01 for name, tensor in model.inserted_parameters().items())


@torch.no_grad()
def test_state_starts_as_a_copy_of_the_bases_channels(tokens: Tensor) -> None:
    model = toy_otter(base=lora(), state_source="table")
    states = model(tokens, output_hidden_states=True).hidden_states
    assert len(states) == 4
    for state in states:
        torch.testing.assert_close(state[..., 32:], state[..., 3:11], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rewards_are_those_on_the_merged_base(tokens: Tensor) -> None:
    adapted = lora()
    merged = toy_otter("normal", base=copy.deepcopy(adapted).merge_and_unload())
    model = toy_otter("normal", base=adapted)
    torch.testing.assert_close(model.rewards(tokens), merged.rewards(tokens), atol=1e-4, rtol=0)
    assert (model.rewards(tokens) - toy_otter("normal").rewards(tokens)).abs().max() > 0.01
    with adapted.disable_adapter():
        torch.testing.assert_close(model.rewards(tokens), toy_otter("normal").rewards(tokens), atol=1e-4, rtol=0)


@torch.no_grad()
def test_adapter_remembers_which_lora_it_was_trained_on(tmp_path: Path, tokens: Tensor) -> None:
    base = LlamaForCausalLM.from_pretrained(toy_folder(tmp_path / "base"))
    model = toy_otter("normal", base=lora(base=base))
    model.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "otter_config.json").read_text())
    assert record["base_model_name_or_path"] == str(tmp_path / "base")
    assert record["base_adapters"]["names"] == ["default"]
    assert record["base_adapters"]["types"] == ["LORA"]
    loaded = OtterModel.from_pretrained(lora(), tmp_path / "adapter")
    assert torch.equal(loaded.rewards(tokens), model.rewards(tokens))
    for other in (lora(seed=6), toy_base(), None):
        with refused(MismatchError, tmp_path / "adapter", "default", "PEFT", "base_model"):
            OtterModel.from_pretrained(other, tmp_path / "adapter")


def test_an_adapter_of_the_plain_base_is_refused_on_an_adapted_one(tmp_path: Path) -> None:
    toy_otter().save_pretrained(tmp_path)
    with refused(MismatchError, tmp_path, "no adapter", "default") as raised:
        OtterModel.from_pretrained(lora(), tmp_path)
    assert str(raised.value).index("no adapter") < str(raised.value).index("default")  # trained on, found
    assert OtterModel.from_pretrained(toy_base(), tmp_path)


def test_an_adapter_that_is_switched_off_counts_as_none(tmp_path: Path) -> None:
    adapted = lora()
    with adapted.disable_adapter():
        model = toy_otter(base=adapted)
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "otter_config.json").read_text())["base_adapters"] is None


def test_what_cannot_be_widened_is_refused(tmp_path: Path) -> None:
    prompts = get_peft_model(toy_base(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with refused(UnsupportedError, "PeftModel", "prompts"):
        geometry(prompts)
    base = toy_base()
    with refused(UnsupportedError, "Linear", "PeftModel"):
        insert(nn.Linear(2, 2), InsertionConfig.uniform(geometry(base), width=8))
    with refused(UnsupportedError, "model.layers.0.self_attn.q_proj", "merge_and_unload"):
        export_widened(toy_otter(base=lora()), tmp_path)


def test_a_merged_base_is_a_plain_one(tmp_path: Path) -> None:
    model = toy_otter(base=lora().merge_and_unload(), width=16)
    export_widened(model, tmp_path / "widened")
    assert (tmp_path / "widened" / "config.json").exists()


class Int8Linear(nn.Module):
    """A linear map as bitsandbytes has it: integers as its weight, and a scale for every row."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * cast(Tensor, self.scale))


def quantized(base: Any) -> Any:
    for name, module in list(base.named_modules()):
        if name.endswith("_proj"):
            base.set_submodule(name, Int8Linear(module))
    return base


def check_quantized_base(make_base: Callable[[], Any], tokens: Tensor, folder: Path, tolerance: float) -> None:
    """Logits stay, h' starts as a copy, inserted tensors are trained in F32 and saved."""
    with torch.no_grad():
        expected = make_base()(tokens).logits
    model = toy_otter(base=make_base(), state_source="table").train()
    output = model(tokens, output_hidden_states=True)
    assert torch.equal(output.logits, expected)
    for state in output.hidden_states:
        inserted, scale = state[..., model.insertion.base.n_embd :], state.detach().abs().max()
        assert float((inserted - state[..., 3:11]).detach().abs().max() / scale) < tolerance
        assert float((inserted - state[..., 11:19]).detach().abs().max() / scale) > 0.2
    output.rewards.sum().backward()
    assert {(t.dtype, t.grad is None) for t in model.inserted_parameters().values()} == {(torch.float32, False)}
    model.save_pretrained(folder / "adapter")
    loaded = OtterModel.from_pretrained(make_base(), folder / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded.rewards(tokens), model.eval().rewards(tokens))
    with refused(UnsupportedError, "model.layers.0.self_attn.q_proj", "Int8Linear"):
        export_widened(model, folder / "widened")


def test_quantized_maps_are_widened(tmp_path: Path, tokens: Tensor) -> None:
    check_quantized_base(lambda: quantized(toy_base()), tokens, tmp_path, 1e-6)
    plain, model = toy_otter().inserted_parameters(), toy_otter(base=quantized(toy_base())).inserted_parameters()
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in model.items())


def test_a_long_map_is_probed_in_slices() -> None:
    plain = nn.Linear(1100, 7, bias=False)
    map_ = Int8Linear(plain)
    expected = (map_.weight * cast(Tensor, map_.scale))[[6, 0, 6]]
    assert torch.equal(linear_rows(map_, (6, 0, 6), 1100, torch.float32), expected)
    assert torch.equal(linear_rows(plain, (6, 0), 1100, torch.float32), plain.weight[[6, 0]])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bases_of_bitsandbytes(tmp_path: Path, tokens: Tensor, options: dict[str, Any], adapted: bool) -> None:
    pytest.importorskip("bitsandbytes")
    toy_folder(tmp_path / "base", hidden_size=64, intermediate_size=128)

    def load() -> Any:
        base = LlamaForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), device_map="cpu", dtype=torch.bfloat16
        ).eval()
        assert not base.model.layers[0].mlp.up_proj.weight.is_floating_point()
        return lora(base=base) if adapted else base

    check_quantized_base(load, tokens, tmp_path, 0.02)  # one place of BF16 is up to 0.008
