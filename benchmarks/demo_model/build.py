"""Build the demo model that otter-gguf ships: base, its GGUF file, the insertion trained on that, sidecar, prompts.

    python benchmarks/demo_model/build.py              # about 20 minutes on one core; results into otter_gguf/demo
    python benchmarks/demo_model/build.py --base otter_gguf/demo/demo-base.Q8_0.gguf    # the insertion alone, 4 minutes
    python benchmarks/demo_model/build.py --stories 600 --pairs 16 --work trial --output trial/demo   # half a minute

Every step writes into ``--work`` and is skipped when its result is there. CPU only, one thread, fixed seeds: the same
machine gives the same files. Needs the ``train`` extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo", help="intermediate results")
    parser.add_argument("--output", type=Path, default=ROOT / "otter_gguf" / "demo", help="where the results go")
    parser.add_argument("--stories", type=int, default=28000, help="stories that the base learns from")
    parser.add_argument("--pairs", type=int, default=3000, help="preference pairs that the insertion learns from")
    parser.add_argument("--base", type=Path, metavar="GGUF", help="use this base instead of training one")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    import torch

    from benchmarks.demo_model.steps import build

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    build(args.work, args.output, args.stories, args.pairs, args.base)


if __name__ == "__main__":
    main()
