"""A toy Llama with a byte-level tokenizer, and preference pairs that it can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from otter_gguf.config import InsertionConfig
from otter_gguf.training import OtterModel, geometry, insert

torch.set_num_threads(1)

_SPECIAL = ["<s>", "</s>"]


def toy_base(seed: int = 0, **changes: Any) -> Any:
    """A LlamaForCausalLM: three layers, width 32, four heads in two groups; weights so large that all parts matter."""
    sizes: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


def toy_otter(init: Any = "copy", base: Any = None, **changes: Any) -> OtterModel:
    """Width 8 at channel 3, one KV head, inner size 12."""
    model = base if base is not None else toy_base()
    sizes: dict[str, Any] = {"width": 8, "n_head_kv": 1, "n_ff": 12, "state_offset": 3, **changes}
    return insert(model, InsertionConfig.uniform(geometry(model), **sizes), init, init_std=0.3)


def toy_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, and one a merge; begin-of-text before every text."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_SPECIAL, *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def toy_folder(path: Path, **changes: Any) -> Path:
    """The toy base and its tokenizer as a Hugging Face folder."""
    toy_base(**changes).save_pretrained(path)
    toy_tokenizer().save_pretrained(path)
    return path


def toy_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Chosen responses speak of light, rejected ones of mud."""
    draw = random.Random(seed)

    def response(words: list[str]) -> str:
        return "".join(f" {draw.choice(words)}" for _ in range(draw.randint(1, 4)))

    return [
        {
            "prompt": f"{draw.choice('abc')}:",
            "chosen": response(["sun", "day", "sky"]),
            "rejected": response(["mud", "fog", "rot"]),
        }
        for _ in range(count)
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
