"""Time and memory of a training step: an Otter insertion, a LoRA reward model, full fine-tuning.

    python benchmarks/training_speed.py                  # a base of 134 million parameters; some minutes on one core
    python benchmarks/training_speed.py --json --heads 4 --kv-heads 4 --hidden 256 --inner 512 --layers 2 --rounds 3

All train on the same batch with the same loss (Bradley-Terry at every response length) and the same optimizer, on bases
with the same random weights, in F32, without gradient checkpointing. Steps alternate, so that a busy moment of the
machine falls on all of them, and ratios are taken of neighbours. Memory is the peak of a process of its own, beyond
the base.
Needs Linux, the ``train`` extra and PEFT.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from otter_gguf.config import InsertionConfig
from otter_gguf.training import geometry, insert
from otter_gguf.training.losses import align_pairs, prefix_loss

MIB = 2**20
Step = Callable[[], None]


@dataclass(frozen=True)
class Sizes:
    """What is measured; every field is an option of the command line."""

    hidden: int = field(default=768, metadata={"help": "width of the base, d"})
    layers: int = field(default=12, metadata={"help": "layers"})
    heads: int = field(default=12, metadata={"help": "query heads"})
    kv_heads: int = field(default=12, metadata={"help": "KV heads"})
    inner: int = field(default=2048, metadata={"help": "FFN inner size, f"})
    vocabulary: int = field(default=32000, metadata={"help": "tokens of the vocabulary"})
    pairs: int = field(default=2, metadata={"help": "preference pairs of a batch"})
    prompt: int = field(default=32, metadata={"help": "tokens of a prompt"})
    response: int = field(default=96, metadata={"help": "tokens of a response"})
    share: int = field(default=16, metadata={"help": "width and inner size are inserted with a share of 1 / this"})
    rank: int = field(default=16, metadata={"help": "rank of LoRA, on all linear maps of the layers"})
    rounds: int = field(default=7, metadata={"help": "steps of each that are timed, after one that is not"})
    threads: int = field(default=1, metadata={"help": "threads of torch"})


# ---- the contestants -------------------------------------------------------------------------------------------


def make_base(sizes: Sizes) -> LlamaForCausalLM:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.prompt + sizes.response,
    )
    base: LlamaForCausalLM = LlamaForCausalLM(config).eval().requires_grad_(False)
    return base


@dataclass(frozen=True)
class Batch:
    """Preference pairs whose responses have all the same length."""

    tokens: Tensor
    """(2 pairs, prompt + response), chosen first."""
    start: Tensor
    """(pairs)"""
    length: Tensor
    """(2 pairs)"""

    @classmethod
    def random(cls, sizes: Sizes) -> Batch:
        """The same tokens at every call."""
        generator = torch.Generator().manual_seed(0)
        length = sizes.prompt + sizes.response
        tokens = torch.randint(sizes.vocabulary, (2 * sizes.pairs, length), generator=generator)
        return cls(tokens, torch.full((sizes.pairs,), sizes.prompt), torch.full((2 * sizes.pairs,), length))

    def loss(self, rewards: Tensor) -> Tensor:
        """Of rewards (2 pairs, tokens)."""
        return prefix_loss(align_pairs(rewards, self.start, self.length)).mean()


class RewardModel(nn.Module):
    """The usual reward model: a decoder with one scalar on its final state."""

    def __init__(self, decoder: nn.Module, hidden: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) -> rewards (batch, tokens)."""
        rewards: Tensor = self.head(self.decoder(input_ids=tokens, use_cache=False).last_hidden_state).squeeze(-1)
        return rewards


class Otter(nn.Module):
    """The insertion of ``otter_gguf.training``, with one KV head, initialised by copying."""

    def __init__(self, base: PreTrainedModel, sizes: Sizes) -> None:
        super().__init__()
        width, inner = max(1, sizes.hidden // sizes.share), max(1, sizes.inner // sizes.share)
        self.model = insert(base, InsertionConfig.uniform(geometry(base), width, n_head_kv=1, n_ff=inner))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) -> rewards (batch, tokens)."""
        return self.model.rewards(tokens).squeeze(-1)


def otter_model(base: LlamaForCausalLM, sizes: Sizes) -> nn.Module:
    """Widens the base in place."""
    return Otter(base, sizes)


def lora_model(base: LlamaForCausalLM, sizes: Sizes) -> nn.Module:
    """LoRA as PEFT makes it, without dropout."""
    config = peft.LoraConfig(r=sizes.rank, lora_alpha=2 * sizes.rank, target_modules="all-linear")
    return RewardModel(peft.get_peft_model(base.model, config), sizes.hidden)


def full_model(base: LlamaForCausalLM, sizes: Sizes) -> nn.Module:
    """Every weight of the decoder is trained."""
    return RewardModel(base.model.requires_grad_(True), sizes.hidden)


MODELS: dict[str, Callable[[LlamaForCausalLM, Sizes], nn.Module]] = {
    "otter": otter_model,
    "lora": lora_model,
    "full": full_model,
}


def training_step(model: nn.Module, batch: Batch) -> Step:
    """Forward, loss, backward and AdamW of what is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        loss = batch.loss(model(batch.tokens))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_forward(base: LlamaForCausalLM, batch: Batch) -> Step:
    """The base's decoder alone, for scale."""

    @torch.no_grad()
    def step() -> None:
        base.model(input_ids=batch.tokens, use_cache=False)

    return step


# ---- time ------------------------------------------------------------------------------------------------------


def make_steps(sizes: Sizes) -> dict[str, Step]:
    """Every contestant; frozen weights are in memory once."""
    base, batch = make_base(sizes), Batch.random(sizes)
    frozen = {id(parameter): parameter for parameter in base.parameters()}
    steps = {"forward": plain_forward(base, batch)}
    for name, make in MODELS.items():
        shared = {} if name == "full" else dict(frozen)
        steps[name] = training_step(make(copy.deepcopy(base, shared), sizes), batch)
    return steps


def time_steps(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, alternately; each round starts with another contestant."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round in range(-1, rounds):
        for index in range(len(names)):
            name = names[(index + round) % len(names)]
            begin = time.perf_counter()
            steps[name]()
            if round >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """Of neighbouring steps."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Paired by round."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        if len(ratios) == 1:
            return cls(ratios[0], (ratios[0], ratios[0]))
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, (low, high))


# ---- memory ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Of a training step, in MiB."""

    peak: float
    """Most that the process held at once beyond the base: trained weights, gradients, optimizer, activations."""
    saved: float
    """What autograd keeps for the backward pass, weights aside."""
    trained: int
    """Trained parameters, a number."""


def measure_memory(name: str, sizes: Sizes) -> Memory:
    """In a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name]
    command += [word for key, value in asdict(sizes).items() for word in (_flag(key), str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(done.stdout))


def memory_of(name: str, sizes: Sizes) -> Memory:
    """The child of :func:`measure_memory`; two steps, because the optimizer's state comes with the first."""
    base, batch = make_base(sizes), Batch.random(sizes)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status("VmRSS")
    model = MODELS[name](base, sizes)
    step = training_step(model, batch)
    step()
    step()
    peak = _status("VmHWM") - before
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Memory(peak, saved_bytes(model, batch) / MIB, trained)


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """Bytes of all storages that autograd keeps between forward and backward, parameters aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = batch.loss(model(batch.tokens))
    del loss
    return sum(kept.values())


def _status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, key
    return int(match[1]) / 1024


# ---- report ----------------------------------------------------------------------------------------------------


def measure(sizes: Sizes, memory: bool = True) -> dict[str, Any]:
    """Everything, as plain JSON types."""
    steps = make_steps(sizes)
    seconds = time_steps(steps, sizes.rounds)
    steps.clear()
    ratios = {
        f"{above}/{below}": Ratio.of(seconds[above], seconds[below])
        for below in ("forward", "lora")
        for above in ("forward", *MODELS)
        if above != below
    }
    return {
        "sizes": asdict(sizes),
        "base_parameters": make_base(sizes).num_parameters(),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "memory": {name: asdict(measure_memory(name, sizes)) for name in MODELS} if memory else {},
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| step | trained parameters | time / forward of the base | time / LoRA | peak MiB | kept for backward MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("otter", "lora", "full"):
        memory = result["memory"].get(name)
        cells = [f"{memory['trained']:,}" if memory else "-", _cell(result, f"{name}/forward")]
        cells.append("1" if name == "lora" else _cell(result, f"{name}/lora"))
        cells += [f"{memory['peak']:.0f}", f"{memory['saved']:.0f}"] if memory else ["-", "-"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any], ratio: str) -> str:
    low, high = result["ratios"][ratio]["quartiles"]
    return f"{result['ratios'][ratio]['median']:.2f} ({low:.2f} to {high:.2f})"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in fields(Sizes):
        help = f"{option.metadata['help']} (default: {option.default})"
        parser.add_argument(_flag(option.name), type=int, default=option.default, help=help)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    sizes = Sizes(**{option.name: getattr(args, option.name) for option in fields(Sizes)})
    torch.set_num_threads(sizes.threads)
    if args.memory_of:
        print(json.dumps(asdict(memory_of(args.memory_of, sizes))))
        return 0
    result = measure(sizes, memory=not args.no_memory)
    print(json.dumps(result, indent=1) if args.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
