"""Training of the demo's base model: a small Llama on single stories, float32, one core, deterministic.

What makes it learn in a quarter of an hour on one core (an earlier run without the first two, at higher rates,
still mixed up the characters after as many tokens):

- Attention starts as a copying device: value and output maps are each other's transpose, so that attending to a name
  makes that name more probable from the first step on (in the spirit of mimetic initialisation, arXiv 2305.09828).
- A sequence is one story, as at run time; other stories in the same window would only distract.
- Matrices inside the layers learn by Muon (Jordan et al. 2024, as torch ships it), embedding and norms by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

BATCH = 24  # stories
BUCKET = 16  # batches that are cut from stories sorted by length, so that little is padded
WARMUP = 30
MUON_RATE, ADAM_RATE = 0.006, 0.004
COPY_STRENGTH = 0.3
_IGNORED = -100  # cross_entropy's value for positions without a target


def geometry(tokenizer: LlamaTokenizer) -> LlamaConfig:
    """3.5 million parameters; every row length is a multiple of 256, so that every GGUF type fits."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )


def make_batches(texts: Iterable[str], tokenizer: LlamaTokenizer, seed: int) -> list[Tensor]:
    """Batches of ``<s> story </s>`` as ids (BATCH, longest), padded on the right with ``_IGNORED``; shuffled."""
    generator = torch.Generator().manual_seed(seed)
    stories = [torch.tensor([*ids, tokenizer.eos_token_id]) for ids in tokenizer(list(texts)).input_ids]
    batches = []
    for begin in range(0, len(stories), BATCH * BUCKET):
        bucket = sorted(stories[begin : begin + BATCH * BUCKET], key=len)
        for first in range(0, len(bucket), BATCH):
            rows = bucket[first : first + BATCH]
            batches.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_IGNORED))
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def train_base(batches: list[Tensor], tokenizer: LlamaTokenizer, folder: Path, seed: int) -> float:
    """One pass; saves the model beside the tokenizer and returns the mean loss of the last tenth, nats a token."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(geometry(tokenizer))
    start_by_copying(model)
    optimizers = _optimizers(model)
    losses: list[float] = []
    for step, batch in enumerate(progress := tqdm(batches, desc="base", unit="step")):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _rate(step, len(batches))
        logits = model(batch[:, :-1].clamp(min=0)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=_IGNORED)
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    model.save_pretrained(folder)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def start_by_copying(model: LlamaForCausalLM) -> None:
    """Each KV head reads a subspace of its own, and the output map of its query heads writes it back where it was."""
    for layer in model.model.layers:
        attention = layer.self_attn
        value, output = attention.v_proj.weight, attention.o_proj.weight
        rows, width = value.shape
        subspaces = torch.linalg.qr(torch.randn(width, width))[0][:rows]
        value.copy_(subspaces)
        per_kv_head = subspaces.view(-1, attention.head_dim, width)
        per_head = per_kv_head.repeat_interleave(attention.num_key_value_groups, dim=0)
        output.copy_(COPY_STRENGTH * per_head.flatten(0, 1).T)


def _optimizers(model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers with their peak learning rates."""
    layers = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        (torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), MUON_RATE),
        (torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0), ADAM_RATE),
    ]


def _rate(step: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to a twentieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP)))
