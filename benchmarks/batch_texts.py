"""How often a prompt's text depends on whether it runs in a batch: the figures of docs/python-api.md.

    python benchmarks/batch_texts.py                   # some minutes on one core

Kernels round by the shape of the batch, so a choice that hangs on the last bits may turn. The demo's prompts, 48 tokens
each, in batches of 8 and one by one, with the same seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from otter_gguf import ARGS, Otter
from otter_gguf.demo import demo_files

TOKENS, BATCH = 48, 8
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "temperature 0": (200, {"temperature": 0}),
    "temperature 0.8": (200, {"temperature": 0.8}),
    "temperature 0, ARGS(1.5)": (80, {"temperature": 0, "guidance": ARGS(1.5)}),
}
"""Prompts, and how their texts are chosen."""


def texts(llm: Otter, prompts: list[str], size: int, how: dict[str, Any]) -> list[str]:
    """One text of each prompt, in batches of this size."""
    made = []
    for first in tqdm(range(0, len(prompts), size), f"Batches of {size}", disable=None):
        out = llm.create_completion(prompts[first : first + size], max_tokens=TOKENS, seed=1, **how)
        made += [choice["text"] for choice in out["choices"]]
    return made


def main() -> int:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=2048, n_threads=1, n_seq_max=10 * BATCH) as llm:
        for name, (count, how) in WAYS.items():
            prompts = files.load_prompts()[:count]
            together = texts(llm, prompts, BATCH, how)
            alone = texts(llm, prompts, 1, how)
            differing = sum(a != b for a, b in zip(together, alone, strict=True))
            print(f"{name}: {differing} of {count} texts differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
