"""What each policy does to the demo's texts, and what it costs there: the section "Measured" of docs/guidance.md.

    python -m benchmarks.guidance_quality --work build/guidance_quality --document docs/guidance.md

200 of the demo's prompts, three texts of 48 tokens each for every policy, read by the demo's judge, which knows nothing
of the rewards. The second model is a fine-tuned copy of the base with a head, taught the same pairs as the insertion,
quantized to Q8_0 as well. Training it takes some minutes on one core, all texts about ten more; both are kept in
``--work``, where an interrupted run goes on. Needs the ``train`` extra.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from otter_gguf.converters.adapter import convert_adapter
from otter_gguf.converters.base import convert_base
from tqdm import tqdm

from benchmarks.guidance_cost.report import with_section
from otter_gguf import _native
from otter_gguf.config import InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.evaluation import Plan, evaluate, load_judge
from otter_gguf.evaluation.evaluate import Tick
from otter_gguf.evaluation.plot import save_plot
from otter_gguf.evaluation.report import table
from otter_gguf.evaluation.results import ArmResult, Estimate, Results
from otter_gguf.evaluation.runner import PLAIN, Settings
from otter_gguf.gguf.atomic import atomic_path
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.guidance import spec
from otter_gguf.options import LoadOptions

HEADING = "## Measured"
IMAGE = Path("images") / "guidance-quality.png"
ARGS, GATED = "args:weight=2.0", "gated:entropy=1.0+args:weight=2.0"
POLICIES = (
    "args:weight=0.5",
    "args:weight=1.0",
    ARGS,
    "args:weight=4.0",
    GATED,
    "vocabulary:weight=0.5",
    "vocabulary:weight=1.0",
    "vocabulary:weight=2.0",
    "vocabulary:weight=4.0",
    "vocabulary:weight=2.0,order=bonus_first",
    "gated:entropy=1.0+vocabulary:weight=2.0",
    "pargs:weight=2.0",
    "rad:beta=2.0,low=-1.0,high=1.0",
    "threshold:limit=0.0,action=resample",
    "cards:target=0.95,beta=0.1,entropy=1.0,max_segment=16,n_tokens=48",
    "best_of_n:n=8",
    "speculative_rejection:n=16,pause=8",
    "chunk_beam",
)
SECOND_POLICIES = (ARGS, "best_of_n:n=8")


def train_second(folder: Path, pairs: int) -> None:
    """A full reward model, by the pairs and the loss of the shipped insertion."""
    import torch

    from benchmarks.demo_model.insertion import BATCH, TRAINED_SCALE
    from benchmarks.demo_model.steps import PAIR_SEED
    from benchmarks.demo_model.stories import preference_pairs
    from otter_gguf.config import HeadConfig
    from otter_gguf.training import OtterTrainer, TrainConfig, tokenise_rows
    from otter_gguf.training.base import load_base, load_tokenizer
    from otter_gguf.training.full import full_reward_model

    torch.set_num_threads(1)
    head = HeadConfig(input="base", activation="tanh", scale=(TRAINED_SCALE,))
    model = full_reward_model(load_base(demo_files().base), [head], seed=PAIR_SEED)
    model.tokenizer = load_tokenizer(demo_files().base)
    arguments = TrainConfig(
        output_dir=str(folder.with_name("second-run")),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        save_strategy="no",
        seed=PAIR_SEED,
        use_cpu=True,
        report_to=[],
    )
    data = tokenise_rows(list(preference_pairs(PAIR_SEED, pairs, "A")), model.tokenizer)
    OtterTrainer(model, arguments, data).train()
    model.insertion = rescaled(model.insertion)
    model.save_pretrained(folder, force=True)


def rescaled(insertion: InsertionConfig) -> InsertionConfig:
    """The rewards between -1 and 1, as those of the shipped insertion."""
    return dataclasses.replace(insertion, heads=(dataclasses.replace(insertion.heads[0], scale=(1.0,)),))


def second_model(work: Path, pairs: int) -> tuple[Path, Path]:
    """The second model's GGUF and the sidecar with its head."""
    folder, base, sidecar = work / "second", work / "second.Q8_0.gguf", work / "second.otter.gguf"
    if not sidecar.exists():
        if not (folder / "otter_model.safetensors").exists():
            train_second(folder, pairs)
        f16 = work / "second.F16.gguf"
        convert_base(folder / "base", f16, outtype="f16", force=True)
        with atomic_path(base, inputs=[f16], force=True) as temporary:
            _native.model_quantize(str(f16), str(temporary), "Q8_0", n_threads=1)
        with BaseFiles.open(base) as files:
            convert_adapter(folder, sidecar, files, outtype="q8_0", force=True)
    return base, sidecar


def run(work: Path, n_prompts: int, seeds: int, max_tokens: int, pairs: int) -> Results:
    """All texts, judged."""
    files = demo_files()
    base, sidecar = second_model(work, pairs)
    plan = Plan(
        model=str(files.base),
        otter=str(files.sidecar),
        prompts=files.load_prompts()[:n_prompts],
        policies={text: spec.parse(text) for text in POLICIES},  # type: ignore[misc]
        second_model=str(base),
        second_otter=str(sidecar),
        second_policies={text: spec.parse(text) for text in SECOND_POLICIES},  # type: ignore[misc]
        settings=Settings(seeds=seeds, max_tokens=max_tokens, ignore_eos=True),
        options=LoadOptions(n_ctx=256, n_threads=1),
    )
    texts = work / "texts"
    texts.mkdir(exist_ok=True)
    return evaluate(plan, load_judge("demo"), folder=texts, progress=bar)


@contextlib.contextmanager
def bar(stage: str, done: int, total: int) -> Iterator[Tick]:
    """On stderr."""
    with tqdm(desc=stage, initial=done, total=total, unit="text", file=sys.stderr, disable=None) as shown:
        yield shown.update


# ---- the section -----------------------------------------------------------------------------------------------


HEAD = ("", "judge", "difference", "coherence", "diversity", "perplexity", "guided", "tokens fed", "time")

TEMPLATE = """{heading}

Written by `python -m benchmarks.guidance_quality --document docs/guidance.md`; do not edit by hand.

![Judge and cost, judge and weight, rewards of tokens](images/guidance-quality.png)

The demo model: {prompts} prompts, {seeds} seeds, {tokens} tokens each (end of text forbidden, so that all are as long),
temperature {temperature:g}; plain decoding draws from its {top_k} best tokens. **Judge**: mean of the demo's, -1 to 1,
which counts words and knows nothing of rewards ([demo.md](demo.md)). Differences are taken from plain decoding prompt
by prompt, after the mean over its seeds, ± standard error over prompts. Coherence and diversity by ARGS's definitions
([evaluation.md](evaluation.md)), as differences from plain decoding's {coherence} and {diversity}; perplexity under the
base. Guided: share of steps. Tokens fed: for a token of text, by all models together. Time: times plain decoding's, on
one core, where this small model waits for arithmetic; a model of a billion parameters is in
[benchmarks.md](benchmarks.md).

{table}

{findings}
"""


FINDINGS = """\
- The gate keeps {shares} of the steps: most tokens of these stories leave nothing to
  choose.
- Coherence is lost where guidance works against the base at every token (high weights, a hard threshold), and hardly
  where whole stretches are drawn from it and judged (CARDS, beams, rejection).
- A reward with every token makes searches cheap: those that read rewards of sampled text compute 1 to 8 tokens a
  token here, ARGS ten.
- Best-of-N looks at the last reward alone. With the end of text forbidden, a story that is over goes on with an ending
  of either kind, and it is that ending which counts."""


def section(results: Results) -> str:
    """The section with its heading."""
    plain, settings = results.arms[0], results.header
    return TEMPLATE.format(
        heading=HEADING,
        prompts=len(settings["prompts"]),
        seeds=settings["seeds"],
        tokens=settings["max_tokens"],
        temperature=settings["temperature"],
        top_k=settings["top_k"],
        coherence=f"{plain.metrics['coherence'].mean:.3f}",
        diversity=f"{plain.metrics['diversity'].mean:.3f}",
        table=table(HEAD, [row(arm) for arm in results.arms]),
        findings=findings(results),
    )


def row(arm: ArmResult) -> list[str]:
    """One policy."""
    names = ("judge", "coherence", "diversity")
    differences = ["" if arm.name == PLAIN else signed(arm.differences[name]) for name in names]
    cost = arm.cost
    guided = "" if cost.guided_share is None else f"{100 * cost.guided_share:.0f}%"
    costs = [guided, f"{cost.fed_per_token:.1f}", f"{cost.time_ratio:.1f}"]
    return [f"`{arm.name}`", f"{arm.metrics['judge'].mean:+.3f}", *differences, f"{arm.perplexity:.2f}", *costs]


def signed(estimate: Estimate) -> str:
    """Mean and standard error."""
    return f"{estimate.mean:+.3f} ± {estimate.error:.3f}"


def findings(results: Results) -> str:
    """What the table shows, in figures."""
    by_name = {arm.name: arm for arm in results.arms}
    args, gate = by_name[ARGS], by_name[GATED]
    gain, kept = args.differences["judge"].mean, gate.differences["judge"].mean
    shares = f"{100 * kept / gain:.0f}% of ARGS's gain and guides {100 * (gate.cost.guided_share or 0):.0f}%"
    return FINDINGS.format(shares=shares)


def write(results: Results, document: Path) -> None:
    """The section and its figure."""
    save_plot(results, document.parent / IMAGE)
    text = with_section(document.read_text(encoding="utf-8"), section(results))
    with atomic_path(document, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/guidance_quality"), help="second model and texts")
    parser.add_argument("--prompts", type=int, default=200, help="of the demo's (200)")
    parser.add_argument("--seeds", type=int, default=3, help="texts of each prompt and policy (3)")
    parser.add_argument("-n", "--tokens", type=int, default=48, help="of each text (48)")
    parser.add_argument("--pairs", type=int, default=3000, help="that the second model is taught (3000)")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the section and its figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, judge, write."""
    args = parse_arguments(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    results = run(args.work, args.prompts, args.seeds, args.tokens, args.pairs)
    if args.json:
        with atomic_path(args.json, force=True) as temporary:
            temporary.write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
    if args.document:
        write(results, args.document)
    else:
        print(section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
