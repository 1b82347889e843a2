"""``otter-gguf quantize``: a base, a sidecar or a merged file in other weight types."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import _common

if TYPE_CHECKING:
    from ..quantization import PlannedTensor, QuantizationPlan

HELP = "write a base, a sidecar or a merged file in another weight type"
_NAMED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        f"{HELP}. A base goes through llama.cpp's quantizer, inserted tensors through ggml's; "
        "a sidecar fits its base in every type."
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="base (if split: its first file), sidecar or merged")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="GGUF to write")
    parser.add_argument(
        "type",
        metavar="TYPE",
        help="of a base, or of a merged file's base: as llama-quantize names them (F16, Q8_0, Q4_K_M ...); of a "
        "sidecar: a plain type (Q8_0, Q6_K, Q4_0 ...); COPY = as it is",
    )
    parser.add_argument("--otter-type", metavar="TYPE", help="of a merged file's inserted part (default: as it is)")
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="importance matrix of the base (llama-imatrix)")
    parser.add_argument("--output-tensor-type", metavar="TYPE", help="of the base's output projection")
    parser.add_argument("--pure", action="store_true", help="every matrix in the type itself, no mixture")
    parser.add_argument("--keep-split", action="store_true", help="as many files as INPUT has; OUTPUT names the first")
    parser.add_argument(
        "--allow-requantize", action="store_true", help="accept weights that are in less than 8 bits already"
    )
    parser.add_argument(
        "-t", "--threads", dest="n_threads", type=int, default=0, metavar="N", help="CPU threads; 0 = all cores"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the sizes before and after; write nothing")
    parser.add_argument("--json", action="store_true", help="the sizes as JSON for machines")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Quantize and print the path of the written file; with ``--dry-run`` or ``--json`` the sizes."""
    from ..quantization import QuantizeOptions, plan_quantization, quantize

    options = QuantizeOptions(
        type=args.type,
        otter_type=args.otter_type,
        imatrix=args.imatrix,
        n_threads=args.n_threads,
        allow_requantize=args.allow_requantize,
        output_tensor_type=args.output_tensor_type,
        pure=args.pure,
        keep_split=args.keep_split,
    )
    if args.dry_run:
        plan = plan_quantization(args.input, options)
    else:
        plan = quantize(args.input, args.output, options, force=args.force)
    for note in notes(plan):
        print(f"otter-gguf: {note}", file=sys.stderr)
    if args.json:
        _common.print_json(to_dict(plan))
    elif args.dry_run:
        print_sizes(plan)
    else:
        print(args.output)
    return 0


def notes(plan: QuantizationPlan) -> list[str]:
    """What a user may not expect."""
    lines = []
    fallbacks = [tensor for tensor in plan.tensors if tensor.fallback]
    if fallbacks:
        lines.append(f"rows do not fit the type's blocks, another type taken: {_some(list(map(_fallback, fallbacks)))}")
    if plan.without_importance:
        lines.append(f"no importance values for {_some(plan.without_importance)}")
    return lines


def _fallback(tensor: PlannedTensor) -> str:
    return f"{tensor.name} (rows of {tensor.shape[0]}) {tensor.new_type}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def to_dict(plan: QuantizationPlan) -> dict[str, object]:
    """For ``--json``; sizes in bytes."""
    return {
        "old_bytes": plan.old_bytes,
        "new_bytes": plan.new_bytes,
        "sizes": [sizes._asdict() for sizes in plan.sizes()],
        "tensors": [
            {**tensor._asdict(), "old_bytes": tensor.old_bytes, "new_bytes": tensor.new_bytes}
            for tensor in plan.tensors
        ],
    }


def print_sizes(plan: QuantizationPlan) -> None:
    """A table for people: part, type, tensors and MiB before and after."""
    print(f"{'':8} {'':7} {'before':>23}   {'after':>23}")
    for part, type, *counts in plan.sizes():
        print(_line(part, type, *counts))
    n_tensors = len(plan.tensors)
    print(_line("all", "", n_tensors, plan.old_bytes, n_tensors, plan.new_bytes))


def _line(part: str, type: str, old_tensors: int, old_bytes: int, new_tensors: int, new_bytes: int) -> str:
    before, after = _cell(old_tensors, old_bytes), _cell(new_tensors, new_bytes)
    return f"{part:8} {type:7} {before:>23}   {after:>23}".rstrip()


def _cell(n_tensors: int, n_bytes: int) -> str:
    return f"{n_tensors:5} in {n_bytes / 2**20:9,.2f} MiB" if n_tensors else ""
