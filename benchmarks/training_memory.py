"""The estimate of a training run's memory beside what runs need: the table of docs/training.md.

    python -m benchmarks.training_memory               # about 10 minutes on two cores, 6 GB
    python -m benchmarks.training_memory --only 0,3    # some of the settings

Each setting is a process of its own, which estimates as ``otter-gguf train`` does and then trains for three steps, on a
Llama with random weights and pairs that fill every batch. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Setting:
    """A base, an insertion and a batch."""

    hidden: int = 576
    inner: int = 1536
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    vocabulary: int = 49152
    width: int = 64
    n_ff: int = 256
    pairs: int = 8
    tokens: int = 384
    recompute: bool = False
    bf16: bool = False
    """Mixed precision."""
    bf16_base: bool = False
    """The base's weights are in BF16."""
    eager: bool = False
    varied: bool = False
    """Texts are a quarter of ``tokens`` long to all of it, and steps are twelve instead of three."""
    full: bool = False
    """All of the base is trained."""
    rank: int = 0
    """Of a vocabulary head."""

    def __str__(self) -> str:
        """What differs from the first setting."""
        changed = [
            option.name.replace("_", " ") + (f" {value}" if value is not True else "")
            for option in fields(self)
            if (value := getattr(self, option.name)) != option.default
        ]
        return ", ".join(changed) or "SmolLM2-135M's sizes, 8 pairs of 384 tokens"


_SMALL: dict[str, Any] = {"hidden": 256, "inner": 768, "layers": 8, "heads": 4, "kv_heads": 4, "vocabulary": 8192}
_WIDE: dict[str, Any] = {"hidden": 1024, "inner": 4096, "layers": 6, "heads": 16, "kv_heads": 4, "vocabulary": 32000}

SETTINGS = (
    Setting(),
    Setting(recompute=True),
    Setting(pairs=2),
    Setting(pairs=2, tokens=1024),
    Setting(pairs=4, bf16=True),
    Setting(pairs=4, bf16_base=True),
    Setting(pairs=1, tokens=128),
    Setting(**_SMALL),
    Setting(**_SMALL, recompute=True),
    Setting(**_SMALL, tokens=64),
    Setting(**_SMALL, eager=True, pairs=4, tokens=512),
    Setting(**_SMALL, rank=16),
    Setting(**_SMALL, varied=True),
    Setting(**_SMALL, full=True, pairs=4),
    Setting(**_WIDE, pairs=4, width=0, n_ff=0),
    Setting(**_WIDE, pairs=4),
    Setting(**_WIDE, pairs=4, recompute=True),
    Setting(**_WIDE, pairs=4, recompute=True, varied=True),
    Setting(**_WIDE, pairs=4, width=256, n_ff=1024, tokens=256),
    Setting(**_WIDE, full=True, pairs=2),
)


def measure(setting: Setting, folder: str) -> dict[str, Any]:
    """Estimate and train; the child of :func:`measured`. Bytes."""
    import gc

    import torch

    from otter_gguf.training import OtterTrainer, TrainConfig, memory_estimate
    from otter_gguf.training.distillation import Distillation
    from otter_gguf.training.renamed import CHECKPOINTING

    torch.set_num_threads(1)
    model = make_model(setting)
    recompute: dict[str, Any] = {CHECKPOINTING: setting.recompute}
    config = TrainConfig(
        output_dir=folder,
        max_steps=12 if setting.varied else 3,
        per_device_train_batch_size=setting.pairs,
        bf16=setting.bf16,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **recompute,
    )
    data = make_data(setting)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: making the model is no part of the run
    losses = [Distillation()] if setting.rank else []
    estimate = memory_estimate(model, config, data, losses)
    OtterTrainer(model, config, data, extra_losses=losses).train()
    return {**estimate.terms, "estimate": estimate.total, "peak": peak()}


def make_model(setting: Setting) -> Any:
    """A Llama with random weights and an insertion, or one that is fine-tuned."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from otter_gguf.config import HeadConfig, InsertionConfig
    from otter_gguf.training import full_reward_model, geometry, insert

    torch.manual_seed(0)
    base: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=setting.vocabulary,
            hidden_size=setting.hidden,
            intermediate_size=setting.inner,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            num_key_value_heads=setting.kv_heads,
            max_position_embeddings=max(2048, setting.tokens),
            tie_word_embeddings=True,
        )
    )
    base.set_attn_implementation("eager" if setting.eager else "sdpa")
    base = base.to(torch.bfloat16 if setting.bf16_base else torch.float32)
    if setting.full:
        return full_reward_model(base)
    heads = [HeadConfig("reward", input="inserted" if setting.width else "base")]
    if setting.rank:
        heads.append(HeadConfig("next", ("reward",), "both", kind="vocabulary", rank=setting.rank))
    n_head_kv, n_ff = (1, setting.n_ff) if setting.width else (0, 0)
    return insert(base, InsertionConfig.uniform(geometry(base), setting.width, n_head_kv, n_ff, heads=tuple(heads)))


def make_data(setting: Setting) -> Any:
    """Pairs of random tokens."""
    import torch

    from otter_gguf.training import RewardDataset
    from otter_gguf.training.data import Pair

    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(setting.vocabulary, (6 * setting.pairs, setting.tokens), generator=draw).tolist()
    if setting.varied:
        lengths = torch.randint(setting.tokens // 4, setting.tokens + 1, (len(texts),), generator=draw).tolist()
        texts = [tokens[:length] for tokens, length in zip(texts, lengths, strict=True)]
        texts[0] += texts[1][: setting.tokens - len(texts[0])]
    return RewardDataset([Pair(chosen, rejected, 0) for chosen, rejected in zip(texts[::2], texts[1::2], strict=True)])


def peak() -> int:
    """The most that this process has held, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def measured(setting: Setting) -> dict[str, Any]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asdict(setting)), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(setting: Setting, found: dict[str, Any]) -> str:
    """A line of the table."""
    estimate, most = found["estimate"], found["peak"]
    return f"| {setting} | {estimate / 1e9:.2f} | {most / 1e9:.2f} | {estimate / most:.2f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of settings, from 0, separated by commas")
    parser.add_argument("--terms", action="store_true", help="print the terms of each estimate to stderr")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(measure(Setting(**json.loads(args.child[0])), args.child[1])))
        return 0
    chosen = [SETTINGS[int(number)] for number in args.only.split(",")] if args.only else SETTINGS
    print("| setting | estimate, GB | measured peak, GB | estimate / peak |\n|---|---|---|---|")
    for setting in chosen:
        found = measured(setting)
        print(row(setting, found), flush=True)
        if args.terms:
            print({name: round(value / 1e9, 2) for name, value in found.items()}, file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
