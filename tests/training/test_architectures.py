"""Every architecture in torch: an untouched base, gradients, and the form of a plainly widened model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from otter_gguf.converters.sidecar import convert_sidecar
from otter_gguf.converters.widened import convert_widened
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, StaticCache

from otter_gguf import _native
from otter_gguf.architectures import find, of_gguf, supported
from otter_gguf.errors import MismatchError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.training import OtterModel, export_widened, geometry, load_widened
from otter_gguf.training.base import choose_attention, load_base
from otter_gguf.training.gguf_base import load_gguf_base
from otter_gguf.training.renamed import CACHE
from tests.architecture_toys import FORMS, long_rope, toy, widen, write_toy, write_widened
from tests.refusals import assert_names, refused

TOKENS = torch.randint(3, 288, (2, 23), generator=torch.Generator().manual_seed(5))

every_architecture = pytest.mark.parametrize("model_type", supported())
every_form = pytest.mark.parametrize(("model_type", "form"), FORMS.values(), ids=FORMS)
NOT_WIDENED = [model_type for model_type in supported() if find(model_type).not_widened]
every_widened = pytest.mark.parametrize("model_type", [name for name in supported() if name not in NOT_WIDENED])


def uniform(model: Any, **changes: Any) -> OtterModel:
    """The same sizes in every layer, as a widened checkpoint needs them."""
    layers = model.config.num_hidden_layers
    return widen(model, n_head_kv=(2,) * layers, n_ff=(12,) * layers, state_source="table", **changes)


def as_if_set(model: Any, attention: str) -> Any:
    """With an attention function that transformers itself may refuse to set."""
    model.config._attn_implementation = attention
    return model


@every_form
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_base_computes_the_same_bits(model_type: str, form: dict[str, Any], attention: str) -> None:
    """In one go and token by token; and without the insertion, as if it had never been there."""
    base = toy(model_type, **form)
    if attention not in (find(model_type).attention_functions or (attention,)):
        with refused(UnsupportedError, attention, "attn_implementation", "eager"):
            widen(as_if_set(base, attention))
        return
    base.set_attn_implementation(attention)
    with torch.no_grad():
        plain = base(TOKENS).logits
        cache = base(TOKENS[:, :20])[CACHE]
        step = base(TOKENS[:, 20:], **{CACHE: cache}).logits
        otter = widen(base)
        assert torch.equal(otter(TOKENS).logits, plain)
        first = otter(TOKENS[:, :20], use_cache=True)
        second = otter(TOKENS[:, 20:], cache=first.cache)
        assert torch.equal(second.logits, step)
        whole = otter(TOKENS).rewards
        assert (second.rewards - whole[:, 20:]).abs().max() < 1e-4
        with otter.disable_insertion():
            assert torch.equal(otter(TOKENS).logits, plain)


@every_form
def test_gradients_reach_every_inserted_tensor_and_nothing_else(model_type: str, form: dict[str, Any]) -> None:
    otter = widen(toy(model_type, **form), state_source="table")
    rewards = otter(TOKENS, use_cache=False).rewards
    assert rewards is not None
    rewards.square().sum().backward()
    inserted = otter.inserted_parameters()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 1e-6 for tensor in inserted.values())
    assert all(parameter.grad is None for parameter in otter.parameters() if not parameter.requires_grad)
    assert sum(parameter.requires_grad for parameter in otter.parameters()) == len(inserted)


@every_form
def test_gradients_are_those_of_differences(
    model_type: str, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along a random direction of all inserted tensors, in double precision, which Gemma's norms would leave."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    base = toy(model_type, **form).double()
    if geometry(base).n_expert:
        base.set_experts_implementation("eager")  # the usual one has no double precision
    otter = widen(base, state_source="table").double()
    tensors = list(otter.inserted_parameters().values())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in tensors]

    def loss() -> Tensor:
        rewards = otter(TOKENS, use_cache=False).rewards
        assert rewards is not None
        return cast(Tensor, rewards[..., :3].sin().sum())

    def moved(step: float) -> float:
        with torch.no_grad():
            for tensor, along in zip(tensors, direction, strict=True):
                tensor.add_(along, alpha=step)
            value = float(loss())
            for tensor, along in zip(tensors, direction, strict=True):
                tensor.sub_(along, alpha=step)
        return value

    loss().backward()
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    slope = sum(float((grad * along).sum()) for grad, along in zip(gradients, direction, strict=True))
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-3)


class _PartialNorm(nn.Module):
    """The paper's one-line change, made to the norm of a plainly widened model."""

    def __init__(self, norm: Any, columns: int) -> None:
        super().__init__()
        self.weight, self.epsilon, self.columns = norm.weight, norm.variance_epsilon, columns

    def forward(self, x: Tensor) -> Tensor:
        square = x[..., : self.columns].pow(2).mean(-1, keepdim=True)
        return cast(Tensor, self.weight * x * torch.rsqrt(square + self.epsilon))


@every_widened
def test_it_is_a_plainly_widened_model_with_partial_norms(model_type: str, tmp_path: Path) -> None:
    """transformers' own model of the larger sizes knows nothing of an insertion, and computes the same states."""
    base = toy(model_type)
    otter = uniform(base)
    export_widened(otter, tmp_path)
    expected = otter(TOKENS)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, module in toy(model_type).named_modules():
        norm: Any = wide.get_submodule(name)
        if name.endswith("norm") and norm.weight.shape != module.weight.shape:
            wide.set_submodule(name, _PartialNorm(norm, len(module.weight)))
    states: list[Tensor] = []
    wide.get_submodule("model.norm").register_forward_hook(lambda _module, _inputs, output: states.append(output))
    with torch.no_grad():
        logits = wide(TOKENS).logits
    assert expected.final_state is not None
    assert wide.config.hidden_size == 96
    assert (states[0] - expected.final_state).abs().max() < 1e-4
    assert (logits - expected.logits).abs().max() < 1e-4


@every_widened
def test_every_form_holds_the_same_tensors(model_type: str, tmp_path: Path) -> None:
    """Adapter, widened checkpoint and the sidecars of both."""
    otter = uniform(toy(model_type))
    tensors = {name: tensor.detach().clone() for name, tensor in otter.inserted_parameters().items()}
    export_widened(otter, tmp_path / "wide")
    base = write_toy(tmp_path / "base.gguf", toy(model_type))
    sidecar = write_widened(tmp_path, otter, base)
    again = load_widened(tmp_path / "wide", toy(model_type))
    adapter = OtterModel.from_pretrained(toy(model_type), tmp_path / "adapter")
    for model in (again, adapter):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.inserted_parameters().items())
    with BaseFiles.open(base) as files:
        convert_widened(tmp_path / "wide", tmp_path / "wide.otter.gguf", files, outtype="f32")
    with _native.GgufFile(str(sidecar)) as one, _native.GgufFile(str(tmp_path / "wide.otter.gguf")) as other:
        assert [tensor.name for tensor in one.tensors] == [tensor.name for tensor in other.tensors]
        for tensor in one.tensors:
            assert np.array_equal(one.tensor_data(tensor.name), other.tensor_data(tensor.name)), tensor.name


@every_form
def test_a_sidecar_becomes_the_adapter_again(model_type: str, form: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, through a file that another base's form would not have."""
    base, otter = write_toy(tmp_path / "base.gguf", toy(model_type, **form)), widen(toy(model_type, **form))
    sidecar = write_widened(tmp_path, otter, base)
    assert convert_sidecar(sidecar, tmp_path / "back") == otter.insertion
    again = OtterModel.from_pretrained(toy(model_type, **form), tmp_path / "back")
    tensors = otter.inserted_parameters()
    assert list(again.inserted_parameters()) == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.inserted_parameters().items())


@pytest.mark.parametrize("model_type", NOT_WIDENED)
def test_no_widened_checkpoint_where_it_would_be_another_model(model_type: str, tmp_path: Path) -> None:
    """Refused in every direction: written, read, converted."""
    model_class = find(model_type).model_class
    with refused(UnsupportedError, model_class, "widened"):
        export_widened(uniform(toy(model_type)), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
    otter = uniform(toy(model_type))
    record = {"insertion": otter.insertion.to_dict()}
    data = {"architectures": [model_class], "otter": record}
    (tmp_path / "config.json").write_text(json.dumps(data))
    base = write_toy(tmp_path / "base.gguf", toy(model_type))
    with refused(UnsupportedError, model_class, "widened"):
        load_widened(tmp_path, toy(model_type))
    (tmp_path / "model.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    with BaseFiles.open(base) as files, refused(UnsupportedError, "config.json", model_class, "widened"):
        convert_widened(tmp_path, tmp_path / "wide.otter.gguf", files, base_hf=tmp_path)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("qwen2", "model.layers.0.self_attn.k_proj.bias"), ("qwen3", "model.layers.1.self_attn.q_norm.weight")],
)
def test_a_widened_checkpoint_of_another_base_is_refused(model_type: str, name: str, tmp_path: Path) -> None:
    """What belongs to the base alone is compared too, in torch and by the converter."""
    export_widened(uniform(toy(model_type)), tmp_path / "wide")
    other = toy(model_type)
    with torch.no_grad():
        other.get_parameter(name)[3] += 1.0
    base = write_toy(tmp_path / "base.gguf", other)
    with refused(MismatchError, name):
        load_widened(tmp_path / "wide", copy.deepcopy(other))
    with BaseFiles.open(base) as files, refused(MismatchError, name, base):
        convert_widened(tmp_path / "wide", tmp_path / "wide.otter.gguf", files, outtype="f32")


_HUGGING_FACE_ALONE = (
    "ernie4_5",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "mixtral",
    "olmo2",
    "phi3",
    "smollm3",
    "stablelm",
)


@every_architecture
def test_a_base_from_gguf_is_the_same_or_refused(model_type: str, tmp_path: Path) -> None:
    """transformers reads some architectures from GGUF; for the others the Hugging Face folder is needed."""
    model = toy(model_type)
    base = write_toy(tmp_path / "base.gguf", model)
    try:
        found = load_gguf_base(base)
    except UnsupportedError as error:
        assert model_type in _HUGGING_FACE_ALONE
        assert_names(str(error), base, "transformers")
        return
    with torch.no_grad():
        assert torch.equal(found(TOKENS).logits, model(TOKENS).logits)
    assert geometry(found) == geometry(model)


_YARN = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128},
}


def test_gemma_2_is_loaded_with_an_attention_that_caps_its_scores(tmp_path: Path) -> None:
    """Whatever the installed transformers would choose."""
    base = toy("gemma2")
    base.save_pretrained(tmp_path)
    assert load_base(tmp_path).config._attn_implementation == "eager"
    with refused(UnsupportedError, "sdpa", "attn_implementation", "eager"):
        widen(as_if_set(base, "sdpa"))
    choose_attention(base)
    widen(base)


@every_architecture
def test_another_base_is_refused(model_type: str, tmp_path: Path) -> None:
    widen(toy(model_type)).save_pretrained(tmp_path)
    OtterModel.from_pretrained(toy(model_type), tmp_path)
    with refused(MismatchError, tmp_path, "base_fingerprint", "check_base"):
        OtterModel.from_pretrained(toy(model_type, seed=1), tmp_path)


@pytest.mark.parametrize(
    ("model_type", "changes", "names"),
    [
        ("smollm3", {"no_rope_layer_interval": 3}, ("rotary", "4th")),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, ("use_sliding_window",)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, ("use_sliding_window",)),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, ("use_sliding_window",)),
        ("ernie4_5", {"use_bias": True}, ("biases",)),
        ("falcon", {"alibi": True}, ("alibi",)),
        ("falcon", {"bias": True}, ("biases",)),
        ("falcon", {"parallel_attn": False}, ("parallel_attn",)),
        ("falcon", {"multi_query": False}, ("multi_query",)),
        (
            "falcon",
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "num_kv_heads": 2},
            ("Falcon2", "several"),
        ),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 1}, ("KV", "norms")),
        ("falcon", {"ffn_hidden_size": 96}, ("ffn_hidden_size", 96)),
        ("falcon", {"activation": "relu"}, ("activation", "relu", "gelu")),
        ("falcon", {"rope_parameters": {"rope_theta": 500.0}}, ("rope_theta", 500.0)),
        ("gemma", {"tie_word_embeddings": False}, ("output", "embedding")),
        ("gemma", {"use_bidirectional_attention": True}, ("directions",)),
        ("gemma", {"hidden_act": "silu"}, ("hidden_act", "silu", "gelu_pytorch_tanh")),
        ("gpt2", {"n_inner": 96}, ("n_inner", 96)),
        ("gpt2", {"scale_attn_weights": False}, ("scale_attn_weights",)),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
        ("gpt2", {"reorder_and_upcast_attn": True}, ("reorder_and_upcast_attn",)),
        ("gpt2", {"add_cross_attention": True}, ("cross-attention",)),
        ("gpt2", {"activation_function": "relu"}, ("activation_function", "relu", "gelu_new")),
        ("gpt_neox", {"attention_bias": False}, ("attention", "biases")),
        ("gpt_neox", {"tie_word_embeddings": True}, ("output", "embedding")),
        ("gpt_neox", {"rope_parameters": {"rope_theta": 500.0}}, ("rope_theta", 500.0)),
        ("gpt_neox", {"hidden_act": "relu"}, ("hidden_act", "relu", "gelu", "gelu_fast")),
        ("gemma", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}, ("rope_theta", 50000.0)),
        ("gemma2", {"attn_logit_softcapping": None}, ("scores", "logits")),
        ("gemma2", {"query_pre_attn_scalar": 16}, ("query_pre_attn_scalar", 16, 64)),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, ("window", 2)),
        ("gemma2", {"hidden_activation": "silu"}, ("hidden_activation", "silu", "gelu_pytorch_tanh")),
        ("gemma2", {"attention_bias": True}, ("attention", "biases")),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, ("scores",)),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, ("window", 6)),
        ("gemma3_text", {"rope_parameters": _YARN}, ("rotary", "full_attention", "yarn")),
        ("granite", {"hidden_act": "gelu"}, ("hidden_act", "gelu", "silu")),
        ("phi3", long_rope(attention_factor=1.5), ("rope_parameters", "attention_factor", 1.5, "1.06066")),
        ("phi3", long_rope(factor=3.0), ("rope_parameters", "factor", 3.0, 2)),
        ("qwen3_moe", {"mlp_only_layers": [1]}, ("layers", "experts")),
        ("qwen3_moe", {"decoder_sparse_step": 2}, ("layers", "experts")),
        ("qwen3_moe", {"norm_topk_prob": False}, ("norm_topk_prob", "false")),
        ("starcoder2", {"use_bias": False}, ("biases",)),
        ("stablelm", {"use_parallel_residual": True}, ("use_parallel_residual",)),
        ("stablelm", {"qk_layernorm": True}, ("qk_layernorm",)),
        ("stablelm", {"tie_word_embeddings": True}, ("output", "embedding")),
        ("stablelm", {"rope_parameters": {"rope_theta": 500.0}}, ("rope_theta", 500.0)),
        ("llama", {"hidden_act": "relu"}, ("hidden_act", "relu", "silu")),
        ("olmo2", {"attention_bias": True}, ("attention", "biases")),
        ("olmo2", {"head_dim": 32}, ("heads", "state")),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    model_type: str, changes: dict[str, Any], names: tuple[object, ...]
) -> None:
    assert geometry(toy(model_type)).architecture == find(model_type).gguf
    with refused(UnsupportedError, find(model_type).model_class, "llama.cpp", *names):
        geometry(toy(model_type, **changes))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fused_maps_keep_the_bits_at_odd_sizes(attention: str) -> None:
    """No length is a multiple of what vectorised code takes at a time; without a cache values are slices."""
    base = toy(
        "phi3", hidden_size=72, intermediate_size=91, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    base.set_attn_implementation(attention)
    with torch.no_grad():
        plain = [base(TOKENS[:, :size], use_cache=False).logits for size in (1, 7, 23)]
        otter = widen(base)
        found = [otter(TOKENS[:, :size], use_cache=False).logits for size in (1, 7, 23)]
        with otter.disable_insertion():
            found += [otter(TOKENS[:, :size], use_cache=False).logits for size in (1, 7, 23)]
    assert all(torch.equal(a, b) for a, b in zip(plain * 2, found, strict=True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("falcon")])
def test_heads_beside_an_attention_module_see_no_padding(form: str, attention: str) -> None:
    """They are given the mask that the base's heads get."""
    model_type, changes = FORMS[form]
    base = toy(model_type, **changes)
    base.set_attn_implementation(attention)
    otter, padding = widen(base), torch.full((2, 4), 3)
    mask = torch.cat([torch.zeros(2, 4), torch.ones_like(TOKENS)], dim=1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = otter(TOKENS).rewards
        masked = otter(torch.cat([padding, TOKENS], dim=1), mask, positions).rewards[:, 4:]
        seen = otter(torch.cat([padding, TOKENS], dim=1), None, positions).rewards[:, 4:]
    assert (masked - expected).abs().max() < 1e-4
    assert (seen - expected).abs().max() > 1e-3


def test_heads_beside_an_attention_module_need_a_cache_that_grows() -> None:
    otter = widen(toy("falcon"))
    cache = StaticCache(otter.config, max_cache_len=32)
    with refused(UnsupportedError, "StaticCache", "DynamicCache"):
        otter(TOKENS, cache=cache)
    with otter.disable_insertion(), torch.no_grad():
        otter(TOKENS, cache=StaticCache(otter.config, max_cache_len=32))


def test_copy_initialisation_beside_experts_takes_the_first() -> None:
    """The inserted FFN adds what expert 0 would add to the copied channels, and nothing of another expert."""
    base = toy("mixtral")
    experts = copy.deepcopy(base.model.layers[0].mlp.experts)
    inner = experts.intermediate_dim
    widened = widen(base, "copy", n_ff=(inner, 0)).base_model.get_submodule("model.layers.0.mlp")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        added = widened(torch.cat([x, torch.zeros(5, 32)], dim=-1)[None])[0, :, 64:]
        first, second = (experts(x, torch.full((5, 1), expert), torch.ones(5, 1))[:, 3 : 3 + 32] for expert in (0, 1))
    assert (added - first).abs().max() < 1e-5
    assert (added - second).abs().max() > 1e-2


def test_biases_of_maps_back_to_the_residual_are_refused() -> None:
    for model_type, module in (("granite", "o_proj"), ("smollm3", "o_proj"), ("qwen3", "o_proj")):
        with refused(UnsupportedError, f"model.layers.0.self_attn.{module}", "bias"):
            widen(toy(model_type, attention_bias=True))


def test_unknown_names_are_refused() -> None:
    with refused(UnsupportedError, "'mpt'", "ernie4_5, falcon"):
        find("mpt")
    with refused(UnsupportedError, "'mpt'", "ernie4_5, falcon"):
        of_gguf("mpt")
    names = [architecture.model_class for architecture in of_gguf("llama")]
    assert names == ["LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"]


def test_architectures_of_one_gguf_name_have_the_same_tensors_there() -> None:
    for model_type in supported():
        for other in of_gguf(find(model_type).gguf):
            assert other.interleaved_rope == find(model_type).interleaved_rope
            assert other.layer_norm == find(model_type).layer_norm
            for sub_layer in ("attention", "ffn"):
                one, two = getattr(find(model_type), sub_layer), getattr(other, sub_layer)
                assert (one.inputs, one.input_bias, one.output_bias) == (two.inputs, two.input_bias, two.output_bias)
                assert (bool(one.norm), bool(one.post_norm)) == (bool(two.norm), bool(two.post_norm))
                assert (one.head_norms, one.joint_head_norms) == (two.head_norms, two.joint_head_norms)
