"""``otter-gguf merge``: base and sidecar as one file."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "join a base and its sidecar into one GGUF file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}. `otter-gguf split` gives both back byte for byte."
    parser.add_argument("base", type=Path, metavar="BASE", help="base GGUF, in one file")
    parser.add_argument("otter", type=Path, metavar="OTTER", help="sidecar GGUF")
    parser.add_argument("-o", "--outfile", type=Path, required=True, metavar="FILE", help="merged GGUF to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Merge; prints the path of the written file."""
    from ..gguf.merge import merge

    merge(args.base, args.otter, args.outfile, force=args.force)
    print(args.outfile)
    return 0
