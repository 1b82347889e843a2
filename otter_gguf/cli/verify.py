"""Prove that the insertion leaves the base alone: compare its logits, bit by bit, with those of llama.cpp for the base.

Both are loaded in one process and fed the same real text, as prompts and token by token, without and with flash
attention. Exit code 0 if not one bit differs, else 1.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import _common

if TYPE_CHECKING:
    from ..verify import Verification

HELP = "prove that the base's logits are untouched"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``verify BASE OTTER``, or flags as in llama.cpp."""
    parser.add_argument("base", nargs="?", metavar="BASE", help="base or merged GGUF; the same as -m")
    parser.add_argument("sidecar", nargs="?", metavar="OTTER", help="the sidecar; the same as --otter")
    parser.add_argument("-f", "--file", metavar="FILE", help="text to feed (default: Python's own manual); - is stdin")
    parser.add_argument("--logits", type=int, default=1_000_000, metavar="N", help="at least (default: 1000000)")
    parser.add_argument("--json", action="store_true", help="JSON for machines")
    _common.add_model_arguments(parser, leave_out=("n_seq_max", "flash_attn"))


def run(args: argparse.Namespace) -> int:
    """Compare and report."""
    from tqdm import tqdm

    from ..verify import verify

    if args.base is not None:
        if args.model is not None or args.otter is not None:
            raise ConfigError("verify: name the files either as BASE OTTER or with -m and --otter")
        args.model, args.otter = args.base, args.sidecar
    model, otter = _common.model_files(args)
    text = _common.read_text(args.file) if args.file else None
    options = _common.load_options(args)
    with tqdm(desc="Comparing", total=args.logits, unit="logit", unit_scale=True, file=sys.stderr, disable=None) as bar:
        result = verify(model, otter, text=text, min_logits=args.logits, options=options, progress=bar.update)
    if args.json:
        _common.print_json(result.to_dict())
    else:
        print_result(result)
    return 0 if result.identical else 1


def print_result(result: Verification) -> None:
    """A table for people."""
    for comparison in result.comparisons:
        attention = f"flash attention {comparison.flash_attn}"
        verdict = "identical" if not comparison.differing else f"{comparison.differing:,} differ"
        print(f"{comparison.mode:8} {attention:20} {comparison.logits:>14,} logits  {verdict}")
    verdict = "identical, bit for bit" if result.identical else f"NOT identical (max abs {result.max_abs_diff:g})"
    print(f"{result.logits_compared:,} logits {verdict}; {result.rewards:,} rewards were read meanwhile")
