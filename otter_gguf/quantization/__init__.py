"""Quantization of bases, sidecars and merged files, with llama.cpp's types and importance matrices."""

from .importance import ImportanceMatrix, read_importance
from .quantizer import (
    ALIASES,
    BASE_TYPES,
    COPY,
    SIDECAR_TYPES,
    PlannedTensor,
    QuantizationPlan,
    QuantizeOptions,
    fitting_type,
    plan_quantization,
    quantize,
)

__all__ = [
    "ALIASES",
    "BASE_TYPES",
    "COPY",
    "SIDECAR_TYPES",
    "ImportanceMatrix",
    "PlannedTensor",
    "QuantizationPlan",
    "QuantizeOptions",
    "fitting_type",
    "plan_quantization",
    "quantize",
    "read_importance",
]
