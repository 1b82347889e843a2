"""A toy base that llama.cpp runs, as a model of torch, a Hugging Face folder and an F32 GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.base import convert_base
from torch import Tensor

from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.loading import check_files
from otter_gguf.training import geometry
from tests.converters.toy_hf import write_tokenizer
from tests.gguf.toy_files import write_base
from tests.native.helpers import feed, open_base, open_otter
from tests.tokenizer_toys import sentencepiece_metadata
from tests.training.toy import toy_base

N_VOCAB = 288
TOKENS = torch.randint(3, N_VOCAB, (1, 19), generator=torch.Generator().manual_seed(4))
# A vocabulary of pieces that can be put together from letters, as a trained one's can: that of the folder.
WORDS = sentencepiece_metadata()


def native_base(seed: int = 0, **changes: Any) -> Any:
    """The toy base with the vocabulary of :func:`write_tokenizer`."""
    return toy_base(seed, **{"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, **changes})


def native_folder(path: Path, **changes: Any) -> Path:
    """It as a Hugging Face folder."""
    native_base(**changes).save_pretrained(path)
    write_tokenizer(path)
    return path


def write_gguf_base(path: Path, model: Any, *metadata: KeyValue, type: str = "F32") -> Path:
    """A toy base as GGUF, written without llama.cpp's converter, which takes seconds to start."""
    config = model.config
    entries = (
        KeyValue("llama.attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps),
        KeyValue("llama.rope.freq_base", "f32", config.rope_parameters["rope_theta"]),
        KeyValue("llama.attention.key_length", "u32", config.head_dim),
        KeyValue("llama.attention.value_length", "u32", config.head_dim),
        KeyValue("llama.vocab_size", "u32", config.vocab_size),
    )
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    tensors = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    return write_base(
        path, type=type, tensors=tensors, geometry=geometry(model), metadata=entries + metadata, leave_out=tied
    )


def convert_folder(folder: Path, target: Path) -> Path:
    """A Hugging Face folder as F32 GGUF, by llama.cpp's converter."""
    convert_base(folder, target, outtype="f32")
    return target


def f32_sidecar(adapter: Path, base: Path, target: Path) -> Path:
    """An adapter folder as sidecar of a base GGUF."""
    with BaseFiles.open(base) as files:
        convert_adapter(adapter, target, files, outtype="f32")
    return target


def native_rewards(base: Path, sidecar: Path, tokens: Tensor = TOKENS) -> Tensor:
    """(1, tokens, n_rewards) by llama.cpp, in F32 throughout."""
    insertion = check_files(base, sidecar).insertion
    assert insertion is not None
    context = open_otter(base, sidecar, insertion)
    return torch.from_numpy(context.score(tokens[0].to(torch.int32).numpy()).copy())[None]


def native_logits(base: Path, tokens: Tensor = TOKENS) -> Tensor:
    """(1, tokens, V) by llama.cpp, in F32 throughout."""
    context = open_base(base)
    feed(context, tokens[0].tolist())
    return torch.from_numpy(context.logits().copy())[None]
