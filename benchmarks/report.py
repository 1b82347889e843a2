"""Measure what the README and docs/benchmarks.md claim, and write docs/benchmarks.md.

    python benchmarks/report.py --output docs/benchmarks.md

Speed and memory on random weights of Llama 3.2 1B's geometry (benchmarks/synthetic.py), rounding errors on the shipped
demo model. About five minutes on two quiet cores and 2 GB of disk; speeds are ratios of neighbours in one run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from otter_gguf.converters.adapter import convert_adapter

from benchmarks import synthetic
from benchmarks.guidance_cost.report import HEADING, with_section
from otter_gguf import Otter, _native
from otter_gguf.bench import Bench, BenchOptions, bench
from otter_gguf.config import InsertionConfig
from otter_gguf.demo import demo_files
from otter_gguf.gguf.base import BaseFiles

SIDECAR_TYPES = ("Q8_0", "Q4_0")
RECOMMENDED = "Q8_0"
RECOMMENDATION = """Recommended: Q8_0 (what `--outtype auto` writes);
beside a Q4_0 base, where decoding speed counts, Q4_0 (`--outtype q4_0`): what each rounds away stands below."""
SCORED_TOKENS = 8000
MIB = 2**20

Float32 = npt.NDArray[np.float32]


def config_1b() -> InsertionConfig:
    """The insertion that the figures are for: width 64, one KV head, inner size 256, everywhere."""
    return InsertionConfig.uniform(synthetic.GEOMETRIES["1b"].base, 64, 1, 256)


# ---- speed -----------------------------------------------------------------------------------------------------


def measure_speed(folder: Path, what: BenchOptions) -> list[tuple[str, Bench]]:
    """The base in Q4_0 with a sidecar of each type."""
    base = folder / "base.gguf"
    synthetic.write_base(base, synthetic.GEOMETRIES["1b"], "Q4_0", 0)
    rows = []
    for type in SIDECAR_TYPES:
        sidecar = folder / f"{type}.otter.gguf"
        synthetic.write_sidecar(sidecar, base, config_1b(), type, 0)
        rows.append((type, bench(base, sidecar, what=what, progress=say)))
    return rows


def speed_table(rows: Sequence[tuple[str, Bench]]) -> Iterator[str]:
    """Markdown lines."""
    yield "| sidecar | MiB | floor | decode ratio | quartiles | prefill ratio | quartiles | Python's share of a step |"
    yield "|---|---|---|---|---|---|---|---|"
    for type, result in rows:
        data = result.to_dict()
        cells = [type, f"{result.otter_bytes / MIB:.1f}", f"{result.floor:.3f}"]
        for test in ("decode", "prefill"):
            low, high = data[test]["ratio_quartiles"]
            cells += [f"**{data[test]['ratio']:.3f}**", f"{low:.3f} to {high:.3f}"]
        yield f"| {' | '.join([*cells, f'{100 * (result.python_share or 0):.1f}%'])} |"


# ---- memory ----------------------------------------------------------------------------------------------------


def measure_score_memory(folder: Path) -> dict[str, float]:
    """MiB that scoring a long text needs beyond the weights: KV cache, and all else at its peak; in a process apart."""
    command = [sys.executable, __file__, "--score-memory", str(folder)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def score_memory(folder: Path) -> dict[str, float]:
    """The child of :func:`measure_score_memory`."""
    with Otter(folder / "base.gguf", otter=folder / f"{RECOMMENDED}.otter.gguf", n_ctx=256, n_seq_max=1) as llm:
        before, n_ctx = anonymous_memory(), SCORED_TOKENS + 192
        context = _native.Context(llm.model, n_ctx=n_ctx)
        peak, done = [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], anonymous_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        context.score(np.arange(SCORED_TOKENS, dtype=np.int32) % llm.n_vocab)
        done.set()
        watcher.join()
        base = config_1b().base
        kv = n_ctx * base.n_layer * (base.n_head_kv + 1) * base.head_dim * 2 * 2 / MIB
        return {"kv_cache": kv, "beyond": peak[0] - before - kv}


def anonymous_memory() -> float:
    """Resident anonymous memory of this process in MiB: without mapped weights."""
    return mib_of("RssAnon", Path("/proc/self/status").read_text())


def mib_of(entry: str, status: str) -> float:
    """An entry of a process's status in MiB; 0 where there is none."""
    match = re.search(rf"{entry}:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else 0.0


def measure_convert_memory(folder: Path) -> float:
    """Peak MiB of the process that converts an adapter of the 1b geometry."""
    write_adapter(folder / "adapter", config_1b())
    target = folder / "converted.otter.gguf"
    command = ["convert", str(folder / "adapter"), "--base", str(folder / "base.gguf"), "-o", str(target)]
    program = (
        "import sys; from otter_gguf.cli.main import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], check=True, capture_output=True, text=True)
    # Not getrusage: Linux counts what the parent had resident when it forked.
    return mib_of("VmHWM", done.stdout)


def write_adapter(folder: Path, config: InsertionConfig) -> None:
    """An adapter checkpoint of random weights (docs/architecture.md)."""
    base, e = config.base, config.width
    d, n, f = base.n_embd, base.head_dim, base.n_ff
    shapes: dict[str, tuple[int, ...]] = {"model.norm": (e,), "heads.reward": (1, e)}
    for layer, (k, inner) in enumerate(zip(config.n_head_kv, config.n_ff, strict=True)):
        q = base.group * k
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + "input_layernorm": (e,), prefix + "post_attention_layernorm": (e,)}
        shapes |= {prefix + "self_attn.q_proj": (n * q, d + e), prefix + "self_attn.k_proj": (n * k, d + e)}
        shapes |= {prefix + "self_attn.v_proj": (n * k, d + e), prefix + "self_attn.o_proj": (e, n * (base.n_head + q))}
        shapes |= {prefix + "mlp.gate_proj": (inner, d + e), prefix + "mlp.up_proj": (inner, d + e)}
        shapes |= {prefix + "mlp.down_proj": (e, f + inner)}
    rng = np.random.default_rng(0)
    tensors = {f"{name}.otter.weight": rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["heads.reward.otter.bias"] = np.zeros(1, np.float32)
    folder.mkdir()
    save_file(tensors, folder / "otter_model.safetensors")
    data = {
        "format": "otter-adapter",
        "version": 1,
        "insertion": config.to_dict(),
        "base_model_name_or_path": "synthetic",
    }
    (folder / "otter_config.json").write_text(json.dumps(data))


# ---- errors ----------------------------------------------------------------------------------------------------


def measure_errors(folder: Path) -> list[tuple[str, float, float, int]]:
    """(what, relative RMSE, largest difference in deviations, tokens) of the demo's rewards against F32 throughout."""
    demo = demo_files()
    texts = [pair.prompt + response for pair in demo.load_pairs() for response in (pair.chosen, pair.rejected)][:60]
    sidecars = {}
    with BaseFiles.open(demo.base) as base:
        for type in ("f32", "f16", "q8_0", "q4_0"):
            sidecars[type] = folder / f"demo-{type}.otter.gguf"
            convert_adapter(demo.adapter, sidecars[type], base, outtype=type)
    exact_cache = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    exact = demo_rewards(texts, sidecars["f32"], **exact_cache)
    rows = []
    for type in ("f16", "q8_0", "q4_0"):
        rows.append((f"sidecar {type.upper()}", demo_rewards(texts, sidecars[type], **exact_cache)))
    rows.append(("KV cache F16", demo_rewards(texts, sidecars["f32"], flash_attn="off")))
    rows.append(("KV cache F16, flash attention", demo_rewards(texts, sidecars["f32"], flash_attn="on")))
    deviation = exact.std()
    return [
        (
            what,
            float(np.sqrt(np.mean((r - exact) ** 2)) / deviation),
            float(np.abs(r - exact).max() / deviation),
            len(r),
        )
        for what, r in rows
    ]


def demo_rewards(texts: Sequence[str], sidecar: Path, **options: Any) -> Float32:
    """Rewards of every token of the texts, one after the other."""
    with Otter(demo_files().base, otter=sidecar, n_ctx=512, n_seq_max=1, n_threads=1, **options) as llm:
        return np.concatenate([llm.score(text).rewards[:, 0] for text in texts])


# ---- document --------------------------------------------------------------------------------------------------


TEMPLATE = """# Benchmarks

Written by `python benchmarks/report.py --output docs/benchmarks.md`; do not edit by hand.

{date}, {cpu}, {cores} cores, {system}; llama.cpp {commit}.

## Speed

Random weights of Llama 3.2 1B's geometry, base Q4_0; inserted in every layer: width 64, one KV head, inner size 256;
one value head. Ratio: time with rewards over time of the same base without, median of neighbouring pairs in one
process, mean of two rounds with either side loaded first ({n_gen} single tokens, {n_prompt} prompts of {prompt} tokens
a round). Floor: bytes of weights read a token, with over without. {recommendation}

{speed}

## Memory

At the same geometry:

| | MiB |
|---|---|
| peak of the process that converts an adapter ({million_params:.0f} million parameters) | {convert:.0f} |
| `score` of {scored} tokens: KV cache (F16) | {kv_cache:.0f} |
| `score` of {scored} tokens: all else beyond weights and KV cache, at the peak | {beyond:.0f} |

## Rounding

Rewards of the demo model against the same with an F32 sidecar and an F32 cache, in standard deviations of the reward.

| | relative RMSE | largest | tokens |
|---|---|---|---|
{errors}

## GPU

The CUDA build makes the same graph of ggml's own operations. It was configured, not run: its speed and its agreement
with the CPU are unmeasured.
"""


def document(folder: Path, what: BenchOptions) -> str:
    """The text of docs/benchmarks.md."""
    rows = measure_speed(folder, what)
    say("memory")
    memory = {"convert": measure_convert_memory(folder)}  # first: the peak is that of all children so far
    memory |= measure_score_memory(folder)
    say("rounding")
    errors = measure_errors(folder)
    return TEMPLATE.format(
        date=datetime.date.today().isoformat(),
        cpu=processor(),
        cores=os.cpu_count(),
        system=platform.system(),
        commit=_native.LLAMA_CPP_COMMIT,
        n_gen=what.n_gen * what.repetitions,
        n_prompt=what.repetitions,
        prompt=what.n_prompt,
        recommendation=RECOMMENDATION,
        speed="\n".join(speed_table(rows)),
        million_params=rows[0][1].otter_params / 1e6,
        scored=SCORED_TOKENS,
        errors="\n".join(f"| {what} | {100 * rmse:.2f}% | {100 * most:.2f}% | {n} |" for what, rmse, most, n in errors),
        **memory,
    )


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def say(message: str) -> None:
    """Progress on stderr."""
    print(f"measuring: {message}", file=sys.stderr, flush=True)


def with_other_sections(text: str, path: Path) -> str:
    """With the section on guided decoding that is there, which another script writes."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    _, found, after = old.partition(HEADING + "\n")
    return with_section(text, f"{HEADING}\n{after}") if found else text


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file (default: stdout)")
    parser.add_argument("--repetitions", type=int, default=5, help="prompts, and runs of 64 tokens")
    parser.add_argument("--score-memory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score_memory:
        print(json.dumps(score_memory(args.score_memory)))
        return 0
    with tempfile.TemporaryDirectory(prefix="otter-gguf-benchmarks-") as folder:
        text = document(Path(folder), BenchOptions(512, 64, args.repetitions))
    if args.output:
        args.output.write_text(with_other_sections(text, args.output), encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
