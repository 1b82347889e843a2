"""What each weight type costs: exactness of bases, errors of sidecars. Prints the tables of docs/quantization.md.

    python benchmarks/weight_types.py                  # some minutes on one core

Bases: a random Llama with rows of 256 in every type, its logits with an insertion against stock llama.cpp's. Sidecars:
the demo's, made from its adapter in F32 and quantized from there, rewards of every token of held-out story pairs; and
a random one whose rows fit the blocks of 256. Flips: pairs that F32 ranks one way and the type the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import numpy.typing as npt
from otter_gguf.converters.adapter import convert_adapter
from tqdm import tqdm

from benchmarks import synthetic
from benchmarks.demo_model.stories import preference_pairs
from otter_gguf import Otter
from otter_gguf.config import BaseGeometry, InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.options import LoadOptions
from otter_gguf.quantization import QuantizationPlan, QuantizeOptions, quantize
from otter_gguf.verify import verify

Float64 = npt.NDArray[np.float64]

GEOMETRY = synthetic.Geometry(BaseGeometry("llama", 2, 256, 4, 2, 64, 256, 320), False, 512, 10000.0, 0.0)
"""Every matrix of the base has rows of 256, every one inserted by CONFIG rows of 512: all types fit."""
CONFIG = InsertionConfig.uniform(GEOMETRY.base, 256, 2, 256)

BASE_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"),
    *("IQ4_XS", "IQ4_NL", "IQ3_S", "MXFP4_MOE"),
)
SIDECAR_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q8_0 --pure", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_XS"),
    *("IQ4_NL", "Q3_K", "Q2_K"),
)
"""As ``otter-gguf quantize`` takes them."""
PAIR_SEED = 20261  # of no pair that the demo was trained or reported on
CONTEXT = 512
FEW = 100
"""Pairs whose tokens are enough for an error."""


@dataclass(frozen=True)
class BaseRow:
    """A base in one type."""

    type: str
    tensor_types: tuple[str, ...]
    mib: float
    logits: int
    differing: int


@dataclass(frozen=True)
class SidecarRow:
    """The sidecars in one type; errors are RMSE over standard deviation in F32."""

    type: str
    tensor_types: tuple[str, ...]
    """Of the demo's sidecar, whose rows are no multiples of 256."""
    mib: float
    error: float
    weights_error: float
    """The weights' rounding alone: the same values in F32, so that ggml does not round what they meet to 8 bits too."""
    flips: int
    random_error: float


@dataclass(frozen=True)
class Rewards:
    """Of every token of the texts, and of their ends."""

    tokens: Float64
    margins: Float64
    """Chosen minus rejected, one a pair."""


def base_rows(folder: Path, n_logits: int) -> Iterator[BaseRow]:
    """Quantize the random base into every type and verify it."""
    source, sidecar = _random_files(folder)
    options = LoadOptions(n_threads=1, n_ctx=CONTEXT)
    for type in BASE_TYPES:
        path = folder / f"base-{type}.gguf"
        plan = quantize(source, path, QuantizeOptions(type, n_threads=1, pure=type == "MXFP4_MOE"))
        result = verify(path, sidecar, min_logits=n_logits, options=options)
        differing = sum(comparison.differing for comparison in result.comparisons)
        yield BaseRow(type, _types(plan), plan.new_bytes / 2**20, result.logits_compared, differing)


def sidecar_rows(folder: Path, pairs: Sequence[dict[str, str]]) -> Iterator[SidecarRow]:
    """Quantize both sidecars into every type and compare their rewards with F32's."""
    demo, exact = demo_files(), folder / "demo-F32.otter.gguf"
    with BaseFiles.open(demo.base) as base:
        convert_adapter(demo.adapter, exact, base, outtype="f32")
    wanted, measured = rewards(demo.base, exact, pairs), dict[tuple[str, ...], tuple[float, float, int]]()
    few = pairs[:FEW]
    random_base, random_exact = _random_files(folder)
    random_wanted = rewards(random_base, random_exact, few[:10]).tokens
    for type in SIDECAR_TYPES:
        options = QuantizeOptions(type.split()[0], n_threads=1, pure=type.endswith("--pure"))
        path, plain, random_path = (folder / f"{name}-{type}" for name in ("demo", "plain", "random"))
        plan = quantize(exact, path, options)
        types = _types(plan)
        if types not in measured:  # the demo's rows fit no block of 256: several types give it the same
            quantize(path, plain, QuantizeOptions("F32", n_threads=1, allow_requantize=True))
            found, rounded = rewards(demo.base, path, pairs), rewards(demo.base, plain, few).tokens
            flips = int((np.sign(found.margins) != np.sign(wanted.margins)).sum())
            weights_error = relative_error(rounded, wanted.tokens[: rounded.size])
            measured[types] = relative_error(found.tokens, wanted.tokens), weights_error, flips
        quantize(random_exact, random_path, options)
        random_error = relative_error(rewards(random_base, random_path, few[:10]).tokens, random_wanted)
        yield SidecarRow(type, types, plan.new_bytes / 2**20, *measured[types], random_error)


def rewards(base: Path, sidecar: Path, pairs: Sequence[dict[str, str]]) -> Rewards:
    """Rewards of all texts of the pairs."""
    tokens: list[npt.NDArray[np.float32]] = []
    margins = []
    with Otter(base, otter=sidecar, n_ctx=CONTEXT, n_threads=1) as llm:
        for pair in pairs:
            scores = [llm.score(pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
            tokens += [score.rewards[:, 0] for score in scores]
            margins.append(scores[0].reward - scores[1].reward)
    return Rewards(np.concatenate(tokens).astype(np.float64), np.array(margins, np.float64))


def relative_error(found: Float64, wanted: Float64) -> float:
    """RMSE divided by the standard deviation of what is wanted, which no constant can make small."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def _random_files(folder: Path) -> tuple[Path, Path]:
    base, sidecar = folder / "base.gguf", folder / "random.otter.gguf"
    if not sidecar.exists():
        synthetic.write_base(base, GEOMETRY, "F32", 0)
        synthetic.write_sidecar(sidecar, base, CONFIG, "F32", 0)
    return base, sidecar


def _types(plan: QuantizationPlan) -> tuple[str, ...]:
    """Of the matrices: what is not F32, unless all is."""
    types = tuple(dict.fromkeys(row.type for row in plan.sizes() if row.new_tensors))
    return tuple(type for type in types if type != "F32") or types


def print_tables(bases: Sequence[BaseRow], sidecars: Sequence[SidecarRow], n_pairs: int, n_tokens: int) -> None:
    """Markdown."""
    print("| base | tensors | MiB | logits compared | differing |\n|---|---|--:|--:|--:|")
    for base in bases:
        types = ", ".join(base.tensor_types)
        print(f"| {base.type} | {types} | {base.mib:.2f} | {base.logits:,} | {base.differing} |")
    print(f"\n{n_tokens:,} tokens, {n_pairs:,} pairs\n")
    head = (
        "sidecar",
        "demo's matrices",
        "MiB",
        "reward error",
        "of the weights alone",
        "flips",
        "error, random weights",
    )
    print(f"| {' | '.join(head)} |\n|---|---|--:|--:|--:|--:|--:|")
    for row in sidecars:
        flips = f"{row.flips / n_pairs:.2%}"
        types = ", ".join(row.tensor_types)
        errors = f"{row.error:.3%} | {row.weights_error:.3%} | {flips} | {row.random_error:.2%}"
        print(f"| {row.type} | {types} | {row.mib:.2f} | {errors} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=500, help="story pairs (default: %(default)s)")
    parser.add_argument("--logits", type=int, default=1_000_000, help="of each base, at least (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON for machines")
    args = parser.parse_args()
    pairs = list(preference_pairs(PAIR_SEED, args.pairs, "B"))
    with tempfile.TemporaryDirectory(prefix="otter-gguf-") as name:
        folder = Path(name)
        bases = list(tqdm(base_rows(folder, args.logits), "Bases", len(BASE_TYPES), disable=None))
        sidecars = list(tqdm(sidecar_rows(folder, pairs), "Sidecars", len(SIDECAR_TYPES), disable=None))
        demo = demo_files()
        n_tokens = rewards(demo.base, demo.sidecar, pairs).tokens.size
    if args.json:
        tables = {"bases": list(map(asdict, bases)), "sidecars": list(map(asdict, sidecars))}
        print(json.dumps({"pairs": len(pairs), "tokens": n_tokens, **tables}, indent=1))
    else:
        print_tables(bases, sidecars, len(pairs), n_tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
