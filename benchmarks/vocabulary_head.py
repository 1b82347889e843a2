"""How well a vocabulary head ranks next tokens as the value head does, on the demo model's stories.

    python benchmarks/vocabulary_head.py                 # the distilled head, then the ablation; some minutes each
    python benchmarks/vocabulary_head.py --pairs 64 --held-out 8 --output trial.json
    python benchmarks/vocabulary_head.py --variants shipped --guide 200      # the demo's own heads; trains nothing

Value head and vocabulary head are trained together, with the package's own trainer, on the pairs that the demo's
insertion is trained on. On texts that neither saw, the base's most likely candidates at evenly spread positions are
scored by the vocabulary head and fed to the value head: rank correlation of both, and how often both put the same
candidate first; also where it matters, at positions where the candidates' rewards are far apart. The ablation
(``observed``) learns from trajectories alone: its one candidate is the token that the text goes on with. Needs the
``train`` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from otter_gguf.converters.adapter import convert_adapter
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.demo_model.insertion import RANK, RATE, fresh_insertion, rescaled, train_heads
from benchmarks.demo_model.steps import PAIR_SEED
from benchmarks.demo_model.stories import Group, preference_pairs
from otter_gguf import Otter, _native
from otter_gguf.demo import demo_files
from otter_gguf.demo.experiment import Continuation, Difference, Settings, Side, run_experiment
from otter_gguf.demo.judge import Judge
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.training import OtterModel, RewardDataset, tokenise_rows
from otter_gguf.training.base import load_base, load_tokenizer
from otter_gguf.training.data import collate
from otter_gguf.training.distillation import (
    Candidates,
    Distillation,
    DistillConfig,
    candidate_rewards,
    draw_positions,
    rank_correlation,
    top_candidates,
)

HELD_OUT_SEED = 778
FAR_APART = 0.2  # of the distance from the lowest to the highest reward that the value head can give


class ObservedToken(Distillation):
    """Learns from trajectories alone."""

    def propose(self, model: OtterModel, tokens: Tensor, position: Tensor, state: Tensor) -> Tensor:
        """The token that the text goes on with (N, m, 1)."""
        return tokens.gather(1, (position + 1).clamp_max(tokens.shape[1] - 1))[..., None]


VARIANTS = {"distilled": Distillation, "observed": ObservedToken}
SHIPPED = "shipped"
SHOWN = ("judge_mean", "judge_se", "judge_unseen_mean", "difference", "difference_se", "distinct_3", "ms_per_token")


@dataclass(frozen=True)
class Agreement:
    """Of score and reward, at some positions."""

    positions: int
    rank: float
    """Mean Spearman correlation over the candidates of a position."""
    top: float
    """Share of positions where both put the same candidate first."""


@dataclass(frozen=True)
class Figures:
    """Of one trained model on texts that it did not see."""

    accuracy: float
    """Value head: share of pairs whose chosen response ends with the higher reward."""
    prefix_accuracy: float
    """The same at every length of the shorter response."""
    spread: float
    """Standard deviation of raw rewards over the candidates of a position, as a share of that over positions."""
    all: Agreement
    upper_half: Agreement
    """Positions whose best and worst candidate are further apart than at the median position."""
    far_apart: Agreement
    """Positions where they are further apart than ``FAR_APART`` of the possible distance."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    defaults = DistillConfig()
    add("--pairs", type=int, default=3000, help="pairs to train on")
    add("--held-out", type=int, default=100, help="pairs of each group to measure on")
    add("--rate", type=float, default=RATE, help="peak learning rate")
    add("--rank", type=int, default=RANK, help="rank of the vocabulary head")
    add("--input", choices=("inserted", "base", "both"), default="both", help="the state that it reads")
    add("--candidates", type=int, default=defaults.candidates)
    add("--positions", type=int, default=defaults.positions)
    add("--share", type=float, default=defaults.share)
    add("--weight", type=float, default=defaults.weight)
    add("--head-only", action="store_true", help="only the vocabulary head learns from distillation")
    add("--variants", nargs="+", choices=(*VARIANTS, SHIPPED), default=list(VARIANTS), help="shipped: the demo's own")
    add("--guide", type=int, default=0, metavar="N", help="also continue N of the demo's prompts with each head")
    add("--guide-weight", type=float, default=Settings.weight, help="logits per unit of reward")
    add("--guide-candidates", type=int, nargs="+", default=[Settings.n_candidates], metavar="K")
    add("--seed", type=int, default=0)
    add("--output", type=Path, metavar="FILE", help="JSON with all figures")
    return parser.parse_args()


def train(args: argparse.Namespace, variant: str, data: RewardDataset) -> OtterModel:
    """A fresh insertion with both heads, trained as the demo's is."""
    model = fresh_insertion(load_base(demo_files().base), args.seed, args.rank, args.input)
    settings = DistillConfig(args.candidates, args.positions, args.share, args.weight, not args.head_only)
    train_heads(model, data, VARIANTS[variant](settings), args.rate, args.seed)
    return model


def shipped() -> OtterModel:
    """The demo's own."""
    files = demo_files()
    return OtterModel.from_pretrained(load_base(files.base), files.adapter)


@torch.no_grad()
def measure(model: OtterModel, data: RewardDataset, n_candidates: int, n_positions: int = 12) -> Figures:
    """Both heads on held-out pairs."""
    batches = [collate(data.rows[i : i + 10]) for i in range(0, len(data), 10)]
    correct, ahead, scores, raw = (
        torch.cat(x) for x in zip(*(_batch(model, b, n_candidates, n_positions) for b in batches), strict=True)
    )
    value = model.value_heads["reward"]
    reward = value.calibrated(raw[..., None]).squeeze(-1)
    distance = reward.amax(-1) - reward.amin(-1)
    correlation, same = rank_correlation(scores, raw), (scores.argmax(-1) == raw.argmax(-1)).double()

    def agreement(at: Tensor) -> Agreement:
        return Agreement(int(at.sum()), correlation[at].mean().item(), same[at].mean().item())

    return Figures(
        accuracy=correct.double().mean().item(),
        prefix_accuracy=ahead.double().mean().item(),
        spread=(raw.std(-1).mean() / raw.mean(-1).std()).item(),
        all=agreement(distance >= 0),
        upper_half=agreement(distance > distance.median()),
        far_apart=agreement(distance > FAR_APART * 2 * value.scale),
    )


def _batch(model: OtterModel, batch: dict[str, Tensor], n_candidates: int, n_positions: int) -> tuple[Tensor, ...]:
    """Of the pairs of a batch: chosen ahead at the end, and at each length; scores and raw rewards of candidates."""
    output = model(batch["input_ids"], use_cache=False, return_logits=False)
    n, start, length = len(batch["start"]), batch["start"], batch["length"]
    rewards = output.rewards[..., 0]
    last = rewards.gather(1, length[:, None] - 1).squeeze(1)
    place = torch.arange(rewards.shape[1])
    both = (place >= start[:, None]) & (place < torch.minimum(length[:n], length[n:])[:, None])
    position, mask = draw_positions(start[batch["row"]] - 1, length - 1, n_positions, training=False)
    state = output.final_state[torch.arange(len(position))[:, None], position]
    candidates = Candidates(position, top_candidates(model, state, n_candidates), mask)
    head = model.vocabulary_heads["next"]
    scores = head.raw(head(state), candidates.tokens)
    raw = candidate_rewards(model, batch["input_ids"], candidates).raw[..., 0]
    return last[:n] > last[n:], (rewards[:n] > rewards[n:])[both], scores[mask], raw[mask]


def held_out(tokenizer: PreTrainedTokenizerBase, group: Group, count: int) -> RewardDataset:
    """Pairs in the words of one group; the models are trained on group A."""
    return tokenise_rows(list(preference_pairs(HELD_OUT_SEED, count, group)), tokenizer)


def guide(model: OtterModel, count: int, weight: float, candidates: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Continue the demo's prompts plainly, by ARGS and by the vocabulary head, natively, judged by the demo's judge.

    Args:
        weight: logits per unit of reward, which runs from -1 to 1 as the demo's.
        candidates: numbers of candidates, for each of which everything is done.

    Returns:
        Figures of each side, by the number of candidates.
    """
    model.insertion = rescaled(model.insertion, 1.0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        adapter, sidecar = Path(folder) / "adapter", Path(folder) / "next.otter.gguf"
        model.save_pretrained(adapter)
        with BaseFiles.open(demo_files().base) as base:
            convert_adapter(adapter, sidecar, base, outtype="q8_0")
        for k in candidates:
            results[str(k)] = compare_guidance(sidecar, Settings(n_prompts=count, weight=weight, n_candidates=k))
    return results


def compare_guidance(sidecar: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """Figures of each side, with the difference to plain decoding, paired by prompt; printed as well."""
    files = demo_files()
    with Otter(files.base, otter=sidecar, n_ctx=512, n_threads=1, n_seq_max=settings.n_candidates) as llm:
        experiment = run_experiment(llm, files.load_prompts(), settings)
        texts = [continue_by_scores(llm, prompt, settings, i) for i, prompt in enumerate(experiment.prompts)]
    judges = [Judge.load("all"), Judge.load("unseen")]
    scored = Side(tuple(texts), *(tuple(judge.score(text.text) for text in texts) for judge in judges))
    sides = {"plain": experiment.plain, "ARGS": experiment.guided, "vocabulary head": scored}
    figures: dict[str, dict[str, float]] = {}
    for name, side in sides.items():
        difference = Difference.of(side.scores, experiment.plain.scores)
        figures[name] = {**side.to_dict(), "difference": difference.mean, "difference_se": difference.error}
        shown = "  ".join(f"{key} {figures[name][key]:.2f}" for key in SHOWN)
        print(f"  {settings.n_candidates:>3} candidates, {name:<15} {shown}")
    return figures


def continue_by_scores(llm: Otter, prompt: str, settings: Settings, index: int) -> Continuation:
    """One token a step: logits of the best candidates and their weighted scores, from one state."""
    context, draw = llm.context, np.random.default_rng(settings.seed + index)
    tokens = np.array(llm.tokenize(prompt), np.int32)
    context.clear()
    start = len(tokens)
    _feed(context, tokens, 0)
    taken: list[int] = []
    rewards: list[float] = []
    begin = time.perf_counter()
    while len(taken) < settings.max_tokens:
        candidates, logits = context.top_k(0, settings.n_candidates)
        scores = context.vocabulary_scores(0, 0, candidates)
        total = (logits + settings.weight * scores).astype(np.float64) / settings.temperature
        share = np.exp(total - total.max())
        token = int(draw.choice(candidates, p=share / share.sum()))
        if llm.model.is_eog(token):
            break
        _feed(context, np.array([token], np.int32), start + len(taken))
        taken.append(token)
        rewards.append(float(context.rewards()[0, 0]))
    seconds = time.perf_counter() - begin
    pieces = tuple(llm.model.token_bytes(token).decode("utf-8", "replace") for token in taken)
    return Continuation(pieces, tuple(rewards), seconds)


def _feed(context: _native.Context, tokens: npt.NDArray[np.int32], position: int) -> None:
    """Tokens behind those in the context, the last one as output."""
    count = len(tokens)
    positions = np.arange(position, position + count, dtype=np.int32)
    context.decode(tokens, positions, np.zeros(count, np.int32), np.arange(count) == count - 1)


def show(name: str, figures: Figures) -> None:
    """One line a group of positions."""
    shares = f"accuracy {figures.accuracy:.3f}, of prefixes {figures.prefix_accuracy:.3f}, spread {figures.spread:.2f}"
    print(f"{name}: {shares}")
    for label in ("all", "upper_half", "far_apart"):
        found: Agreement = getattr(figures, label)
        print(f"  {label:<11} {found.positions:>5} positions  rank {found.rank:6.3f}  same first {found.top:6.3f}")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(demo_files().base)
    data = tokenise_rows(list(preference_pairs(PAIR_SEED, args.pairs, "A")), tokenizer)
    results: dict[str, Any] = {"settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}}
    for variant in args.variants:
        started = time.monotonic()
        model = shipped() if variant == SHIPPED else train(args, variant, data)
        results[variant] = {"seconds": time.monotonic() - started}
        for group in ("A", "B"):
            figures = measure(model, held_out(tokenizer, group, args.held_out), args.candidates)
            results[variant][group] = asdict(figures)
            show(f"{variant}, words of group {group}, made in {results[variant]['seconds']:.0f} s", figures)
        if args.guide:
            results[variant]["guided"] = guide(model, args.guide, args.guide_weight, args.guide_candidates)
        if args.output:
            args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
