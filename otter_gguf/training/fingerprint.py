"""The fingerprint that binds an adapter folder to its base: sha256 over what loading in another type leaves alone.

The sizes and the weights of the norms: quantized files and half-precision copies keep those, and fine-tuning changes
them. The sidecar has a fingerprint of its own, of a GGUF file (:mod:`otter_gguf.gguf.fingerprint`).
"""

from __future__ import annotations

import hashlib
import json
import re

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..adapter_format import INFIX
from ..config import BaseGeometry
from ..errors import MismatchError
from .modules import BASE_INFIX

_DOMAIN = b"otter-base-1\n"
_NORM = r"norm|\.ln_"


def base_fingerprint(model: PreTrainedModel, geometry: BaseGeometry) -> str:
    """64 hexadecimal digits, the same before and after an insertion.

    Hashed are the geometry (vocabulary size included) as JSON and, ordered by name, each norm's name, size and weight
    in little-endian F32. Types that hold the same numbers give the same digits.
    """
    digest = hashlib.sha256(_DOMAIN + json.dumps(geometry.to_dict(), sort_keys=True).encode() + b"\n")
    for name, weight in sorted(_norms(model).items()):
        digest.update(f"{name}\0{weight.numel()}\0".encode())
        values = weight.detach().to(device="cpu", dtype=torch.float32)
        digest.update(values.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _norms(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the base's norms by the names that they have without an insertion."""
    return {
        name.replace(BASE_INFIX, "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 and re.search(_NORM, name) and INFIX not in name
    }


def check_fingerprint(expected: object, model: PreTrainedModel, geometry: BaseGeometry, where: str) -> None:
    """``MismatchError`` if a recorded fingerprint is not this base's; folders without one (``None``) are accepted."""
    if expected is None:
        return
    found = base_fingerprint(model, geometry)
    if found != expected:
        raise MismatchError(
            f"{where}: made for another base: base_fingerprint {str(expected)[:12]}..., the base {_name(model)} has "
            f"{found[:12]}...; give the base that it was trained on, in the type it was saved in, or pass "
            "check_base=False"
        )


def _name(model: PreTrainedModel) -> str:
    return str(model.config._name_or_path or "in memory")
