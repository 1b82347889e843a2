"""The toy base as a Hugging Face folder with its tokenizer, complete enough for llama.cpp's converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..gguf.toy_files import GEOMETRY, base_tensors, save_safetensors
from ..tokenizer_toys import sentencepiece_backend


def write_hf_model(folder: Path, dtype: str = "BF16", **changes: Any) -> Path:
    """A Llama folder of the toy base's weights; ``changes`` replace entries of its ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = GEOMETRY
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": geometry.n_layer,
        "hidden_size": geometry.n_embd,
        "num_attention_heads": geometry.n_head,
        "num_key_value_heads": geometry.n_head_kv,
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.n_ff,
        "vocab_size": geometry.n_vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_safetensors(folder / "model.safetensors", base_tensors(), dtype)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """SentencePiece-like: pieces with byte fallback, which llama.cpp's converter knows as the `llama` tokenizer."""
    sentencepiece_backend().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast", **settings}))


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)
