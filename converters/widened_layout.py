"""What a widened checkpoint looks like: its sizes, and the blocks of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from otter_gguf import architectures
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import FileError, MismatchError, UnsupportedError

from .adapter import insertion_from
from .checkpoint import read_json

MARK = ".otter."
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


def read_widened_config(folder: Path) -> tuple[InsertionConfig, str]:
    """The insertion of a widened checkpoint and its base's name; ``config.json`` must have the widened sizes."""
    path = folder / "config.json"
    data = read_json(path)
    otter = data.get("otter")
    config = insertion_from(otter.get("insertion") if isinstance(otter, dict) else None, path)
    known = architectures.of_gguf(config.base.architecture)
    classes = [architecture.model_class for architecture in known]
    if not set(data.get("architectures") or ()) & set(classes):
        wanted = " or ".join(classes)
        raise UnsupportedError(f"{path}: architectures is {data.get('architectures')}, expected {wanted}")
    for architecture in known:
        if architecture.not_widened and architecture.model_class in data["architectures"]:
            name, reason = architecture.model_class, architecture.not_widened
            raise UnsupportedError(f"{path}: there is no widened checkpoint of a {name}: {reason}")
    if data.get("attention_bias") or data.get("mlp_bias"):
        raise UnsupportedError(f"{path}: a widened checkpoint with biases is not supported")
    if len(set(config.n_head_kv)) > 1 or len(set(config.n_ff)) > 1:
        raise UnsupportedError(f"{path}: a widened checkpoint has the same inserted sizes in every layer")
    if config.width and config.state_source != "table":
        raise FileError(f"{path}: state source is {config.state_source}, but a widened embedding is a table")
    differences = [
        f"{key} is {data.get(key)}, expected {size}" for key, size in _sizes(config).items() if data.get(key) != size
    ]
    if differences:
        raise MismatchError(f"{path}: sizes do not fit its insertion: {'; '.join(differences)}")
    return config, str(otter.get("base_model_name_or_path") or "") if isinstance(otter, dict) else ""


def _sizes(config: InsertionConfig) -> dict[str, int]:
    """Entries of ``config.json`` that widening changes."""
    base = config.base
    return {
        "num_hidden_layers": base.n_layer,
        "hidden_size": base.n_embd + config.width,
        "num_attention_heads": base.n_head + config.n_query_heads(0),
        "num_key_value_heads": base.n_head_kv + config.n_head_kv[0],
        "head_dim": base.head_dim,
        "intermediate_size": base.n_ff + config.n_ff[0],
        "vocab_size": base.n_vocab,
    }


@dataclass(frozen=True)
class Widened:
    """A tensor of a widened checkpoint and the blocks in it."""

    shape: tuple[int, ...]
    """(rows, columns), or (columns) of a vector."""
    original: tuple[int, ...]
    """Shape of the base's block, at the upper left."""
    zero_right: bool = True
    """The original rows must be zero in the added columns."""
    zero_below: bool = False
    """The added rows must be zero: nothing is inserted here, and h' passes through."""


def widened_tensors(config: InsertionConfig) -> dict[str, Widened]:
    """Every tensor that a widened checkpoint shares with its base, by Hugging Face name."""
    base, wide = config.base, config.base.n_embd + config.width
    n, d, f = base.head_dim, base.n_embd, base.n_ff
    n_kv, n_ff = config.n_head_kv[0], config.n_ff[0]
    query, wide_query = n * base.n_head, n * (base.n_head + config.n_query_heads(0))
    key, wide_key = n * base.n_head_kv, n * (base.n_head_kv + n_kv)
    norm = Widened((wide,), (d,), zero_right=False)
    architecture = architectures.of_gguf(base.architecture)[0]
    attention, ffn = architecture.attention, architecture.ffn
    norms = tuple(filter(None, (attention.norm, attention.post_norm, ffn.norm, ffn.post_norm)))
    head_norms = [Widened((n,), (n,))] * 2
    if attention.joint_head_norms:
        sizes = ((wide_query, query), (wide_key, key))
        head_norms = [Widened((whole,), (original,), zero_right=False) for whole, original in sizes]
    tensors = {EMBEDDING: Widened((base.n_vocab, wide), (base.n_vocab, d), zero_right=False)}
    for layer in range(base.n_layer):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": Widened((wide_query, wide), (query, d)),
            f"{prefix}.self_attn.k_proj.weight": Widened((wide_key, wide), (key, d)),
            f"{prefix}.self_attn.v_proj.weight": Widened((wide_key, wide), (key, d)),
            f"{prefix}.self_attn.o_proj.weight": Widened((wide, wide_query), (d, query), zero_below=not n_kv),
            f"{prefix}.mlp.gate_proj.weight": Widened((f + n_ff, wide), (f, d)),
            f"{prefix}.mlp.up_proj.weight": Widened((f + n_ff, wide), (f, d)),
            f"{prefix}.mlp.down_proj.weight": Widened((wide, f + n_ff), (d, f), zero_below=not n_ff),
        }
        if attention.input_bias:
            tensors |= {
                f"{prefix}.self_attn.q_proj.bias": Widened((wide_query,), (query,)),
                f"{prefix}.self_attn.k_proj.bias": Widened((wide_key,), (key,)),
                f"{prefix}.self_attn.v_proj.bias": Widened((wide_key,), (key,)),
            }
        tensors |= {f"{prefix}.{path}.weight": norm for path in norms}
        tensors |= {
            f"{prefix}.{path}.weight": tensor for path, tensor in zip(attention.head_norms, head_norms, strict=False)
        }
    tensors["model.norm.weight"] = norm
    tensors[OUTPUT] = Widened((base.n_vocab, wide), (base.n_vocab, d))
    return tensors
