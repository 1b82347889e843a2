"""Training of the demo's insertion on preference pairs, with the package's own API: a value head and a vocabulary head.

Both heads are bounded by tanh: -1 surely unkind, +1 surely kind. Bradley-Terry alone lets rewards grow with the text,
so that the few tokens that decide a story weigh little beside the many that follow from them. The vocabulary head
learns the rewards of next tokens from the value head, in the same run (:class:`.Distillation`).

The base is the quantized file that is shipped, dequantised: rewards are fitted to the weights that will run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.heads import HeadInput
from otter_gguf.training import OtterModel, geometry, insert
from otter_gguf.training.base import load_base, load_tokenizer
from otter_gguf.training.data import RewardDataset, tokenise_rows
from otter_gguf.training.distillation import Distillation
from otter_gguf.training.trainer import OtterTrainer, TrainConfig

BASE_NAME = "otter-gguf demo base"
"""What the checkpoint calls its base: where that lies on the machine that built it differs from build to build."""
WIDTH, HEADS_KV, INNER, RANK = 32, 1, 64, 64
BATCH, RATE = 16, 2e-3
TRAINED_SCALE = 4.0  # lets a pair's margin reach 8 while it is trained; the checkpoint has 1


def train_insertion(base: Path, pairs: Sequence[dict[str, str]], adapter: Path, seed: int) -> None:
    """One pass over the pairs; writes the adapter checkpoint, rewards and scores between -1 and 1.

    Args:
        base: GGUF file.
    """
    model = fresh_insertion(load_base(base), seed)
    train_heads(model, tokenise_rows(pairs, load_tokenizer(base)), Distillation(), RATE, seed)
    model.insertion = rescaled(model.insertion, 1.0)
    model.config._name_or_path = BASE_NAME
    model.save_pretrained(adapter, force=True)


def fresh_insertion(base: PreTrainedModel, seed: int, rank: int = RANK, input: HeadInput = "both") -> OtterModel:
    """An insertion with both heads, at the scale that they are trained with.

    Args:
        rank, input: of the vocabulary head.
    """
    reward = HeadConfig(activation="tanh", scale=(TRAINED_SCALE,))
    scores = HeadConfig("next", reward.labels, input, "tanh", (TRAINED_SCALE,), kind="vocabulary", rank=rank)
    config = InsertionConfig.uniform(
        geometry(base), width=WIDTH, n_head_kv=HEADS_KV, n_ff=INNER, heads=(reward, scores)
    )
    return insert(base, config, init="copy", seed=seed)


def train_heads(model: OtterModel, data: RewardDataset, distillation: Distillation, rate: float, seed: int) -> None:
    """One pass over the pairs by both losses; nothing is written.

    Args:
        rate: peak learning rate.
    """
    with TemporaryDirectory() as folder:
        arguments = TrainConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            save_strategy="no",
            seed=seed,
            use_cpu=True,
            report_to=[],
        )
        OtterTrainer(model, arguments, data, extra_losses=[distillation]).train()


def rescaled(config: InsertionConfig, scale: float) -> InsertionConfig:
    """The same insertion with another scale of all its heads: scores stay in the unit of the reward."""
    heads = tuple(dataclasses.replace(head, scale=(scale,) * len(head.scale)) for head in config.heads)
    return dataclasses.replace(config, heads=heads)
