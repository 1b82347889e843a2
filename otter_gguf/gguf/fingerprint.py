"""The fingerprint that binds a sidecar to its base: sha256 over what quantization leaves alone.

Every quantization of a base has the same names and shapes, the same norms and biases (kept in F32) and the same
tokens; another base, or the same one after fine-tuning, differs in at least one of them. Byte layout: docs/format.md.
"""

from __future__ import annotations

import hashlib
import struct

from .. import _native
from .base import BaseFiles
from .encoding import shape_without_ones

_DOMAIN = b"otter-fingerprint-1\n"
_TOKENS = "tokenizer.ggml.tokens"


def fingerprint(base: BaseFiles) -> str:
    """64 hexadecimal digits, the same for every quantization of a base, its shards, and its merged files."""
    digest = hashlib.sha256(_DOMAIN)
    for tensor in sorted(base.tensors, key=lambda tensor: tensor.name.encode()):
        if _depends_on_converter(tensor.name):
            continue
        shape = shape_without_ones(tensor.shape)
        digest.update(tensor.name.encode() + b"\0")
        digest.update(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        if _survives_quantization(tensor):
            digest.update(base.tensor_data(tensor.name))
    if _TOKENS in base.metadata_file.keys:
        digest.update(b"tokens\0")
        digest.update(base.metadata_file.raw_value(_TOKENS))
    return digest.hexdigest()


def _depends_on_converter(name: str) -> bool:
    """Rope tables are derived from the configuration; some converters write them, some do not."""
    return name.split(".")[-2:-1] in (["rope_freqs"], ["rope_factors_long"], ["rope_factors_short"])


def _survives_quantization(tensor: _native.TensorInfo) -> bool:
    """Norms and biases only: another vector may be a matrix of one row, which some writers quantize."""
    is_vector = len(shape_without_ones(tensor.shape)) == 1
    return is_vector and tensor.type == "F32" and ("norm" in tensor.name or tensor.name.endswith(".bias"))
