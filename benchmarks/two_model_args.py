"""ARGS with a second model as the guide, compared with ARGS by Otter's own rewards, in torch on the demo's stories.

    python benchmarks/two_model_args.py --work build/two_model_args          # some minutes a guide on one core

Guides: a head on the base's final state (`head`), the shipped insertion (`otter`), and a fine-tuned copy of the base
with a head (`full`): a model of its own that reads every candidate after the base has proposed it. All learn from the
same pairs with the same loss. Guidance weights, and learning rates but the shipped insertion's, are chosen in the same
way for each, on prompts and pairs that the figures are not taken from. Every step leaves its result in ``--work`` and
is not done again. Needs the ``train`` extra.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.demo_model.insertion import BATCH, TRAINED_SCALE
from benchmarks.demo_model.steps import PAIR_SEED
from benchmarks.demo_model.stories import preference_pairs
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.demo.experiment import Continuation, Difference, Side, standard_error
from otter_gguf.demo.judge import Judge
from otter_gguf.gguf.atomic import atomic_path
from otter_gguf.training import (
    OtterModel,
    OtterTrainer,
    RewardDataset,
    TrainConfig,
    geometry,
    insert,
    load,
    tokenise_rows,
)
from otter_gguf.training.base import load_base, load_tokenizer
from otter_gguf.training.full import full_reward_model
from otter_gguf.training.renamed import CACHE
from otter_gguf.training.runs import checkpoint_problem, checkpoints

HELD_OUT_SEED = 20251
HEAD = HeadConfig(input="base", activation="tanh", scale=(TRAINED_SCALE,))
RATES = {"head": (2e-3, 1e-2, 5e-2), "full": (1e-4, 3e-4, 1e-3)}
PART = 16  # prompts after which a result is kept
LEAST_DISTINCT = 0.75
"""A weight is refused where it lowers the share of different word triples below this part of plain decoding's."""


@dataclass(frozen=True)
class Settings:
    """What is run; every field is an option of the command line."""

    pairs: int = field(default=3000, metadata={"help": "preference pairs to learn from"})
    trial_pairs: int = field(default=240, metadata={"help": "pairs to try a learning rate with"})
    held_out: int = field(default=100, metadata={"help": "pairs to judge a learning rate and the guide by"})
    prompts: int = field(default=112, metadata={"help": "prompts that the figures are taken from"})
    tuning_prompts: int = field(default=16, metadata={"help": "other prompts, to choose the weight with"})
    max_tokens: int = field(default=48, metadata={"help": "tokens of a continuation at most"})
    candidates: int = field(default=10, metadata={"help": "tokens considered in a step; plain decoding: top-k"})
    temperature: float = field(default=0.8, metadata={"help": "of all"})
    weights: tuple[float, ...] = field(default=(2.0, 4.0, 8.0), metadata={"help": "guidance weights to choose from"})


# ---- decoding --------------------------------------------------------------------------------------------------


class Plain:
    """The base alone. The guides below add rewards of candidates."""

    def __init__(self, base: PreTrainedModel | OtterModel) -> None:
        self.base = base
        self.forwards = 0
        """Tokens that went through a model of the base's size since the prompt."""

    @property
    def parameters(self) -> int:
        """In memory."""
        return sum(parameter.numel() for parameter in self.base.parameters())

    def cached(self) -> dict[str, DynamicCache]:
        """The base's cache as its argument."""
        return {"cache" if isinstance(self.base, OtterModel) else CACHE: self.cache}

    def start(self, tokens: Tensor) -> Tensor:
        """Prompt (tokens) -> the base's logits (V) behind it."""
        self.cache = DynamicCache()
        logits: Tensor = self.base(tokens[None], **self.cached(), use_cache=True).logits
        return logits[0, -1]

    def rewards(self, candidates: Tensor) -> Tensor:
        """Of the text with each of the candidates (k): zero."""
        return torch.zeros(len(candidates))

    def take(self, candidates: Tensor, index: int) -> Tensor:
        """Go on with one of the candidates; the base's logits (V) behind it."""
        self.forwards += 1
        token = candidates[index].view(1, 1)
        logits: Tensor = self.base(token, **self.cached(), use_cache=True).logits
        return logits[0, -1]


class OwnRewards(Plain):
    """One model: the pass that gives the rewards of the candidates gives the logits behind each of them too."""

    base: OtterModel

    def rewards(self, candidates: Tensor) -> Tensor:
        """(k) -> (k), all candidates in one batch."""
        self.forwards += len(candidates)
        self.cache.batch_select_indices(torch.zeros(len(candidates), dtype=torch.long))
        output = self.base(candidates[:, None], cache=self.cache, use_cache=True)
        self.logits = output.logits[:, -1]
        return output.rewards[:, -1, 0]  # type: ignore[no-any-return]

    def take(self, candidates: Tensor, index: int) -> Tensor:
        """No pass is needed: the winner's was made already."""
        self.cache.batch_select_indices(torch.tensor([index]))
        logits: Tensor = self.logits[index]
        return logits


class SecondModel(Plain):
    """A reward model beside the base: it reads the candidates in one batch, with a cache of its own."""

    def __init__(self, base: PreTrainedModel, guide: OtterModel) -> None:
        super().__init__(base)
        self.guide = guide

    @property
    def parameters(self) -> int:
        """Of both."""
        return super().parameters + sum(parameter.numel() for parameter in self.guide.parameters())

    def start(self, tokens: Tensor) -> Tensor:
        """Both read the prompt."""
        self.guide_cache = DynamicCache()
        self.guide(tokens[None], cache=self.guide_cache, use_cache=True, return_logits=False)
        return super().start(tokens)

    def rewards(self, candidates: Tensor) -> Tensor:
        """(k) -> (k)."""
        self.forwards += len(candidates)
        self.guide_cache.batch_select_indices(torch.zeros(len(candidates), dtype=torch.long))
        output = self.guide(candidates[:, None], cache=self.guide_cache, use_cache=True, return_logits=False)
        return output.rewards[:, -1, 0]  # type: ignore[no-any-return]

    def take(self, candidates: Tensor, index: int) -> Tensor:
        """The guide keeps the winner; the base has yet to read it."""
        self.guide_cache.batch_select_indices(torch.tensor([index]))
        return super().take(candidates, index)


@torch.no_grad()
def decode(
    decoder: Plain, prompt: Tensor, weight: float, settings: Settings, end: int, seed: int
) -> tuple[list[int], float]:
    """ARGS stochastic (arXiv 2402.01694): draw from softmax((logit + weight * reward) / temperature).

    Returns:
        The tokens, without the end-of-text token, and the sum of their log-probabilities under the base in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    logits, log_probability = decoder.start(prompt), 0.0
    while len(tokens) < settings.max_tokens:
        best = logits.topk(settings.candidates)
        scores = best.values + weight * decoder.rewards(best.indices)
        index = int(torch.multinomial(torch.softmax(scores / settings.temperature, 0), 1, generator=generator))
        token = int(best.indices[index])
        if token == end:
            break
        tokens.append(token)
        log_probability += float(torch.log_softmax(logits, 0)[token])
        if len(tokens) < settings.max_tokens:
            logits = decoder.take(best.indices, index)
    return tokens, log_probability


def decode_part(
    decoder: Plain,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    first: int,
    weight: float,
    settings: Settings,
) -> dict[str, Any]:
    """Continue some prompts, the first of them with seed ``first``: texts, and what they took."""
    decoder.forwards, texts, emitted, log_probability = 0, [], 0, 0.0
    end = int(tokenizer.eos_token_id)
    for seed, prompt in enumerate(prompts, first):
        ids = torch.tensor(tokenizer(prompt)["input_ids"])
        tokens, value = decode(decoder, ids, weight, settings, end, seed)
        texts.append(str(tokenizer.decode(ids.tolist() + tokens))[len(str(tokenizer.decode(ids.tolist()))) :])
        emitted += len(tokens)
        log_probability += value
    return {"texts": texts, "tokens": emitted, "log_probability": log_probability, "forwards": decoder.forwards}


def judged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The judge's scores of all texts, and means over their tokens."""
    texts = [text for part in parts for text in part["texts"]]
    total = {key: sum(part[key] for part in parts) for key in ("tokens", "log_probability", "forwards")}
    side = Side(
        continuations=tuple(Continuation((text,), (), 0.0) for text in texts),
        scores=tuple(Judge.load("all").score(text) for text in texts),
        unseen_scores=tuple(Judge.load("unseen").score(text) for text in texts),
    )
    return {
        "scores": side.scores,
        "unseen_scores": side.unseen_scores,
        "distinct_3": side.distinct,
        "tokens": total["tokens"],
        "log_probability": total["log_probability"] / max(1, total["tokens"]),
        "forwards_per_token": total["forwards"] / max(1, total["tokens"]),
    }


# ---- guides ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """Where results are kept, and what every guide is made of."""

    work: Path
    settings: Settings

    def base(self) -> PreTrainedModel:
        """The demo's base in F32, as its Q8_0 file has it."""
        base: PreTrainedModel = load_base(demo_files().base).eval()
        return base

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return load_tokenizer(demo_files().base)

    def pairs(self, seed: int, count: int) -> RewardDataset:
        """Pairs in the words of group A, as the shipped insertion was taught with."""
        return tokenise_rows(list(preference_pairs(seed, count, "A")), self.tokenizer())

    def held_out(self) -> RewardDataset:
        """Other pairs in the same words."""
        return self.pairs(HELD_OUT_SEED, self.settings.held_out)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that name; made if it is not there."""
        path = self.work / f"{name}.json"
        if not path.exists():
            result = make()
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(result))
        return dict(json.loads(path.read_text()))

    def untrained(self, guide: str) -> OtterModel:
        """A reward model of its own, or heads on the base's state alone."""
        if guide == "full":
            return full_reward_model(self.base(), [HEAD], seed=PAIR_SEED)
        base = self.base()
        return insert(base, InsertionConfig.uniform(geometry(base), 0, 0, heads=(HEAD,)), seed=PAIR_SEED)

    def train(self, guide: str, rate: float, data: RewardDataset, name: str) -> OtterTrainer:
        """One pass as for the shipped insertion, from the newest checkpoint of a run that was cut off."""
        folder = self.work / name
        arguments = TrainConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,  # share of all steps
            save_steps=10,
            save_total_limit=1,
            seed=PAIR_SEED,
            use_cpu=True,
            report_to="none",
        )
        trainer = OtterTrainer(self.untrained(guide), arguments, data, self.held_out())
        complete = any(checkpoint_problem(checkpoint) is None for checkpoint in checkpoints(folder))
        trainer.train(resume_from_checkpoint=True if complete else None)
        return trainer

    def try_rate(self, guide: str, rate: float) -> dict[str, Any]:
        """Share of held-out prefixes at which the kind response is ahead, after a short run."""
        data = self.pairs(PAIR_SEED, self.settings.trial_pairs)
        found = self.train(guide, rate, data, f"trial-{guide}-{rate:g}").evaluate()
        return {"rate": rate, "prefix_accuracy": found["eval_prefix_accuracy"], "accuracy": found["eval_accuracy"]}

    def best_rate(self, guide: str) -> float:
        """By held-out prefixes."""
        tried = [self.once(f"trial-{guide}-{rate:g}", partial(self.try_rate, guide, rate)) for rate in RATES[guide]]
        return float(max(tried, key=lambda trial: trial["prefix_accuracy"])["rate"])

    def trained(self, guide: str) -> OtterModel:
        """The guide, its rewards between -1 and 1."""
        if guide == "otter":
            return OtterModel.from_pretrained(self.base(), demo_files().adapter)
        folder = self.work / guide
        if not (folder / "otter_config.json").exists():
            data = self.pairs(PAIR_SEED, self.settings.pairs)
            model = self.train(guide, self.best_rate(guide), data, f"run-{guide}").otter
            model.insertion = dataclasses.replace(model.insertion, heads=(dataclasses.replace(HEAD, scale=(1.0,)),))
            model.save_pretrained(folder)
        return load(folder, None if guide == "full" else self.base())

    def decoder(self, guide: str) -> Plain:
        """Ready to decode."""
        if guide == "plain":
            return Plain(self.base())
        model = self.trained(guide).eval()
        return SecondModel(self.base(), model) if guide == "full" else OwnRewards(model)

    def ranking(self, guide: str) -> dict[str, Any]:
        """Ranking of pairs: in taught words (those that chose the learning rate), and in words never taught."""
        model, tokenizer = self.trained(guide).eval(), self.tokenizer()
        pairs = demo_files().load_pairs()[: self.settings.held_out]
        unseen = tokenise_rows([asdict(pair) for pair in pairs], tokenizer)
        arguments = TrainConfig(output_dir=str(self.work / "ranking"), use_cpu=True, report_to="none")
        found: dict[str, Any] = {}
        for words, data in (("taught", self.held_out()), ("unseen", unseen)):
            metrics = OtterTrainer(model, arguments, data, data).evaluate()
            found |= {f"{words}_{name}": metrics[f"eval_{name}"] for name in ("accuracy", "prefix_accuracy")}
        return found

    def side(self, guide: str, decoder: Plain, begin: int, end: int, weight: float) -> dict[str, Any]:
        """The demo's prompts ``begin`` to ``end``, continued and judged."""
        prompts, tokenizer, parts = demo_files().load_prompts(), self.tokenizer(), []
        for first in range(begin, end, PART):
            some = prompts[first : min(first + PART, end)]
            make = partial(decode_part, decoder, tokenizer, some, first, weight, self.settings)
            parts.append(self.once(f"{guide}-{weight:g}-{first}", make))
        return {"weight": weight, "parameters": decoder.parameters, **judged(parts)}

    def run(self, guide: str) -> dict[str, Any]:
        """Choose the weight on other prompts than the figures', then decode with it."""
        decoder, (n, m) = self.decoder(guide), (self.settings.prompts, self.settings.tuning_prompts)
        if guide == "plain":
            return self.side(guide, decoder, 0, n, 0.0)
        plain = self.side("plain", Plain(self.base()), n, n + m, 0.0)
        tuning = [self.side(guide, decoder, n, n + m, weight) for weight in self.settings.weights]
        weight = best_weight(tuning, LEAST_DISTINCT * plain["distinct_3"])
        ranking = self.once(f"{guide}-ranking", partial(self.ranking, guide))
        return {**self.side(guide, decoder, 0, n, weight), **ranking, "tuning": tuning}


def best_weight(tuning: Sequence[dict[str, Any]], least_distinct: float) -> float:
    """The best judge mean among the weights that keep the text varied enough; the smallest if none does."""
    varied = [side for side in tuning if side["distinct_3"] >= least_distinct] or [tuning[0]]
    return float(max(varied, key=lambda side: statistics.fmean(side["scores"]))["weight"])


# ---- report ----------------------------------------------------------------------------------------------------

NAMES = {
    "plain": "plain decoding",
    "head": "ARGS, head on the base's state",
    "otter": "ARGS, Otter insertion",
    "full": "ARGS, second model (fine-tuned copy)",
}


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown lines."""
    yield (
        "| | weight | judge, all words | unseen words | difference to plain | different triples | nats a token |"
        " tokens computed for one | million parameters |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for guide, result in results.items():
        cells = [NAMES[guide], f"{result['weight']:g}" if guide != "plain" else "-"]
        for key in ("scores", "unseen_scores"):
            cells.append(f"{statistics.fmean(result[key]):+.3f} ± {standard_error(result[key]):.3f}")
        difference = Difference.of(result["scores"], results["plain"]["scores"]) if "plain" in results else None
        cells.append(f"{difference.mean:+.2f} ± {difference.error:.2f}" if difference and guide != "plain" else "-")
        cells += [f"{100 * result['distinct_3']:.0f}%", f"{-result['log_probability']:.2f}"]
        cells += [f"{result['forwards_per_token']:.1f}", f"{result['parameters'] / 1e6:.2f}"]
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not been run yet; prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all results; one for each set of options")
    parser.add_argument("--guides", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for option in fields(Settings):
        several = isinstance(option.default, tuple)
        kind = type(option.default[0] if isinstance(option.default, tuple) else option.default)
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            type=kind,
            nargs="+" if several else None,
            default=option.default,
            help=f"{option.metadata['help']} (default: {option.default})",
        )
    args = parser.parse_args(arguments)
    values = {option.name: getattr(args, option.name) for option in fields(Settings)}
    settings = Settings(**{**values, "weights": tuple(args.weights)})
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log; stdout is for the result
        results = {guide: Lab(args.work, settings).run(guide) for guide in args.guides}
    print(json.dumps({"settings": asdict(settings), **results}) if args.json else "\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
