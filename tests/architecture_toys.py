"""A tiny random model of every architecture, in torch and as GGUF, written without llama.cpp's slow converter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from otter_gguf.converters.adapter import convert_adapter
from transformers import AutoConfig, AutoModelForCausalLM

from otter_gguf import _native
from otter_gguf.architectures import find, supported
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.converters import base as base_converter
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from otter_gguf.training import OtterModel, geometry, insert
from otter_gguf.training.base import choose_attention
from tests.gguf.toy_files import GEOMETRY, Float32, base_metadata, rope_order
from tests.training.toy import toy_tokenizer

HEADS = (
    HeadConfig(),
    HeadConfig("safety", ("harm", "help"), "both", "tanh", (2.0, 0.5), (0.0, -1.0)),
    HeadConfig("plain", ("x",), "base", "sigmoid"),
)

_HALF_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 1.5, 2.5, 6.0],
}
LONG_TEXT = 256
"""More tokens than this take the long factors, if the configuration says so."""

# What each architecture has besides Llama's sizes; a file without an entry here fails every test.
SPECIAL: dict[str, dict[str, Any]] = {
    "ernie4_5": {"head_dim": 32},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "falcon": {},
    "gpt2": {"num_key_value_heads": None, "tie_word_embeddings": True},
    "gpt_neox": {"num_key_value_heads": None, "rope_parameters": _HALF_ROPE},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
    },
    "gemma2": {
        "head_dim": 64,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 64,
        "sliding_window": 16,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 20.0,
    },
    "gemma3_text": {
        "head_dim": 64,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 64,
        "sliding_window": 16,
        "num_hidden_layers": 6,
        "initializer_range": 0.08,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
    "llama": {"head_dim": 16},
    "olmo2": {},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "mixtral": {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
    },
    "smollm3": {"num_hidden_layers": 4},
    "stablelm": {"rope_parameters": _HALF_ROPE},
    "starcoder2": {"tie_word_embeddings": True},
}

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in supported()},
    "falcon 40B": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
"""Every toy, and that of an architecture whose inserted tensors are others for some bases: model type and changes."""

_MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "rope_factors_long": "rope_factors_long",
    "rope_factors_short": "rope_factors_short",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "transformer.word_embeddings": "token_embd",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}

# Parameters of all experts: the tensors that their rows are cut into.
_EXPERTS = {
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
}

_TRANSPOSED = ("attn.c_attn", "c_proj", "c_fc")
"""Maps that GPT-2 stores (columns, rows)."""


_POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_GEMMA = {**_POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}

# Where an architecture's modules are others, or mean something else.
_OTHER_MODULES: dict[str, dict[str, str]] = {"gemma2": _GEMMA, "gemma3_text": _GEMMA, "olmo2": _POST_NORMS}


_NO_FIELDS = {"falcon": ("head_dim", "intermediate_size", "num_key_value_heads")}
"""Fields of the other configurations that one has not, or computes of others."""

BYTE_LEVEL = ("falcon", "gpt2", "gpt_neox", "olmo2", "qwen3_moe", "stablelm", "starcoder2")
"""Model types whose converter wants a vocabulary of GPT-2's kind."""


def long_rope(**changes: Any) -> dict[str, Any]:
    """Fields of a configuration with long rotary factors."""
    return {"original_max_position_embeddings": LONG_TEXT, "rope_parameters": {**_LONG_ROPE, **changes}}


def toy(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A model with weights so large that every part of it matters; norms and biases are random too."""
    sizes: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    fields = {**sizes, **SPECIAL[model_type], **changes}
    for name in _NO_FIELDS.get(model_type, ()):
        fields.pop(name, None)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    choose_attention(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5).sub_(find(model_type).norm_offset)
            elif name.endswith(".bias"):
                parameter.uniform_(-1.0, 1.0)
    return model


def write_toy(path: Path, model: Any, type: str = "F32") -> Path:
    """It as GGUF, matrices in ``type``."""
    architecture = find(model.config.model_type)
    sizes = geometry(model)
    entries = {entry.key: entry for entry in (*base_metadata(sizes), *_metadata(model.config, architecture.gguf))}
    if architecture.layer_norm:
        del entries[f"{architecture.gguf}.attention.layer_norm_rms_epsilon"]
    tensors = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for kind in ("long", "short"):
        if f"{kind}_factor" in getattr(model.config, "rope_parameters", {}):
            tensors[f"rope_factors_{kind}.weight"] = torch.tensor(model.config.rope_parameters[f"{kind}_factor"])
    plans = [
        plan
        for name, tensor in tensors.items()
        for plan in _plans(name, (tensor + (architecture.norm_offset if "norm." in name else 0.0)).numpy(), type, model)
    ]
    write_gguf(path, list(entries.values()), plans, force=True)
    return path


def _layer_norm_epsilon(config: Any) -> float | None:
    names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)


def _metadata(config: Any, prefix: str) -> list[KeyValue]:
    rope: dict[str, Any] = getattr(config, "rope_parameters", {})
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    numbers = {
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": _layer_norm_epsilon(config),
        "rope.freq_base": rope.get("full_attention", rope).get("rope_theta"),
        "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"] if "sliding_attention" in rope else None,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention.scale": getattr(config, "attention_multiplier", None),
        "embedding_scale": getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
        "logit_scale": getattr(config, "logits_scaling", None),
    }
    sizes = {
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
    }
    if windowed:
        sizes["attention.sliding_window"] = config.sliding_window
    if hasattr(config, "num_experts"):
        sizes |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
    if hasattr(config, "moe_intermediate_size"):
        sizes |= {
            "feed_forward_length": config.intermediate_size,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if rope.get("rope_type") == "longrope":
        original = sizes["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        numbers["rope.scaling.attn_factor"] = (1 + math.log(scale) / math.log(original)) ** 0.5
    parallel = getattr(config, "use_parallel_residual", None)
    return [
        *([] if parallel is None else [KeyValue(f"{prefix}.use_parallel_residual", "bool", parallel)]),
        *(KeyValue(f"{prefix}.{name}", "u32", size) for name, size in sizes.items()),
        *(KeyValue(f"{prefix}.{name}", "f32", value) for name, value in numbers.items() if value is not None),
    ]


def _plans(name: str, values: Float32, type: str, model: Any) -> list[TensorPlan]:
    architecture, layer = find(model.config.model_type), ""
    if name.startswith(f"{architecture.layers}."):
        number, name = name.removeprefix(f"{architecture.layers}.").split(".", 1)
        layer = f"blk.{number}."
    if name in _EXPERTS:
        parts = np.split(values, len(_EXPERTS[name]), axis=1)
        return [_plan(f"{layer}{part}.weight", rows, type) for part, rows in zip(_EXPERTS[name], parts, strict=True)]
    module, _, kind = name.rpartition(".")
    type = "F32" if values.ndim == 1 or module == "mlp.gate" else type
    modules = {**_MODULES, **_OTHER_MODULES.get(model.config.model_type, {})}
    return [_plan(f"{layer}{modules[module]}.{kind}", _in_gguf_order(module, values, model), type)]


def _in_gguf_order(module: str, values: Float32, model: Any) -> Float32:
    """The rows of a map as llama.cpp wants them."""
    if model.config.model_type == "gpt2" and module.endswith(_TRANSPOSED):
        return np.ascontiguousarray(values.T)
    architecture, sizes = find(model.config.model_type), geometry(model)
    if architecture.interleaved_rope and module.endswith(("q_proj", "k_proj")):
        return rope_order(values, sizes.head_dim)
    if architecture.attention.by_head and module == architecture.attention.inputs[0]:
        blocks = values.reshape(sizes.n_head_kv, sizes.group + 2, sizes.head_dim, *values.shape[1:])
        parts = [blocks[:, :-2].ravel(), blocks[:, -2].ravel(), blocks[:, -1].ravel()]
        return np.concatenate(parts).reshape(values.shape)
    return values


def _plan(name: str, values: Float32, type: str) -> TensorPlan:
    rows = values.reshape(-1, values.shape[-1])
    return TensorPlan(name, type, values.shape[::-1], lambda: [_native.quantize(np.ascontiguousarray(rows), type)])


def write_sentencepiece(path: Path) -> None:
    """The toys' pieces as ``tokenizer.model``, which llama.cpp's converter takes for every architecture."""
    from sentencepiece import sentencepiece_model_pb2  # an extra of the tests that only slow ones need

    model = cast(Any, sentencepiece_model_pb2).ModelProto()
    tokens = {entry.key: entry.value for entry in base_metadata(GEOMETRY) if entry.key.startswith("tokenizer.")}
    for piece, score, kind in zip(
        *(tokens[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")), strict=True
    ):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 2  # byte-pair encoding
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    path.write_bytes(model.SerializeToString())


def convert_with_any_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let llama.cpp's converter take the toys' byte-level tokenizer, which is none of those that it knows by a hash."""
    script = base_converter.find_script()
    shim = folder / "llama_cpp" / script.name
    shim.parent.mkdir()
    for path in script.parent.iterdir():
        if path != script:
            (shim.parent / path.name).symlink_to(path)
    shim.write_text(
        "import runpy\n"
        "from conversion.base import TextModel\n"
        "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(base_converter, "find_script", lambda: shim)


def write_tokenizer(folder: Path, model_type: str) -> None:
    """The tokenizer that a model type's converter takes."""
    if model_type in BYTE_LEVEL:
        toy_tokenizer(merges=[("t", "h")]).save_pretrained(folder)  # llama.cpp wants one at least
    else:
        write_sentencepiece(folder / "tokenizer.model")


def widen(model: Any, init: Any = "normal", **changes: Any) -> OtterModel:
    """Different sizes in the layers, random weights everywhere: zeros would hide mistakes."""
    base = geometry(model)
    sizes: dict[str, Any] = {
        "width": 32,
        "n_head_kv": tuple(1 + i % 2 for i in range(base.n_layer)),
        "n_ff": tuple(32 if i != 1 else 8 for i in range(base.n_layer)),
        "heads": HEADS,
        "state_offset": 3,
        **changes,
    }
    otter = insert(model, InsertionConfig(base, **sizes), init, init_std=0.05)
    if init != "copy":
        with torch.no_grad():
            for name, parameter in otter.inserted_parameters().items():
                torch.manual_seed(len(name))
                parameter.add_(0.03 * torch.randn_like(parameter))
    return otter


def write_widened(folder: Path, otter: OtterModel, base: Path, outtype: str = "f32") -> Path:
    """The sidecar of a widened toy."""
    otter.save_pretrained(folder / "adapter", force=True)
    with BaseFiles.open(base) as files:
        convert_adapter(folder / "adapter", folder / "toy.otter.gguf", files, outtype=outtype, force=True)
    return folder / "toy.otter.gguf"
