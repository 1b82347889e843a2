"""Compare ways to get a reward from a base, on real preference pairs and on the demo's.

    python -m benchmarks.reward_training --pairs pairs.jsonl.gz      # about two hours on one core
    python -m benchmarks.reward_training --suites methods --seeds 1  # the demo's pairs alone, some minutes
    python -m benchmarks.reward_training --report                    # tables and plots of what has been run so far

Every run is one line of ``WORK/results.jsonl``; runs that are there are not repeated, so an interrupted comparison
goes on where it stopped. Real pairs: JSONL with ``prompt``, ``chosen``, ``rejected``, such as a split of Anthropic's
hh-rlhf.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from tqdm import tqdm

from . import report, runs
from .arms import SUITES
from .domains import Domain, demo_pairs, real_pairs

ROOT = Path(__file__).resolve().parents[2]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reward_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="real preference pairs; default: the demo's alone")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every arm")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "reward-training", help="base and results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of reward-training.md and its plots")
    parser.add_argument("--validate", action="store_true", help="hold out training pairs, to find learning rates")
    return parser.parse_args()


def domains(args: argparse.Namespace) -> list[Domain]:
    """The demo's pairs, and real ones where a file is given."""
    found = [demo_pairs()]
    if args.pairs:
        found.insert(0, real_pairs(args.pairs, args.work, validate=args.validate))
    return found


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / ("validation.jsonl" if args.validate else "results.jsonl")
    if not args.report:
        run_missing(args, results)
    if not args.validate:
        report.write(runs.read(results), args.output)


def run_missing(args: argparse.Namespace, results: Path) -> None:
    """Run what the results file lacks, all arms of a seed before the next seed."""
    done = {(record.domain, tuple(record.arm.values()), record.seed) for record in runs.read(results)}
    planned = []
    for seed, domain, suite in itertools.product(range(args.seeds), domains(args), args.suites):
        for arm in SUITES[suite]:
            name = (domain.name, tuple(runs.key(arm).values()), seed)
            if name not in done:
                done.add(name)
                planned.append((domain, arm, seed))
    for domain, arm, seed in (progress := tqdm(planned, unit="run")):
        progress.set_postfix_str(f"{domain.name}: {arm.name}, seed {seed}")
        runs.append(results, runs.run(domain, arm, seed))


if __name__ == "__main__":
    main()
