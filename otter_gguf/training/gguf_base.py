"""A base that exists as GGUF: transformers' model and tokenizer made from the file that llama.cpp runs.

transformers reads the file and dequantises it to F32. What it would get wrong without a word is put right or refused
here: a scaled rope, of which the file holds the factors alone. The tokenizer is made without it
(:mod:`.gguf_tokenizer`).
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .. import _native, architectures
from ..errors import FileError, MismatchError, UnsupportedError
from ..gguf.base import BaseFiles, base_geometry
from ..gguf.sidecar import is_sidecar
from ..tokenizers.agreement import Agreement, compare_tokenizers
from .gguf_tokenizer import gguf_tokenizer

_ROPE_FACTORS = "rope_freqs.weight"
_LONG_ROPE_FACTORS = "rope_factors_long.weight"
_ADVICE = (
    "if your texts hold nothing of the kind, go on with --no-tokenizer-check (check=False in Python); "
    "else train on the base's Hugging Face folder"
)
# What Llama 3.1 and its successors were trained with; their converter keeps the resulting factors alone.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def is_gguf(name: str | Path) -> bool:
    """Whether a base's name is that of a GGUF file."""
    return str(name).lower().endswith(".gguf")


def load_gguf_base(path: Path) -> PreTrainedModel:
    """The model of a GGUF file in F32, without a trace of quantization, so that it can be trained and saved.

    Raises:
        FileError: unreadable or damaged, or no base.
        UnsupportedError: shards, or an architecture or a rope that transformers cannot make from the file.
    """
    folder, file = str(path.parent), path.name
    factors = _check(path)
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        _take_sizes(config, path)
        if factors is not None:
            config.rope_parameters = _llama3_rope(config, factors, path)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, config=config, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnsupportedError(f"{path}: transformers cannot load it: {str(error).splitlines()[0]}") from None
    assert isinstance(model, PreTrainedModel)
    _forget_quantization(model)
    model.config._name_or_path = str(path)
    return model


def _check(path: Path) -> tuple[float, ...] | None:
    """Check the file before transformers reads it; returns the factors of a scaled rope."""
    with BaseFiles.open(path) as base:
        if is_sidecar(base.metadata_file):
            raise FileError(f"{path}: an Otter sidecar, no base")
        if len(base.files) > 1:
            raise UnsupportedError(f"{path}: a base in shards; join them with llama-gguf-split --merge")
        _native.check_base(base.metadata_file)
        first = base.metadata_file
        scaling = f"{first.value('general.architecture')}.rope.scaling.type"
        if scaling in first.keys and first.value(scaling) != "none":
            raise UnsupportedError(
                f"{path}: rope scaling {first.value(scaling)!r} is not read from GGUF; give the Hugging Face folder"
            )
        reason = _lost(base)
        if reason:
            raise UnsupportedError(f"{path}: transformers cannot load it: {reason}; give the Hugging Face folder")
        if base.tensor(_ROPE_FACTORS) is None:
            return None
        data = base.tensor_data(_ROPE_FACTORS)
        return struct.unpack(f"<{len(data) // 4}f", data)


def _lost(base: BaseFiles) -> str | None:
    """What transformers does not read from a file, and would leave out without a word."""
    geometry = base_geometry(base)
    rotated = f"{geometry.architecture}.rope.dimension_count"
    if rotated in base.metadata_file.keys and base.metadata_file.value(rotated) != geometry.head_dim:
        return "only a part of each head is rotated"
    if base.tensor(_LONG_ROPE_FACTORS) is not None:
        return "it has long rotary factors"
    if geometry.architecture == "llama" and geometry.n_expert:
        return "a mixture of experts"
    kinds = (architectures.describe(model_type) for model_type in architectures.supported())
    lost = [kind.lost_in_gguf for kind in kinds if kind.gguf == geometry.architecture and kind.lost_in_gguf]
    return f"it loses {lost[0]}" if lost else None


def _take_sizes(config: Any, path: Path) -> None:
    """transformers leaves two sizes of a Qwen3 at those that it usually has, whatever the file says."""
    with BaseFiles.open(path) as base:
        geometry = base_geometry(base)
    for name, size in (("head_dim", geometry.head_dim), ("moe_intermediate_size", geometry.n_ff)):
        if getattr(config, name, None) is not None:
            setattr(config, name, size)


def _llama3_rope(config: Any, factors: tuple[float, ...], path: Path) -> dict[str, Any]:
    """The rope parameters whose factors are those of the file, found by computing them."""
    parameters = {**config.rope_parameters, "rope_type": "llama3", "factor": round(max(factors), 4), **_LLAMA3_ROPE}
    plain, config.rope_parameters = config.rope_parameters, parameters
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    config.rope_parameters = plain
    exponents = torch.arange(0, 2 * len(scaled), 2) / (2 * len(scaled))
    expected = plain["rope_theta"] ** -exponents / scaled
    if not torch.allclose(torch.tensor(factors), expected, rtol=1e-4):
        raise UnsupportedError(f"{path}: its rope factors are not Llama 3's; give the Hugging Face folder of the base")
    return parameters


def _forget_quantization(model: Any) -> None:
    """The weights are plain F32 tensors; what transformers noted of the file would forbid training and saving them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model, "quantization_method"):
        del model.quantization_method


def load_gguf_tokenizer(path: Path, *, check: bool = True) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a GGUF file (:mod:`.gguf_tokenizer`) and compare it with llama.cpp's own.

    Args:
        path: The file.
        check: Whether a difference is an error; else it is a warning, as is one that a caller can avoid.

    Raises:
        FileError: unreadable or damaged.
        UnsupportedError: a kind of tokenizer that is not made from a file.
        MismatchError: it gives other tokens than llama.cpp, so rewards would be trained for other inputs.
    """
    _check(path)
    with BaseFiles.open(path) as base:
        tokenizer = gguf_tokenizer(base.metadata_file)
    found = compare_tokenizers(path, tokenizer)
    if found.differences and check:
        raise MismatchError(f"{path}: {_difference(found)}; {_ADVICE}")
    for note in [*([_difference(found)] if found.differences else []), *found.notes]:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return tokenizer


def _difference(found: Agreement) -> str:
    return f"the tokenizer made of it for training is not llama.cpp's: {'; '.join(found.differences)}"
