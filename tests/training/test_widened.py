"""The paper's form: an ordinary Llama of larger sizes that needs one changed line, its norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.training import geometry, insert
from tests.training.toy import toy_base, toy_otter, toy_tokenizer

TOKENS = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(3))
D = 32


def run_widened(folder: Path, *, partial: bool = True) -> tuple[Tensor, Tensor]:
    """Logits and final state of the exported checkpoint in transformers' own Llama."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()

    def partial_norm(self: Any, x: Tensor) -> Any:
        rms = x[..., :D].square().mean(-1, keepdim=True)  # the one line: [..., :D]
        return self.weight * (x * torch.rsqrt(rms + self.variance_epsilon))

    norm = type(model.model.norm)
    original, norm.forward = norm.forward, partial_norm if partial else norm.forward
    try:
        with torch.no_grad():
            return model(TOKENS).logits, model.model(TOKENS).last_hidden_state
    finally:
        norm.forward = original


def widenable(**changes: Any) -> Any:
    """Sizes that transformers accepts: 48 channels over 6 heads."""
    return toy_otter("normal", **{"width": 16, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"state_source": "table"}, {"n_ff": 0}, {"n_head_kv": 0}, {"n_head_kv": 3, "width": 8}]
)
@pytest.mark.parametrize("tied", [False, True])
def test_computes_the_same_in_an_ordinary_model(tmp_path: Path, changes: dict[str, Any], tied: bool) -> None:
    model = widenable(base=toy_base(tie_word_embeddings=tied), **changes)
    with torch.no_grad():
        output = model(TOKENS, output_hidden_states=True)
    model.export_widened(tmp_path)
    logits, state = run_widened(tmp_path)
    torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, output.hidden_states[-1], atol=1e-4, rtol=0)
    unchanged, _ = run_widened(tmp_path, partial=False)
    assert (unchanged - output.logits).abs().max() > 1e-2


def test_carries_insertion_heads_and_tokenizer(tmp_path: Path) -> None:
    model = widenable(heads=(HeadConfig("safety", ("a", "b")),))
    model.export_widened(tmp_path, tokenizer=toy_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    insertion = InsertionConfig.from_dict(config["otter"]["insertion"])
    assert insertion.state_source == "table"
    assert insertion.heads == model.insertion.heads
    assert insertion.base == geometry(toy_base())
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 60,
    }
    assert {name: config[name] for name in sizes} == sizes
    assert (tmp_path / "tokenizer.json").exists()
    tensors = load_file(tmp_path / "model.safetensors")
    inserted = model.inserted_parameters()
    for name in ("heads.safety.otter.weight", "heads.safety.otter.bias"):
        assert torch.equal(tensors[name], inserted[name])
    query = tensors["model.layers.0.self_attn.q_proj.weight"]
    base = toy_base().state_dict()
    assert torch.equal(query[:32, :D], base["model.layers.0.self_attn.q_proj.weight"])
    assert not query[:32, D:].any()
    assert torch.equal(query[32:], inserted["model.layers.0.self_attn.q_proj.otter.weight"])
    assert not tensors["lm_head.weight"][:, D:].any()


def test_is_written_in_the_bases_type_unless_told(tmp_path: Path) -> None:
    model = widenable(base=toy_base().to(torch.bfloat16))
    model.export_widened(tmp_path / "half")
    model.export_widened(tmp_path / "full", dtype=torch.float32)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    assert LlamaForCausalLM.from_pretrained(tmp_path / "full", dtype="auto").dtype == torch.float32


def test_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = widenable()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    model.export_widened(tmp_path)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refuses_what_larger_sizes_cannot_say(tmp_path: Path) -> None:
    base = toy_base()
    uneven = insert(base, InsertionConfig(geometry(base), 8, (1, 0, 1), (4, 4, 4)))
    with pytest.raises(ConfigError, match="the same sizes in every layer"):
        uneven.export_widened(tmp_path)
    with pytest.raises(ConfigError, match="needs an inserted width"):
        toy_otter(width=0, n_head_kv=0, n_ff=0, heads=(HeadConfig(input="base"),)).export_widened(tmp_path)
    with pytest.raises(ConfigError, match="a multiple of its heads: 40 with 6; choose another width"):
        widenable(width=8).export_widened(tmp_path)
    assert not list(tmp_path.iterdir())


def test_refuses_to_overwrite_a_checkpoint(tmp_path: Path) -> None:
    toy_base().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileError, match="holds a checkpoint already"):
        widenable().export_widened(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
