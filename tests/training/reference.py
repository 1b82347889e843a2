"""The method written out slowly: rewards from named tensors alone, in F64, without a line of otter_gguf.training.

Follows docs/method.md and the tensor table of docs/architecture.md; one sequence, no cache, loops over heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from otter_gguf.config import InsertionConfig


def reference(
    config: InsertionConfig, base: Mapping[str, Tensor], inserted: Mapping[str, Tensor], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Final normed state (T, d + e) and rewards (T, n_rewards); tensors by their Hugging Face names."""
    sizes, e = config.base, config.width
    w = {name: tensor.double() for name, tensor in {**base, **inserted}.items()}

    def matrix(name: str, x: Tensor) -> Tensor:
        """[[W, 0], [inserted rows]] x"""
        own = w[f"{name}.weight"]
        y = x[:, : own.shape[1]] @ own.T
        rows = w.get(f"{name}.otter.weight")
        return y if rows is None else torch.cat([y, x @ rows.T], dim=1)

    def norm(name: str, x: Tensor) -> Tensor:
        """w * [h, h'] / rms(h); h alone where nothing is inserted"""
        weight = torch.cat([w[f"{name}.weight"], w.get(f"{name}.otter.weight", torch.zeros(0))])
        rms = (x[:, : sizes.n_embd].square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
        return weight * x[:, : len(weight)] / rms

    def widen(y: Tensor) -> Tensor:
        return functional.pad(y, (0, sizes.n_embd + e - y.shape[1]))

    h = w["model.embed_tokens.weight"][tokens]
    if config.state_source == "table":
        x = torch.cat([h, w["model.embed_tokens.otter.weight"][tokens]], dim=1)
    else:
        x = torch.cat([h, h[:, config.state_offset : config.state_offset + e]], dim=1)
    for i in range(sizes.n_layer):
        layer = f"model.layers.{i}"
        y = norm(f"{layer}.input_layernorm", x)
        q, k, v = (matrix(f"{layer}.self_attn.{name}_proj", y) for name in "qkv")
        x = x + widen(matrix(f"{layer}.self_attn.o_proj", _attend(q, k, v, sizes.head_dim, sizes.group)))
        y = norm(f"{layer}.post_attention_layernorm", x)
        inner = functional.silu(matrix(f"{layer}.mlp.gate_proj", y)) * matrix(f"{layer}.mlp.up_proj", y)
        x = x + widen(matrix(f"{layer}.mlp.down_proj", inner))
    state = norm("model.norm", x)
    return state, torch.cat([_head(config, index, w, state) for index in range(len(config.heads))], dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, head_dim: int, group: int) -> Tensor:
    """Causal attention head by head; query head i reads KV head i // group."""
    outputs = []
    future = torch.ones(len(q), len(q)).triu(1).bool()
    for head in range(q.shape[1] // head_dim):
        own, shared = (slice(i * head_dim, (i + 1) * head_dim) for i in (head, head // group))
        scores = _rotate(q[:, own]) @ _rotate(k[:, shared]).T / head_dim**0.5
        outputs.append(scores.masked_fill(future, -torch.inf).softmax(dim=1) @ v[:, shared])
    return torch.cat(outputs, dim=1)


def _rotate(x: Tensor) -> Tensor:
    """Rotary embedding as Hugging Face pairs it: channel i with i + n/2."""
    half = x.shape[1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)


def _head(config: InsertionConfig, index: int, w: Mapping[str, Tensor], state: Tensor) -> Tensor:
    head, d = config.heads[index], config.base.n_embd
    read = {"inserted": state[:, d:], "base": state[:, :d], "both": state}[head.input]
    raw = read @ w[f"heads.{head.name}.otter.weight"].T + w[f"heads.{head.name}.otter.bias"]
    raw = {"none": raw, "sigmoid": raw.sigmoid(), "tanh": raw.tanh()}[head.activation]
    return raw * torch.tensor(head.scale) + torch.tensor(head.shift)
