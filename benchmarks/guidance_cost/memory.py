"""Memory of each way of guiding, beyond plain decoding."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.report import anonymous_memory
from otter_gguf import Otter
from otter_gguf.guidance.args import ARGS

from .settings import CANDIDATES, SIDECAR_TYPES, Files, Settings, say

KINDS = ("plain", *SIDECAR_TYPES, "second")
_BUFFER = re.compile(r"(model|KV|compute|output) buffer size = +([\d.]+) MiB")


def measure_memory(work: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """MiB of a process that decodes plainly, and what each way of guiding adds: buffers by llama.cpp's log, and
    resident memory. Each in a process of its own."""
    found = {}
    for kind in KINDS:
        say(f"memory: {kind}")
        options = [f"--{name}={getattr(settings, name)}" for name in ("geometry", "context", "threads", "seed")]
        command = [sys.executable, "-m", "benchmarks.guidance_cost", "--work", str(work), *options, "--kind", kind]
        root = Path(__file__).resolve().parents[1]
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        child = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment)
        found[kind] = dict(json.loads(child.stdout))
    plain = found["plain"]
    return {
        kind: parts if kind == "plain" else {name: value - plain[name] for name, value in parts.items()}
        for kind, parts in found.items()
    }


def memory_of(kind: str, files: Files, settings: Settings) -> dict[str, float]:
    """The child of :func:`measure_memory`: a long prompt, then ARGS. Weights are read, not mapped: all is resident."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("otter_gguf").addHandler(handler)
    options = {**settings.load_options, "n_ctx": settings.context, "n_seq_max": CANDIDATES, "use_mmap": False}
    sidecar = files.sidecar(kind) if kind in SIDECAR_TYPES else None
    with ExitStack() as stack:
        llm = stack.enter_context(Otter(files.base, otter=sidecar, verbose=True, **options))
        second = None
        if kind == "second":
            second = stack.enter_context(Otter(files.second, otter=files.second_head, verbose=True, **options))
        prompt = np.random.default_rng(0).integers(0, llm.n_vocab, min(512, settings.context - 8)).tolist()
        guidance = None if kind == "plain" else ARGS(n_candidates=CANDIDATES)
        steps = llm.generate(prompt, guidance=guidance, reward_model=second, temperature=0)
        for _ in zip(range(4), steps, strict=False):
            pass
        return {**buffers(lines), "resident": anonymous_memory()}


def buffers(lines: Sequence[str]) -> dict[str, float]:
    """MiB of weights, KV caches, and compute and output buffers, from llama.cpp's log."""
    names = {"model": "weights", "KV": "KV cache", "compute": "compute", "output": "compute"}
    sizes = dict.fromkeys(names.values(), 0.0)
    for line in lines:
        match = _BUFFER.search(line)
        if match:
            sizes[names[match[1]]] += float(match[2])
    return {**sizes, "counted": sum(sizes.values())}
