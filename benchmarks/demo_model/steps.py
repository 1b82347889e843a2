"""The steps of building the demo model: each takes the results of those before it from a folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.base import convert_base

from benchmarks.demo_model.base import make_batches, train_base
from benchmarks.demo_model.insertion import train_insertion
from benchmarks.demo_model.stories import corpus, preference_pairs
from benchmarks.demo_model.tokenizer import train_tokenizer
from otter_gguf import _native
from otter_gguf.adapter_format import TENSORS_NAME
from otter_gguf.demo.assets import NAME, DemoFiles
from otter_gguf.gguf.atomic import atomic_path
from otter_gguf.gguf.base import BaseFiles

BASE_SEED, PAIR_SEED, PROMPT_SEED, UNSEEN_SEED = 20241, 20242, 20243, 20244
TOKENIZER_STORIES = 8000
N_PROMPTS, N_UNSEEN_PAIRS = 256, 100


def build_base(folder: Path, stories: int) -> None:
    """Tokenizer and base model as a Hugging Face folder."""
    texts = [story.text for story in corpus(BASE_SEED, stories)]
    tokenizer = train_tokenizer(texts[:TOKENIZER_STORIES], folder)
    loss = train_base(make_batches(texts, tokenizer, BASE_SEED), tokenizer, folder, BASE_SEED)
    print(f"base: {stories} stories, final loss {loss:.3f} nats a token", file=sys.stderr)


def quantize_base(folder: Path, base: Path) -> None:
    """The Hugging Face folder as GGUF: llama.cpp's converter to F16, its quantizer to Q8_0."""
    f16 = base.with_name("base-f16.gguf")
    convert_base(folder, f16, outtype="f16", force=True)
    with atomic_path(base, inputs=[f16], force=True) as temporary:
        _native.model_quantize(str(f16), str(temporary), "Q8_0", 1)


def build_adapter(base: Path, pairs: int, adapter: Path) -> None:
    """The insertion, fitted to the GGUF base, from pairs in the words of group A alone."""
    train_insertion(base, list(preference_pairs(PAIR_SEED, pairs, "A")), adapter, PAIR_SEED)


def install(base: Path, adapter: Path, files: DemoFiles, stories: int) -> None:
    """Convert and write what the package ships; a base that lies there already is left alone."""
    files.base.parent.mkdir(parents=True, exist_ok=True)
    if not (files.base.exists() and base.samefile(files.base)):
        shutil.copyfile(base, files.base)
    shutil.copytree(adapter, files.adapter, dirs_exist_ok=True)
    with BaseFiles.open(files.base) as opened:
        convert_adapter(files.adapter, files.sidecar, opened, outtype="q8_0", name=NAME, force=True)
    unseen_pairs = list(preference_pairs(UNSEEN_SEED, N_UNSEEN_PAIRS, "B"))
    prompts = {"prompts": draw_prompts(stories), "unseen_pairs": unseen_pairs}
    files.prompts.write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")


def draw_prompts(stories: int) -> list[str]:
    """Story beginnings of other stories than the base has seen."""
    seen = {story.prompt for story in corpus(BASE_SEED, stories)}
    fresh = (story.prompt for story in corpus(PROMPT_SEED, 2 * N_PROMPTS))
    return list(dict.fromkeys(prompt for prompt in fresh if prompt not in seen))[:N_PROMPTS]


def build(work: Path, output: Path, stories: int, pairs: int, base: Path | None = None) -> None:
    """All steps; base and adapter are kept in ``work`` and not made anew when they are there.

    Args:
        base: a GGUF base made before from as many stories, to be used instead of a new one.
    """
    folder, adapter = work / "base", work / "adapter"
    if base is None:
        base = work / "base.Q8_0.gguf"
        if not (folder / "model.safetensors").exists():
            build_base(folder, stories)
        if not base.exists():
            quantize_base(folder, base)
    if not (adapter / TENSORS_NAME).exists():
        build_adapter(base, pairs, adapter)
    install(base, adapter, DemoFiles.in_folder(output), stories)
