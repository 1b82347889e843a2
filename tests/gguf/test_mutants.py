"""Thousands of changed files through the public API: each ends in a model that works or in an OtterError.

The files are opened in a child process, so that an abort inside llama.cpp counts as a failure instead of ending the
test run. Without the validator a few percent of such files kill the process.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.gguf import fuzz
from tests.gguf.fuzz import GOOD, Input, Worker, inputs, survive


def survivors(given: Input, count: int, seed: int, folder: Path) -> Counter[str]:
    """How many mutants were accepted and refused; none ends otherwise."""
    ends: Counter[str] = Counter()
    for number, (end, _) in enumerate(survive(given, count, seed, folder)):
        assert end in GOOD, f"mutant {number} of {given.name} (seed {seed}): {end}"
        ends[end] += 1
    return ends


def test_the_good_files_are_accepted(tmp_path: Path) -> None:
    with Worker() as worker:
        for given in inputs(tmp_path):
            path = Path(given.good.write(tmp_path / "good.gguf"))
            assert (worker.open(given.base, path) if given.base else worker.open(path)) == "accepted"
        assert worker.open(tmp_path) == "refused"


@pytest.mark.parametrize(("kind", "count", "least"), [(0, 700, 50), (1, 700, 50), (2, 800, 10)])
def test_mutants(kind: int, count: int, least: int, tmp_path: Path) -> None:
    ends = survivors(inputs(tmp_path)[kind], count, 7, tmp_path)
    assert min(ends[end] for end in GOOD) > least


def test_without_the_validator_the_process_is_lost(tmp_path: Path) -> None:
    """The same files, which llama.cpp sees as they are: what is counted here would be seen."""
    ends = Counter(end for end, _ in survive(inputs(tmp_path)[0], 100, 7, tmp_path, trusting=True))
    assert any(end.startswith("killed by") for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_mutants(seed: int, tmp_path: Path) -> None:
    for number, given in enumerate(inputs(tmp_path)):
        survivors(given, 1000, 100 * (number + 1) + seed, tmp_path)


def test_slow_and_greedy_files_count_as_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(inputs(tmp_path)[0].good.write(tmp_path / "good.gguf"))
    with Worker() as worker:
        assert worker.open(path) == "accepted"
        with monkeypatch.context() as patch:
            patch.setattr(fuzz, "SPARE_MEMORY", -(1 << 40))
            assert worker.open(path).endswith("MB of memory")
        with monkeypatch.context() as patch:
            patch.setattr(fuzz, "MAX_SECONDS", 0.0)
            assert worker.open(path) == "more than 0 seconds"
        assert worker.open(path) == "accepted"
