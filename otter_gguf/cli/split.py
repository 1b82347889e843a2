"""``otter-gguf split``: a merged file back into base and sidecar."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError

HELP = "take a merged GGUF file apart into base and sidecar, byte for byte as they were"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}. Give --base, --otter or both."
    parser.add_argument("merged", type=Path, metavar="MERGED", help="file made by `otter-gguf merge`")
    parser.add_argument("--base", type=Path, metavar="FILE", help="base GGUF to write")
    parser.add_argument("--otter", type=Path, metavar="FILE", help="sidecar GGUF to write")
    parser.add_argument("--force", action="store_true", help="replace existing files")


def run(args: argparse.Namespace) -> int:
    """Split; prints the paths of the written files."""
    from ..gguf.merge import split

    if args.base is None and args.otter is None:
        raise ConfigError("nothing to write: give --base FILE, --otter FILE or both")
    split(args.merged, args.base, args.otter, force=args.force)
    for path in (args.base, args.otter):
        if path is not None:
            print(path)
    return 0
