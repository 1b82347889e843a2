"""Changed Llamas with and without our validator in front: ``python -m tests.gguf.fuzz --help``.

The wide fuzzer is :mod:`tests.fuzz` (``make fuzz``); this one shows what the validator is for. Each file is opened and
used in a child process. Good ends: it works, or is refused with an OtterError of one line. Bad ends: a signal, an
abort, another exception, more than 10 seconds, more memory than twice the file and 256 MB. Bad files are kept. The same
is shown without our validator, where llama.cpp sees the files as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tests import peak_memory
from tests.gguf.gguf_builder import Gguf, toy_gpt2, toy_llama
from tests.gguf.mutants import mutants
from tests.gguf.toy_files import insertion, write_base, write_sidecar

REPOSITORY = Path(__file__).parents[2]
MAX_SECONDS = 10.0
SPARE_MEMORY = 256 << 20
GOOD = ("accepted", "refused")


class Input(NamedTuple):
    """A good file to change; with ``base`` it is the sidecar of that."""

    name: str
    good: Gguf
    base: Path | None = None


def inputs(folder: Path) -> list[Input]:
    """One of each kind."""
    base = write_base(folder / "base.gguf")
    sidecar = write_sidecar(folder / "toy.otter.gguf", base)
    return [Input("llama", toy_llama()), Input("gpt2", toy_gpt2()), Input("sidecar", Gguf.read(sidecar), base)]


# ---- the process that opens files ------------------------------------------------------------------------------


class Worker:
    """Opens files, one at a time; a new process takes over where one was lost."""

    def __init__(self, *, trusting: bool = False) -> None:
        self._command = [sys.executable, "-m", "tests.gguf.fuzz", "--worker", *(["--trusting"] if trusting else [])]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1"},
        )

    def open(self, base: Path, sidecar: Path | None = None) -> str:
        """``accepted``, ``refused``, or what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(base), str(sidecar) if sidecar else None]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], MAX_SECONDS)
        answer = self._process.stdout.readline() if ready else ""
        if not answer:
            return self._lost(hung=not ready)
        end, used = json.loads(answer)
        limit = 2 * (sidecar or base).stat().st_size + SPARE_MEMORY
        return f"{used >> 20} MB of memory" if used > limit else str(end)

    def _lost(self, hung: bool) -> str:
        self.close()
        code = self._process.returncode
        self._process = self._start()
        if hung:
            return f"more than {MAX_SECONDS:g} seconds"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self.close()


def work(trusting: bool) -> None:
    """Answer line by line: how it ended, and bytes of memory that it took at most."""
    if trusting:
        _skip_checks()
    for line in sys.stdin:
        base, sidecar = json.loads(line)
        before = peak_memory.reset_peak()
        end = use(base, sidecar, several_lines=trusting)
        print(json.dumps([end, max(0, peak_memory.peak() - before)]), flush=True)


def use(base: str, sidecar: str | None, *, several_lines: bool = False) -> str:
    """Open a model and try what reads its files. ``several_lines``: llama.cpp's own words may have as many."""
    from otter_gguf import Otter, OtterError

    try:
        options: dict[str, Any] = {"n_ctx": 64, "n_batch": 32, "n_ubatch": 16, "n_threads": 1, "n_seq_max": 2}
        with Otter(base, otter=sidecar, **options) as llm:
            tokens = llm.tokenize("Hello ü 1\n <s> otter", special=True)[:16]
            llm.detokenize(tokens, special=True)
            llm.create_completion(tokens or [0], max_tokens=2, temperature=0.0)
            if sidecar:
                llm.score("He", "llo")
    except OtterError as error:
        return "refused" if several_lines or "\n" not in str(error) else f"not one line: {error!r}"
    except BaseException as error:
        return f"foreign {error!r}"
    return "accepted"


def _skip_checks() -> None:
    """Let llama.cpp see every file as it is."""
    from otter_gguf import model
    from otter_gguf.loading import ModelFiles

    def trust(path: str, otter: str | None = None) -> ModelFiles:
        return ModelFiles(path, otter or "", insertion() if otter else None, {})

    vars(model)["check_files"] = trust


# ---- many files ------------------------------------------------------------------------------------------------


def survive(given: Input, count: int, seed: int, folder: Path, *, trusting: bool = False) -> Iterator[tuple[str, Path]]:
    """How each of so many mutants ended, and its file, which is there until the next one."""
    with Worker(trusting=trusting) as worker:
        path = folder / "mutant.gguf"
        for raw in islice(mutants(given.good, seed), count):
            path.write_bytes(raw)
            yield worker.open(given.base, path) if given.base else worker.open(path), path


def fuzz(given: Input, count: int, seed: int, keep: Path | None, *, trusting: bool = False) -> Counter[str]:
    """Print a line; bad files are kept where there is a folder for them."""
    ends: Counter[str] = Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="otter-gguf-fuzz-") as scratch:
        for number, (end, path) in enumerate(survive(given, count, seed, Path(scratch), trusting=trusting)):
            ends[end] += 1
            if end not in GOOD and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                path.replace(keep / f"{given.name}-{seed}-{number}.gguf")
    bad = {end: n for end, n in sorted(ends.items()) if end not in GOOD}
    share = 100 * sum(bad.values()) / count
    told = "; ".join(f"{n} {end}" for end, n in bad.items()) or "none"
    print(
        f"{given.name:8} {count:7} mutants in {time.monotonic() - begin:4.0f} s: {ends['accepted']} accepted, "
        f"{ends['refused']} refused, bad {share:.2f}%: {told}",
        flush=True,
    )
    return ends


def main() -> int:
    """Exit code 1 if a file ended badly with our validator in front."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000, metavar="N", help="of all kinds (default: 20000)")
    parser.add_argument("--without", type=int, default=2_000, metavar="N", help="without validator (default: 2000)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--keep", type=Path, default=REPOSITORY / "build" / "fuzz", help="where bad files go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--trusting", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.trusting)
        return 0
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="otter-gguf-fuzz-") as folder:
        kinds = inputs(Path(folder))
        print(f"with the validator (seed {seed})")
        ends = sum((fuzz(kind, -(-args.mutants // len(kinds)), seed, args.keep) for kind in kinds), Counter[str]())
        print("without the validator")
        for kind in kinds:
            fuzz(kind, -(-args.without // len(kinds)), seed, None, trusting=True)
    bad = sum(n for end, n in ends.items() if end not in GOOD)
    print(f"{sum(ends.values())} files, {bad} ended badly" + (f": {args.keep}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
