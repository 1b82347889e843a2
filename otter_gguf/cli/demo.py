"""Run the shipped demo model: convert its adapter, prove that the base is untouched, decode plainly and guided.

Story beginnings are continued twice, plainly and guided by the reward of every candidate token (ARGS); a judge that is
independent of the reward reads both. A plot goes to ./otter-demo.png. Takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _common

if TYPE_CHECKING:
    from ..demo import DemoFiles, Experiment, Settings
    from ..options import LoadOptions
    from ..verify import Verification

HELP = "run the shipped demo model: convert, verify, plain and guided decoding side by side"

_CONTEXT = 256
_WIDTH, _LEAST_WIDTH = 118, 40
"""Columns of the report at most, which is what a file gets, and at least."""
_MIN_LOGITS = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp where they exist there."""
    parser.add_argument("-o", "--output", type=Path, default=Path("otter-demo.png"), metavar="FILE", help="the plot")
    parser.add_argument("--no-plot", action="store_true", help="leave out the plot (it needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="figures as JSON on stdout, nothing else")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="stories shown side by side (default: 3)")
    run_flags = parser.add_argument_group("experiment")
    run_flags.add_argument("--prompts", dest="n_prompts", type=int, metavar="N", help="story beginnings (default: 200)")
    run_flags.add_argument("-n", "--predict", dest="max_tokens", type=int, metavar="N", help="tokens of each (48)")
    run_flags.add_argument("-w", "--weight", type=_common.number, help="logits per unit of reward (default: 2)")
    run_flags.add_argument("--candidates", dest="n_candidates", type=int, metavar="N", help="to choose from (10)")
    run_flags.add_argument("--temp", dest="temperature", type=_common.number, metavar="N", help="temperature (0.8)")
    run_flags.add_argument("-s", "--seed", type=int, help="of the first prompt (default: 1)")
    run_flags.add_argument("-t", "--threads", type=int, default=1, metavar="N", help="CPU threads (1: it is small)")


def run(args: argparse.Namespace) -> int:
    """Convert, verify, decode, judge, report. Exit code 1 if a logit of the base differs."""
    from ..demo import demo_files
    from ..options import LoadOptions

    begin = time.perf_counter()
    settings = _settings(args)
    files = demo_files()
    if not args.no_plot:
        _check_plot(args.output)
    options = LoadOptions(n_ctx=_CONTEXT, n_threads=args.threads, n_seq_max=settings.n_candidates)
    reproduced = convert(files)
    verification = verify_base(files, options)
    experiment, ranked = decode(files, options, settings)
    result = {
        **experiment.to_dict(),
        "base_logits_identical": verification.identical,
        "logits_compared": verification.logits_compared,
        "sidecar_reproduced": reproduced,
        "unseen_pairs_ranked": ranked,
    }
    if not args.no_plot:
        from ..demo.plot import save_plot

        save_plot(experiment, args.output)
    result["plot"] = None if args.no_plot else str(args.output)
    result["seconds"] = time.perf_counter() - begin
    if args.json:
        _common.print_json(result)
    else:
        _report(experiment, result, args)
    return 0 if verification.identical else 1


def _settings(args: argparse.Namespace) -> Settings:
    from ..demo import Settings

    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _check_plot(output: Path) -> None:
    """What would make the plot fail at the end is said at the beginning."""
    from ..demo.plot import check_matplotlib
    from ..gguf.atomic import check_target

    check_matplotlib()
    check_target(output, force=True)


def convert(files: DemoFiles) -> bool:
    """Convert the adapter to a sidecar as a user would; whether it is the shipped one, byte for byte."""
    from otter_gguf.converters.adapter import convert_adapter

    from ..demo.assets import NAME
    from ..gguf.base import BaseFiles

    with tempfile.TemporaryDirectory(prefix="otter-demo-") as folder, BaseFiles.open(files.base) as base:
        target = Path(folder) / files.sidecar.name
        convert_adapter(files.adapter, target, base, outtype="q8_0", name=NAME)
        return target.read_bytes() == files.sidecar.read_bytes()


def verify_base(files: DemoFiles, options: LoadOptions) -> Verification:
    """Compare the base's logits with stock llama.cpp's, on the demo's stories."""
    from tqdm import tqdm

    from ..verify import verify

    text = "\n".join(pair.prompt + pair.chosen for pair in files.load_pairs())
    with tqdm(
        desc="Comparing logits", total=_MIN_LOGITS, unit="logit", unit_scale=True, file=sys.stderr, disable=None
    ) as bar:
        return verify(
            files.base, files.sidecar, text=text, min_logits=_MIN_LOGITS, options=options, progress=bar.update
        )


def decode(files: DemoFiles, options: LoadOptions, settings: Settings) -> tuple[Experiment, float]:
    """The experiment, and the share of unseen pairs that the reward ranks rightly."""
    from tqdm import tqdm

    from ..demo import run_experiment
    from ..demo.experiment import rank_pairs
    from ..model import Otter

    loading: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(options)}
    with (
        Otter(files.base, otter=files.sidecar, **loading) as llm,
        tqdm(desc="Decoding", total=2 * settings.n_prompts, unit="story", file=sys.stderr, disable=None) as bar,
    ):
        experiment = run_experiment(llm, files.load_prompts(), settings, bar.update)
        return experiment, rank_pairs(llm, files.load_pairs())


def _report(experiment: Experiment, result: dict[str, Any], args: argparse.Namespace) -> None:
    from ..demo import report
    from ._colour import RESET, colour_at, foreground, wants_colour

    def paint(text: str, reward: float) -> str:
        # The demo's rewards lie between -1 and 1.
        return f"{foreground(colour_at((reward + 1) / 2))}{text}{RESET}"

    coloured = wants_colour(args.color, sys.stdout)
    verdict = "identical, bit for bit" if result["base_logits_identical"] else "NOT identical"
    print(
        f"convert   adapter to sidecar: {'' if result['sidecar_reproduced'] else 'NOT '}the shipped file, byte for byte"
    )
    print(f"verify    {result['logits_compared']:,} logits of the base: {verdict}")
    print(f"score     {result['unseen_pairs_ranked']:.0%} of story pairs in unseen words ranked rightly")
    print(f"decode    {len(experiment.prompts)} stories, weight {experiment.settings.weight:g}\n")
    print(report.table(experiment))
    # One column is left free: some terminals break a line that fills them.
    width = max(_LEAST_WIDTH, min(_WIDTH, shutil.get_terminal_size((_WIDTH + 1, 0)).columns - 1))
    for line in report.examples(experiment, args.examples, width, paint if coloured else lambda text, reward: text):
        print(line)
    print(f"\n{result['plot'] or 'no plot'}, {result['seconds']:.0f} s")
