"""Training of the demo's insertion on preference pairs, with the package's own API, and its calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from otter_gguf.config import InsertionConfig
from otter_gguf.training import OtterModel, geometry, insert
from otter_gguf.training.data import PairDataset, collate_pairs, tokenise_pairs
from otter_gguf.training.trainer import OtterTrainer, TrainConfig

WIDTH, HEADS_KV, INNER = 32, 1, 64
BATCH, RATE = 16, 3e-3


def train_insertion(base: Path, pairs: Sequence[dict[str, str]], adapter: Path, seed: int) -> None:
    """One pass over the pairs; writes the adapter checkpoint, its rewards calibrated to mean 0 and deviation 1."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = InsertionConfig.uniform(geometry(model), width=WIDTH, n_head_kv=HEADS_KV, n_ff=INNER)
    otter = insert(model, config, init="copy", seed=seed)
    dataset = tokenise_pairs(pairs, tokenizer)
    arguments = TrainConfig(
        output_dir=str(adapter.with_name("insertion-run")),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        center_rewards_coefficient=0.01,
        save_strategy="no",
        seed=seed,
        use_cpu=True,
    )
    OtterTrainer(otter, arguments, dataset).train()
    calibrate(otter, dataset)
    # Where the base lies on the machine that built it is nobody's business, and differs from build to build.
    otter.config._name_or_path = "otter-gguf demo base"
    otter.save_pretrained(adapter, force=True)


@torch.no_grad()
def calibrate(otter: OtterModel, dataset: PairDataset) -> None:
    """Set the head's scale and shift so that rewards over all prefixes of the responses have mean 0 and deviation 1."""
    rewards = []
    for begin in range(0, len(dataset), 2 * BATCH):
        batch = collate_pairs(dataset.pairs[begin : begin + 2 * BATCH])
        places = torch.arange(batch["input_ids"].shape[1])
        starts = batch["start"].repeat(2)
        mask = (places >= starts[:, None]) & (places < batch["length"][:, None])
        rewards.append(otter.rewards(batch["input_ids"])[mask])
    deviation, mean = torch.std_mean(torch.cat(rewards))
    head = dataclasses.replace(
        otter.insertion.heads[0], scale=(1 / deviation.item(),), shift=(-mean.item() / deviation.item(),)
    )
    otter.insertion = dataclasses.replace(otter.insertion, heads=(head,))
