"""Compare policies: texts by each of them over a file of prompts, read by a judge, with what they cost.

Plain decoding is always run, and every other policy is compared with it prompt by prompt. FOLDER gets results.json,
report.md, plots.png and the texts (texts.jsonl); an interrupted run goes on there when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FileError
from ..files import MAX_ROWS
from . import _common

if TYPE_CHECKING:
    from ..evaluation import Embedder, Judge, Plan, Results
    from ..evaluation.runner import Opened
    from ..guidance.base import Policy
    from ..guidance.search import Search
    from ..model import Otter

HELP = "compare guidance policies: reward, judge, diversity, coherence, cost"

RESULTS, REPORT, PLOTS = "results.json", "report.md", "plots.png"

_DEMO_POLICY = "args:weight=3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp where they exist there."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("otter-eval"), metavar="FOLDER", help="(./otter-eval)"
    )
    parser.add_argument("--force", action="store_true", help="start anew in a folder of another run")
    parser.add_argument("--no-plot", action="store_true", help="leave out the plots (they need matplotlib)")
    parser.add_argument("--json", action="store_true", help="results.json on stdout instead of the report")
    parser.add_argument(
        "--policy",
        action="append",
        metavar="SPEC",
        help="args:weight=1.5,n_candidates=10, gated:entropy=1.0+args ... (may be repeated; default: args)",
    )
    _add_prompt_arguments(parser)
    _add_reading_arguments(parser)
    second = parser.add_argument_group("baseline: a separate reward model of the same vocabulary")
    second.add_argument("--second-model", metavar="FILE", help="the reward model; merged, or with its sidecar")
    second.add_argument("--second-otter", metavar="FILE", help="its sidecar")
    second.add_argument("--second-policy", action="append", metavar="SPEC", help="what it guides (default: args)")
    _common.add_model_arguments(parser, leave_out=("n_seq_max",))


def _add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help='one a line; .json: a list; .jsonl: objects with "prompt" (default: the demo\'s)',
    )
    group.add_argument("--n-prompts", type=int, metavar="N", help="only the first N")
    group.add_argument("--seeds", type=int, metavar="N", help="texts of each prompt and policy (default: 3)")
    group.add_argument(
        "-n", "--predict", dest="max_tokens", type=int, metavar="N", help="tokens of each (default: 128)"
    )
    group.add_argument("-s", "--seed", type=int, metavar="N", help="of the first text (default: 1)")
    group.add_argument(
        "--temp", dest="temperature", type=_common.number, metavar="N", help="temperature (default: 0.8)"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="what plain decoding draws from (default: 10)")
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="forbid the end of a text: all are as long"
    )


def _add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judge")
    group.add_argument(
        "--judge",
        metavar="NAME",
        help="demo, demo-unseen or MODULE:FUNCTION, of the response or of prompt and response",
    )
    group.add_argument(
        "--judge-model", metavar="FILE", help="judge by the reward of this model, merged or with a sidecar"
    )
    group.add_argument("--judge-otter", metavar="FILE", help="its sidecar")
    group.add_argument("--label", help="which of the guide's rewards is reported (default: the first)")
    group.add_argument(
        "--embedder", metavar="MODULE:FUNCTION", help="texts to vectors, for coherence (default: the base)"
    )


def run(args: argparse.Namespace) -> int:
    """Generate, read, judge, write the report. What would make it fail at the end is checked at the beginning."""
    from ..evaluation import evaluate

    if not args.no_plot:
        from ..evaluation.plot import check_matplotlib

        check_matplotlib()
    with ExitStack() as stack:
        plan = _plan(args, stack)
        judge, embedder = _judge(args, stack), _embedder(args)
        args.output.mkdir(parents=True, exist_ok=True)
        _check_outputs(args)
        results = evaluate(plan, judge, embedder=embedder, folder=args.output, force=args.force, progress=_progress)
    write(results, args.output, plot=not args.no_plot)
    if args.json:
        _common.print_json(results.to_dict())
    else:
        from ..evaluation.report import markdown
        from ..text import terminal_safe

        print(terminal_safe(markdown(results)), end="")
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """No file of an earlier run, nor what a killed one left, is the prompts or a model of this one."""
    from ..evaluation.evaluate import TEXTS
    from ..gguf.atomic import check_target

    given = (args.prompts, args.model, args.otter, args.second_model, args.second_otter)
    inputs = [path for path in (*given, args.judge_model, args.judge_otter) if path is not None]
    for name in (RESULTS, REPORT, TEXTS):
        check_target(args.output / name, inputs=inputs, force=True)


def write(results: Results, folder: Path, *, plot: bool) -> None:
    """The files of the report, each replaced as a whole."""
    from ..evaluation.plot import save_plot
    from ..evaluation.report import markdown
    from ..gguf.atomic import atomic_path

    with atomic_path(folder / RESULTS, force=True) as temporary:
        temporary.write_text(json.dumps(results.to_dict(), indent=2) + "\n", encoding="utf-8")
    if plot:
        save_plot(results, folder / PLOTS)
    with atomic_path(folder / REPORT, force=True) as temporary:
        temporary.write_text(markdown(results, PLOTS if plot else None), encoding="utf-8")


# ---- what is run -----------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace, stack: ExitStack) -> Plan:
    from ..evaluation import Plan, Settings
    from ..evaluation.runner import PLAIN

    model, otter = _common.model_files(args)
    if args.second_model is None and (args.second_otter or args.second_policy):
        raise ConfigError("--second-otter and --second-policy need --second-model")
    names = ("seeds", "max_tokens", "seed", "temperature", "top_k", "ignore_eos")
    settings = Settings(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})
    prompts = _prompts(args)
    specs = args.policy or [_DEMO_POLICY if args.model is None else "args"]
    helpers: dict[str, tuple[Opened, ...]] = {}
    policies = _policies([spec for spec in specs if spec != PLAIN], args, stack, helpers)
    second = args.second_policy or ["args"] if args.second_model else []
    return Plan(
        model=model,
        otter=otter,
        prompts=prompts,
        policies=policies,
        second_model=args.second_model,
        second_otter=args.second_otter,
        second_policies=_policies(second, args, stack, {}),
        settings=settings,
        options=_common.load_options(args),
        helpers=helpers,
        label=args.label,
    )


def _policies(
    specs: list[str], args: argparse.Namespace, stack: ExitStack, helpers: dict[str, tuple[Opened, ...]]
) -> dict[str, Policy | Search]:
    """The policies by what was typed; models that one brings are opened and put into ``helpers``."""
    from ..guidance.spec import parse

    policies: dict[str, Policy | Search] = {}
    for spec in specs:
        brought: list[Opened] = []
        policy = parse(spec, partial(_open_helper, args, stack, brought))
        if policy is None or spec in policies:
            raise ConfigError(f"--policy {spec}: {'guides nothing' if policy is None else 'is given twice'}")
        policies[spec] = policy
        helpers[spec] = tuple(brought)
    return policies


def _open_helper(args: argparse.Namespace, stack: ExitStack, brought: list[Opened], text: str) -> Otter:
    from ..evaluation.memory import open_measured
    from ..evaluation.runner import Opened
    from ..options import LoadOptions

    model, _, otter = text.partition("|")
    llm, memory = open_measured(model, otter or None, **{"n_seq_max": 1, **_common.given(args, LoadOptions)})
    brought.append(Opened(stack.enter_context(llm), memory))
    return llm


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts is None and args.model is not None:
        raise ConfigError("--prompts FILE is needed with -m")
    if args.prompts is None:
        from ..demo import demo_files

        prompts = demo_files().load_prompts()
    else:
        prompts = read_prompts(args.prompts)
    if args.n_prompts is not None and not 2 <= args.n_prompts <= len(prompts):
        raise ConfigError(f"--n-prompts {args.n_prompts}: expected 2 to {len(prompts)}")
    return prompts[: args.n_prompts]


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, by its ending: ``.json`` is a list of texts or of objects with "prompt", ``.jsonl`` has
    one of these a line, any other file one prompt a line. Empty lines are left out.

    Raises:
        FileError: The file cannot be read, or an entry is no prompt.
    """
    text = _common.read_text(path, MAX_ROWS)
    ending = Path(path).suffix.lower()
    if ending == ".json":
        entries = _parse(text, path)
        if not isinstance(entries, list):
            raise FileError(f"{path}: expected a list of prompts, found {type(entries).__name__}")
        return [_prompt(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, 1)]
    lines = [(f"{path}: line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if ending == ".jsonl":
        return [_prompt(_parse(line, where), where) for where, line in lines]
    return [line.rstrip("\r") for _, line in lines]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        raise FileError(f"{where}: no JSON: {error}") from None


def _prompt(entry: Any, where: str) -> str:
    prompt = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(prompt, str) or not prompt:
        raise FileError(f'{where}: expected a text, or an object with a text "prompt"')
    return prompt


# ---- who reads it ----------------------------------------------------------------------------------------------


def _judge(args: argparse.Namespace, stack: ExitStack) -> Judge | None:
    from ..evaluation.judges import load_judge, of_model

    if args.judge_otter is not None and args.judge_model is None:
        raise ConfigError("--judge-otter needs the base it belongs to: give --judge-model")
    if args.judge is not None and args.judge_model is not None:
        raise ConfigError("--judge and --judge-model exclude each other")
    if args.judge_model is not None:
        from ..model import Otter

        return of_model(stack.enter_context(Otter(args.judge_model, otter=args.judge_otter, n_seq_max=1)))
    if args.judge is not None or args.model is None:
        return load_judge(args.judge or "demo")
    print("no --judge: the guide's own reward judges its guidance too kindly", file=sys.stderr)
    return None


def _embedder(args: argparse.Namespace) -> Embedder | None:
    from ..evaluation.embed import load_embedder

    return None if args.embedder is None else load_embedder(args.embedder)


@contextmanager
def _progress(stage: str, done: int, total: int) -> Iterator[Callable[[], object]]:
    from tqdm import tqdm

    with tqdm(desc=stage, initial=done, total=total, unit="text", file=sys.stderr, disable=None) as bar:
        yield bar.update
