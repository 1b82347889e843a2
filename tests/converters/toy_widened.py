"""The toy base and a toy adapter as one widened checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from otter_gguf.config import InsertionConfig

from ..gguf.toy_files import Float32, adapter_tensors, base_tensors, insertion, save_safetensors

CONFIG = insertion(n_head_kv=(1, 1), n_ff=(32, 32), state_source="table")


def widen(base: dict[str, Float32], adapter: dict[str, Float32], config: InsertionConfig) -> dict[str, Float32]:
    """Put base and adapter together by the picture in docs/architecture.md: [[W, 0], [inserted]]."""
    widened = {name: values for name, values in adapter.items() if name.startswith("heads.")}
    d, e = config.base.n_embd, config.width
    for name, values in base.items():
        inserted = adapter.get(name.removesuffix("weight") + "otter.weight")
        if values.ndim == 1:
            widened[name] = np.concatenate([values, np.ones(e, np.float32) if inserted is None else inserted])
        elif name == "model.embed_tokens.weight":
            assert inserted is not None
            widened[name] = np.concatenate([values, inserted], axis=1)
        else:
            reads_state = values.shape[1] == d and "o_proj" not in name and "down_proj" not in name
            columns = d + e if reads_state else values.shape[1]
            if inserted is None and ("o_proj" in name or "down_proj" in name):
                inserted = np.zeros((e, columns), np.float32)
            if inserted is not None:
                columns = inserted.shape[1]
            block = np.zeros((len(values) + (0 if inserted is None else len(inserted)), columns), np.float32)
            block[: len(values), : values.shape[1]] = values
            if inserted is not None:
                block[len(values) :] = inserted
            widened[name] = block
    return widened


def hf_config(config: InsertionConfig) -> dict[str, Any]:
    base = config.base
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": base.n_layer,
        "hidden_size": base.n_embd + config.width,
        "num_attention_heads": base.n_head + config.n_query_heads(0),
        "num_key_value_heads": base.n_head_kv + config.n_head_kv[0],
        "head_dim": base.head_dim,
        "intermediate_size": base.n_ff + config.n_ff[0],
        "vocab_size": base.n_vocab,
        "tie_word_embeddings": False,
        "otter": {"insertion": config.to_dict()},
    }


def write_widened(
    folder: Path,
    config: InsertionConfig = CONFIG,
    *,
    change: Callable[[dict[str, Float32]], object] = lambda tensors: None,
    dtype: str = "F32",
    **changes: Any,
) -> Path:
    """A widened checkpoint of the toy base, with its tensors changed by ``change`` and its config by ``changes``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = widen(base_tensors(), adapter_tensors(config), config)
    change(tensors)
    save_safetensors(folder / "model.safetensors", tensors, dtype)
    (folder / "config.json").write_text(json.dumps(hf_config(config) | changes))
    return folder
