"""Training of the demo's insertion on preference pairs, with the package's own API.

The head is bounded by tanh: -1 surely unkind, +1 surely kind. Bradley-Terry alone lets rewards grow with the text, so
that the few tokens that decide a story weigh little beside the many that follow from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.training import geometry, insert
from otter_gguf.training.data import tokenise_rows
from otter_gguf.training.trainer import OtterTrainer, TrainConfig

WIDTH, HEADS_KV, INNER = 32, 1, 64
BATCH, RATE = 16, 2e-3
TRAINED_SCALE = 4.0  # lets a pair's margin reach 8 while it is trained; the checkpoint has 1


def train_insertion(base: Path, pairs: Sequence[dict[str, str]], adapter: Path, seed: int) -> None:
    """One pass over the pairs; writes the adapter checkpoint, its rewards between -1 and 1."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    heads = (HeadConfig(activation="tanh", scale=(TRAINED_SCALE,)),)
    config = InsertionConfig.uniform(geometry(model), width=WIDTH, n_head_kv=HEADS_KV, n_ff=INNER, heads=heads)
    otter = insert(model, config, init="copy", seed=seed)
    arguments = TrainConfig(
        output_dir=str(adapter.with_name("insertion-run")),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        save_strategy="no",
        seed=seed,
        use_cpu=True,
    )
    OtterTrainer(otter, arguments, tokenise_rows(pairs, tokenizer)).train()
    otter.insertion = _rescaled(otter.insertion, 1.0)
    # Where the base lies on the machine that built it is nobody's business, and differs from build to build.
    otter.config._name_or_path = "otter-gguf demo base"
    otter.save_pretrained(adapter, force=True)


def _rescaled(config: InsertionConfig, scale: float) -> InsertionConfig:
    """The same insertion with another scale of its head."""
    head = dataclasses.replace(config.heads[0], scale=(scale,))
    return dataclasses.replace(config, heads=(head,))
