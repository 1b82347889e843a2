"""Training of the demo's base model: a small Llama on packed stories, float32, one core, deterministic.

Matrices inside the layers learn by Muon (Jordan et al. 2024, as torch ships it), embedding and norms by AdamW: at this
size Muon needs about half the tokens that AdamW alone needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

WINDOW = 256  # tokens a training sequence: about three stories
BATCH = 8
WARMUP = 50
MUON_RATE, ADAM_RATE = 0.025, 0.006


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


def pack(texts: Iterable[str], tokenizer: LlamaTokenizer) -> torch.Tensor:
    """Windows of token ids (n, WINDOW + 1) from the stream ``<s> story </s> <s> story </s> …``."""
    eos = tokenizer.eos_token_id
    stream = [token for ids in tokenizer(list(texts)).input_ids for token in (*ids, eos)]
    n_windows = (len(stream) - 1) // WINDOW
    tokens = torch.tensor(stream[: n_windows * WINDOW + 1])
    return tokens.unfold(0, WINDOW + 1, WINDOW)


def train_base(windows: torch.Tensor, tokenizer: LlamaTokenizer, folder: Path, seed: int) -> float:
    """One pass over the windows; saves the model beside the tokenizer and returns the mean loss of the last tenth."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(geometry(tokenizer))
    optimizers = _optimizers(model)
    batches = torch.split(windows[torch.randperm(len(windows))], BATCH)
    losses: list[float] = []
    for step, batch in enumerate(progress := tqdm(batches, desc="base", unit="step")):
        rate = _rate(step, len(batches))
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    model.save_pretrained(folder)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _optimizers(model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers with their peak learning rates."""
    layers = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        (torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), MUON_RATE),
        (torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0), ADAM_RATE),
    ]


def _rate(step: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP)))
