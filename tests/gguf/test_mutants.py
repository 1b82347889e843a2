"""Thousands of changed files through the public API: each ends in a model that works or in an OtterError.

The files are opened in a child process, so that an abort inside llama.cpp counts as a failure instead of ending the
test run. Without the validator a few percent of such files kill the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from tests.gguf.gguf_builder import Gguf, toy_gpt2, toy_llama
from tests.gguf.mutants import mutants
from tests.gguf.toy_files import write_base, write_sidecar

REPOSITORY = Path(__file__).parents[2]

# One line in, the two file names; one line out.
CHILD = """
import sys
from otter_gguf import Otter
from otter_gguf.errors import OtterError

for line in sys.stdin:
    base, sidecar = line.rstrip("\\n").split("\\t")
    try:
        llm = Otter(base, otter=sidecar or None, n_ctx=64, n_batch=32, n_ubatch=16, n_threads=1, n_seq_max=2)
        tokens = llm.tokenize("Hello \\u00fc 1\\n <s> otter", special=True)[:16]
        llm.detokenize(tokens, special=True)
        llm.create_completion(tokens or [0], max_tokens=2, temperature=0.0)
        if sidecar:
            llm.score("He", "llo")
        print("accepted", flush=True)
    except OtterError as error:
        print("refused" if "\\n" not in str(error) else f"not one line: {error!r}", flush=True)
    except BaseException as error:
        print(f"foreign {error!r}", flush=True)
"""


class Child:
    """The process that opens files."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def open(self, base: Path, sidecar: Path | None = None) -> str:
        """``accepted``, ``refused``, or what went wrong."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.write(f"{base}\t{sidecar or ''}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        return answer or f"killed by {self.process.wait(10)}: {self.process.stderr.read()[-2000:]}"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate()


def survive(good: Gguf, count: int, seed: int, folder: Path, base: Path | None = None) -> dict[str, int]:
    """Open that many mutants of a base, or, with ``base``, of its sidecar; how many were accepted and refused."""
    answers = {"accepted": 0, "refused": 0}
    with Child() as child:
        for index, raw in enumerate(islice(mutants(good, seed), count)):
            path = folder / f"mutant_{index}.gguf"
            path.write_bytes(raw)
            answer = child.open(base, path) if base else child.open(path)
            assert answer in answers, f"{path} (seed {seed}): {answer}"
            answers[answer] += 1
            path.unlink()
    return answers


def test_the_good_files_are_accepted(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    with Child() as child:
        assert child.open(Path(toy_gpt2().write(tmp_path / "gpt2.gguf"))) == "accepted"
        assert child.open(Path(toy_llama().write(tmp_path / "llama.gguf"))) == "accepted"
        assert child.open(base) == "accepted"
        assert child.open(base, write_sidecar(tmp_path / "toy.otter.gguf", base)) == "accepted"
        assert child.open(tmp_path / "nothing.gguf") == "refused"


@pytest.mark.parametrize("make", [toy_llama, toy_gpt2])
def test_mutants_of_a_base(make: Callable[[], Gguf], tmp_path: Path) -> None:
    answers = survive(make(), 700, 7, tmp_path)
    assert min(answers.values()) > 50


def test_mutants_of_a_sidecar(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "toy.otter.gguf", base)
    answers = survive(Gguf.read(sidecar), 800, 8, tmp_path, base)
    assert min(answers.values()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_mutants(seed: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "toy.otter.gguf", base)
    survive(toy_llama(), 1000, 100 + seed, tmp_path)
    survive(toy_gpt2(), 1000, 200 + seed, tmp_path)
    survive(Gguf.read(sidecar), 1000, 300 + seed, tmp_path, base)
