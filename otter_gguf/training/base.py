"""A base and its tokenizer: what is read of its configuration, and how both are loaded and saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .. import architectures
from ..adapter_format import AdapterRecord
from ..architectures import Architecture
from ..config import BaseGeometry
from ..errors import ConfigError, FileError
from ..tokenizers.agreement import load_tokenizer as load_hf_tokenizer
from .gguf_base import is_gguf, load_gguf_base, load_gguf_tokenizer
from .peft_base import unwrap


def geometry(model: nn.Module) -> BaseGeometry:
    """The sizes of a Hugging Face model, or of the one in a ``PeftModel``, that an insertion depends on.

    Raises:
        UnsupportedError: its architecture has no file in :mod:`otter_gguf.architectures`, or llama.cpp would compute
            something else for its configuration.
    """
    base = unwrap(model)
    return architecture_of(base).geometry(base.config)


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The description of a Hugging Face model's architecture, in the form that its sizes have."""
    found = architectures.find(model.config.model_type, type(model).__name__)
    found = found.of_form(found.geometry(model.config))
    # Releases of transformers name the output projection of some models differently.
    lm_head = model.get_output_embeddings()
    return replace(found, lm_head=next(name for name, module in model.named_modules() if module is lm_head))


def load_base(
    base_model: str | Path | None = None, path: Path | None = None, record: AdapterRecord | None = None
) -> PreTrainedModel:
    """A base by folder, Hub name or GGUF file, or the one that an adapter's ``record`` names.

    Only safetensors and GGUF are read, never pickles, and no code from the model's folder is run. A GGUF base comes
    dequantised to F32 (:mod:`.gguf_base`).
    """
    name, revision = (record.base_name, record.revision) if record and base_model is None else (base_model, None)
    if not name:
        raise ConfigError(f"{path}: names no base model; give one with --base")
    hint = "" if base_model is not None else f" ({path} names it; give another with --base)"
    if is_gguf(name):
        if not Path(name).is_file():
            raise FileError(f"{name}: cannot load the base model: no such file{hint}")
        return load_gguf_base(Path(name))
    try:
        config = AutoConfig.from_pretrained(str(name), revision=revision, trust_remote_code=False)
        _check_attention_name(config, str(name))
        model = AutoModelForCausalLM.from_pretrained(
            str(name), revision=revision, config=config, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except StrictDataclassError as error:
        raise FileError(f"{name}: config.json: {first_line(error.__cause__ or error)}") from None
    # Beside what is documented, transformers raises whatever a configuration of wrong types leads to.
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, SafetensorError) as error:
        raise FileError(f"{name}: cannot load the base model: {first_line(error)}{hint}") from None
    assert isinstance(model, PreTrainedModel)
    choose_attention(model)
    return model


def _check_attention_name(config: Any, name: str) -> None:
    """Refuse a configuration that names a kernel of the Hub: transformers would fetch and run native code."""
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise FileError(f"{name}: config.json: attn_implementation is {attention!r}, expected one of transformers' own")


def choose_attention(model: PreTrainedModel) -> None:
    """Replace transformers' default attention function where it leaves out a part of the model's attention.

    transformers before 5.24 gives Gemma 2 ``sdpa``, which does not cap its scores.
    """
    if model.config.model_type not in architectures.supported():
        return  # refused by name where it is widened
    known = architectures.find(model.config.model_type).attention_functions
    if known and model.config._attn_implementation not in known:
        model.set_attn_implementation(known[0])


def load_tokenizer(model: nn.Module | str | Path, *, check: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a base: of the one that a model was loaded from, or by folder, Hub name or GGUF file.

    Args:
        model: A model that knows where it was loaded from, or that place.
        check: Whether a GGUF file's tokenizer that cuts text otherwise than llama.cpp is an error, not a warning.

    Raises:
        FileError: there is none.
        UnsupportedError, MismatchError: a GGUF file's cannot be made, or cuts text otherwise than llama.cpp.
    """
    kept = getattr(model, "tokenizer", None)
    if isinstance(kept, PreTrainedTokenizerBase):
        return kept
    name, revision = _tokenizer_source(model)
    if is_gguf(name) and Path(name).is_file():
        return load_gguf_tokenizer(Path(name), check=check)
    return load_hf_tokenizer(name, revision)


def _tokenizer_source(model: nn.Module | str | Path) -> tuple[str, str | None]:
    """Name and Hub commit."""
    if isinstance(model, (str, Path)):
        return str(model), None
    config: Any = model.config
    if not config._name_or_path:
        raise FileError("the base model was not loaded from anywhere; give its tokenizer's folder or name")
    return str(config._name_or_path), getattr(config, "_commit_hash", None)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files. ``OSError`` if they cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # all that the tokenizers library has for a full disk
            raise OSError(str(error)) from None
        raise


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
