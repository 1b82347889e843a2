"""Train rewards on preferences in TRL's columns, and decode with them: from a `datasets.Dataset` to guided text.

Eighty pairs of stories ("prompt", "chosen", "rejected") teach a fresh insertion in the demo's base to prefer kindness:
insert, train, calibrate, write the adapter, convert it to a sidecar GGUF, and run that with llama.cpp. Needs the
extra `train` (torch, transformers, datasets) and half a minute on one core:

    python examples/train_on_trl_data.py -o kind
    python examples/train_on_trl_data.py -o kind --data pairs.jsonl --base base.F16.gguf -p "How do I learn to swim?"

`--data` is a file of JSON lines or Parquet with these columns. Any other `Dataset` works likewise, such as
`load_dataset("trl-lib/ultrafeedback_binarized", split="train")`; lists of chat messages go through the chat template.
`--base` is a GGUF file that transformers can read; docs/tutorial.md starts from a Hugging Face folder instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, load_dataset
from otter_gguf.converters.adapter import convert_adapter

from otter_gguf import ARGS, Otter
from otter_gguf.config import InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.training import OtterTrainer, TrainConfig, calibrate, geometry, insert, tokenise_rows
from otter_gguf.training.base import load_base, load_tokenizer

PROMPT = (
    "Once there was a young rabbit named Leo. One windy afternoon, Leo was at the forest. "
    '"I lost my way," said Ivy the hedgehog. It was getting dark.'
)


def demo_preferences() -> Dataset:
    """A hundred pairs of story continuations in TRL's columns: a kind one is chosen, an unkind one rejected."""
    return Dataset.from_list([asdict(pair) for pair in demo_files().load_pairs()])


def train(base: Path, preferences: Dataset, folder: Path, epochs: float = 2) -> dict[str, float]:
    """Write the adapter to a folder; returns the figures of the fifth of the pairs that is held out."""
    model = load_base(base)
    tokenizer = load_tokenizer(model)
    otter = insert(model, InsertionConfig.uniform(geometry(model), width=32, n_head_kv=1, n_ff=64))
    otter.print_trainable_parameters()

    parts = preferences.train_test_split(test_size=0.2, seed=0)
    training, held_out = (tokenise_rows(parts[name], tokenizer) for name in ("train", "test"))
    arguments = TrainConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    )
    trainer = OtterTrainer(otter, arguments, training, held_out)
    trainer.train()
    figures = trainer.evaluate()
    calibrate(otter, training)  # mean 0 and deviation 1, so that a weight of guidance means the same for any model
    trainer.save_model()
    return figures


def convert(folder: Path, base: Path, sidecar: Path) -> None:
    """Write the sidecar; it fits every quantization of the base."""
    with BaseFiles.open(base) as files:
        convert_adapter(folder, sidecar, files, force=True)


def decode(base: Path, sidecar: Path, prompt: str, weight: float = 2.0) -> dict[str, tuple[str, float]]:
    """A plain and a guided continuation, each with its reward."""
    with Otter(base, otter=sidecar, n_ctx=512, n_threads=1) as llm:
        found = {}
        for way, policy in (("plain", None), ("guided", ARGS(weight))):
            choice = llm.create_completion(prompt, max_tokens=40, temperature=0, guidance=policy)["choices"][0]
            assert choice["rewards"] is not None
            found[way] = (choice["text"].strip(), choice["rewards"]["reward"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the adapter and its sidecar")
    parser.add_argument("--data", help="JSON lines or Parquet with prompt, chosen, rejected (default: the demo's)")
    parser.add_argument("--base", type=Path, default=demo_files().base, help="GGUF (default: the demo's base)")
    parser.add_argument("-p", "--prompt", default=PROMPT, help="text to continue")
    parser.add_argument("--epochs", type=float, default=2, help="passes over the pairs (default: 2)")
    args = parser.parse_args(arguments)
    if args.data:
        kind = "parquet" if args.data.endswith(".parquet") else "json"
        preferences = load_dataset(kind, data_files=args.data, split="train")
    else:
        preferences = demo_preferences()

    figures = train(args.base, preferences, args.output, args.epochs)
    print(f"held out: accuracy {figures['eval_accuracy']:.0%}, of prefixes {figures['eval_prefix_accuracy']:.0%}")
    sidecar = args.output / "adapter.otter.gguf"
    convert(args.output, args.base, sidecar)
    print(f"wrote {sidecar}, {sidecar.stat().st_size / 1024:.0f} KiB")
    for way, (text, reward) in decode(args.base, sidecar, args.prompt).items():
        print(f"{way}: reward {reward:+.2f}\n   {text}")


if __name__ == "__main__":
    main()
