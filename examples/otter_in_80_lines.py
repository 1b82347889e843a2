"""The method of Otter in one file: a reward beside every token, and the base's logits as they were.

A tiny frozen Llama is widened from channels h to [h, h']. Every matrix grows block-lower-triangularly, and one line of
the forward pass changes: the norm takes its statistic from h alone. So h never depends on h'. Only the inserted rows
are trained, with the Bradley-Terry loss on every prefix of two responses. Needs torch, nothing else; takes seconds:

    python examples/otter_in_80_lines.py

From `Config` to `train` there are about 80 lines of code. For a preference of your own, write another `pairs`. Tensors
are named as in Hugging Face models, and inserted ones as in the adapter checkpoints of otter_gguf, which computes the
same without storing or multiplying the zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, scaled_dot_product_attention, silu

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Config:
    vocab: int = 24  # V
    layers: int = 2  # L
    head: int = 8  # n, channels of a head
    group: int = 2  # g, query heads for each KV head
    width: int = 32  # d
    kv_heads: int = 2  # H_kv, beside H = g H_kv query heads
    inner: int = 64  # f
    new_width: int = 16  # e
    new_kv_heads: int = 1  # k'
    new_inner: int = 24  # f'


def shapes(c: Config, d: int, kv_heads: int, f: int) -> Shapes:
    """The shape of every norm and matrix in the layers of a Llama with these sizes."""
    kv, q = c.head * kv_heads, c.head * kv_heads * c.group
    layer: Shapes = {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
    layer |= {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
    layer |= {"self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    return {f"model.layers.{i}.{name}": s for i in range(c.layers) for name, s in layer.items()} | {"model.norm": (d,)}


def draw(shape: tuple[int, ...], std: float, seed: torch.Generator) -> Tensor:
    """Random matrices, and norm weights of 1."""
    return std * torch.randn(shape, generator=seed) if len(shape) == 2 else torch.ones(shape)


def new_base(c: Config) -> Weights:
    """The weights of a language model that is given and never written to: here a random one."""
    seed = torch.Generator().manual_seed(0)
    ends: Shapes = {"model.embed_tokens": (c.vocab, c.width), "lm_head": (c.vocab, c.width)}
    layers = shapes(c, c.width, c.kv_heads, c.inner)
    return {f"{name}.weight": draw(shape, 0.3, seed) for name, shape in (ends | layers).items()}


def new_insertion(c: Config) -> Weights:
    """The rows that a wider Llama has more than the base, and a reward head: all that is trained."""
    seed, base = torch.Generator().manual_seed(1), shapes(c, c.width, c.kv_heads, c.inner)
    wide = shapes(c, c.width + c.new_width, c.kv_heads + c.new_kv_heads, c.inner + c.new_inner)
    rows: Shapes = {name: (shape[0] - base[name][0], *shape[1:]) for name, shape in wide.items()}
    rows["heads.reward"] = (1, c.new_width)
    return {f"{name}.otter.weight": draw(shape, 0.15, seed).requires_grad_() for name, shape in rows.items()}


def widen(c: Config, base: Weights, inserted: Weights) -> Weights:
    """The weights of the wider Llama: base rows [W, 0] never read h', inserted rows [W_eo, W_ee] read everything."""
    wide = base | inserted
    for name, rows in inserted.items():
        if (w := base.get(original := name.replace(".otter", ""))) is not None:
            wide[original] = torch.cat([w if w.dim() == 1 else pad(w, (0, rows.shape[1] - w.shape[1])), rows])
    table = base["model.embed_tokens.weight"]  # h'_0 is a copy of e channels of h_0, and has no parameters
    return wide | {"model.embed_tokens.weight": torch.cat([table, table[:, : c.new_width]], dim=1)}


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, T, n): channel i turns with channel i + n/2."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(half) / half)  # (T, n/2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def forward(c: Config, w: Weights, tokens: Tensor, partial_norm: bool = True) -> Tensor:
    """Tokens (B, T) to final normed states [h, h'] (B, T, d + e); with the base's weights alone to h (B, T, d)."""

    def norm(name: str, x: Tensor) -> Tensor:
        seen = x[..., : c.width] if partial_norm else x  # the one-line change: the statistic of h for all of [h, h']
        return w[f"{name}.weight"] * x / (seen.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T

    x = w["model.embed_tokens.weight"][tokens]  # (B, T, d + e)
    for layer in (f"model.layers.{i}" for i in range(c.layers)):
        y = norm(f"{layer}.input_layernorm", x)
        q, k, v = (linear(f"{layer}.self_attn.{p}_proj", y).unflatten(-1, (-1, c.head)).transpose(1, 2) for p in "qkv")
        k, v = (z.repeat_interleave(c.group, dim=1) for z in (rotate(k), v))  # (B, H + g k', T, n), as q
        o = scaled_dot_product_attention(rotate(q), k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(f"{layer}.self_attn.o_proj", o)
        y = norm(f"{layer}.post_attention_layernorm", x)
        inner = silu(linear(f"{layer}.mlp.gate_proj", y)) * linear(f"{layer}.mlp.up_proj", y)  # (B, T, f + f')
        x = x + linear(f"{layer}.mlp.down_proj", inner)
    return norm("model.norm", x)


def logits(c: Config, w: Weights, state: Tensor) -> Tensor:
    """(B, T, V): the base's output projection reads h alone."""
    return state[..., : c.width] @ w["lm_head.weight"].T


def rewards(c: Config, w: Weights, state: Tensor) -> Tensor:
    """(B, T): the reward of the text that ends with each token, read from h'."""
    return (state[..., c.width :] @ w["heads.reward.otter.weight"].T).squeeze(-1)


PROMPT, RESPONSE = 4, 8  # tokens


def pairs(c: Config, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Chosen and rejected texts (B, T): from the prompt's last token a response counts up, or else down."""
    prompt = torch.randint(c.vocab, (count, PROMPT), generator=torch.Generator().manual_seed(seed))
    steps = torch.arange(1, RESPONSE + 1)
    chosen, rejected = ((prompt[:, -1:] + sign * steps) % c.vocab for sign in (1, -1))
    return torch.cat([prompt, chosen], dim=1), torch.cat([prompt, rejected], dim=1)


def lead(c: Config, w: Weights, chosen: Tensor, rejected: Tensor) -> Tensor:
    """(B, RESPONSE): by how much the chosen response is ahead after each token."""
    ahead, behind = (rewards(c, w, forward(c, w, texts))[:, PROMPT:] for texts in (chosen, rejected))
    return ahead - behind


def train(c: Config, base: Weights, inserted: Weights, steps: int = 80) -> list[float]:
    """Bradley-Terry on every prefix, -log sigmoid(r(x, y_w[:i]) - r(x, y_l[:i])); returns the loss of each step."""
    optimizer, losses = torch.optim.Adam(inserted.values(), lr=5e-3), []
    for step in range(steps):
        loss = -logsigmoid(lead(c, widen(c, base, inserted), *pairs(c, 32, seed=step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logit_change(c: Config, base: Weights, inserted: Weights, tokens: Tensor, partial_norm: bool = True) -> float:
    """The largest difference that the insertion makes to a logit of the base."""
    wide = widen(c, base, inserted)
    before = logits(c, base, forward(c, base, tokens))
    return float((logits(c, wide, forward(c, wide, tokens, partial_norm)) - before).abs().max())


def main() -> None:
    c = Config()
    base, inserted = new_base(c), new_insertion(c)
    chosen, rejected = pairs(c, 200, seed=-1)  # held out
    losses = train(c, base, inserted)
    for step in range(0, len(losses), 10):
        print(f"step {step:3}  loss {losses[step]:.3f}")

    change, ordinary = (logit_change(c, base, inserted, chosen, partial) for partial in (True, False))
    assert change < 1e-4 < ordinary, "only the partial norm leaves the base alone, up to rounding"
    print(f"largest change of a logit: {change:.1e} with the partial norm, {ordinary:.1e} with an ordinary one")

    wide = widen(c, base, inserted)
    with torch.no_grad():
        accuracy = (lead(c, wide, chosen, rejected) > 0).float().mean(dim=0)
        print("held-out accuracy after each token:", " ".join(f"{share:.0%}" for share in accuracy))
        for name, texts in (("chosen", chosen[:1]), ("rejected", rejected[:1])):
            of_tokens = zip(texts[0].tolist(), rewards(c, wide, forward(c, wide, texts))[0].tolist(), strict=True)
            print(f"{name:8}", " ".join(f"{token}({reward:+.1f})" for token, reward in of_tokens))


if __name__ == "__main__":
    main()
