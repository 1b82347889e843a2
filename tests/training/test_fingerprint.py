"""The fingerprint of a base: what it is the same for, and what it tells apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from otter_gguf.adapter_format import AdapterRecord
from otter_gguf.training import geometry
from otter_gguf.training.fingerprint import base_fingerprint
from tests.training.toy import toy_base, toy_otter


def fingerprint(model: Any) -> str:
    return base_fingerprint(model, geometry(model))


def half_norms(model: Any) -> Any:
    """The model with norms that have at most eight significant bits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(parameter.to(torch.bfloat16))
    return model


def test_is_what_the_docstring_says() -> None:
    model = toy_base()
    digest = hashlib.sha256(b"otter-base-1\n")
    digest.update(json.dumps(geometry(model).to_dict(), sort_keys=True).encode() + b"\n")
    names = [f"model.layers.{i}.{norm}" for i in range(3) for norm in ("input_layernorm", "post_attention_layernorm")]
    for name in [*names, "model.norm"]:
        weight = model.get_submodule(name).weight.detach()
        digest.update(f"{name}.weight\0{len(weight)}\0".encode() + weight.numpy().astype("<f4").tobytes())
    assert fingerprint(model) == digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_that_hold_the_norms_give_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    model = half_norms(toy_base())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert next(loaded.parameters()).dtype == dtype
    assert fingerprint(loaded) == fingerprint(model)
    assert fingerprint(half_norms(toy_base(seed=1))) != fingerprint(model)


def test_a_type_that_rounds_the_norms_gives_another() -> None:
    assert fingerprint(toy_base().to(torch.bfloat16)) != fingerprint(toy_base())


@pytest.mark.parametrize("changes", [{}, {"n_ff": 0}, {"n_head_kv": 0}])
def test_an_insertion_leaves_it_as_it_was(changes: dict[str, Any]) -> None:
    base = toy_base()
    expected = fingerprint(base)
    assert base_fingerprint(toy_otter("normal", base, **changes).base_model, geometry(base)) == expected


@pytest.mark.parametrize("name", ["model.norm", "model.layers.2.post_attention_layernorm"])
def test_a_changed_norm_changes_it(name: str) -> None:
    base = toy_base()
    expected = fingerprint(base)
    with torch.no_grad():
        base.get_submodule(name).weight[-1].mul_(1.0001)
    assert fingerprint(base) != expected


def test_other_sizes_change_it() -> None:
    model = toy_base()
    sizes = geometry(model)
    changed = {base_fingerprint(model, dataclasses.replace(sizes, n_vocab=sizes.n_vocab + i)) for i in range(3)}
    assert len(changed) == 3


def test_the_converter_reads_folders_with_it(tmp_path: Path) -> None:
    model = toy_otter("normal")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "otter_config.json").read_text())["base_fingerprint"] == fingerprint(model.base_model)
    assert AdapterRecord.read(tmp_path).insertion == model.insertion
