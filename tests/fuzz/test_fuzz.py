"""The fuzzer: it sees every kind of bad end, draws the same again, and finds nothing in a small run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.gguf.mutants import GENTLE, mutated

from . import fleet
from .fleet import Fleet, Job
from .planted import PLANTED
from .seeds import Seeds, complete, write_llamas, write_seeds
from .strings import odd_length, text
from .trials import FILE_KINDS, FileTrials
from .vocabularies import PRE_TOKENIZERS, byte_level, tokens_of

GOOD = ("accepted", "refused", "interrupted")
BAD = {
    "foreign": "ValueError",
    "foreign in a thread": "ValueError",
    "recursion": "RecursionError",
    "signal": "SIGSEGV",
    "signal in a thread": "SIGSEGV",
    "memory": "MB of memory",
    "hang": "seconds",
}
"""What is said of each planted end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good files that need no torch."""
    made = tmp_path_factory.mktemp("seeds")
    write_llamas(made, trained=False)
    complete(made)
    return made


def run(folder: Path, scratch: Path, jobs: list[Job]) -> Fleet:
    crew = Fleet(folder, scratch, scratch / "keep")
    crew.run(jobs, 1, None)
    return crew


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_end_is_seen(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "MAX_SECONDS", 10.0 if name != "hang" else 0.1)
    number = list(PLANTED).index(name)
    crew = run(folder, tmp_path, [Job("planted", 5, [number])])
    assert crew.trials["planted"] == 1
    if name in GOOD:
        assert crew.counts["planted"] == {(name, name): 1}
        assert crew.tell() == 0
        return
    ((_, how), (again,)), *rest = crew.bad.items()
    assert not rest
    assert BAD[name] in how
    assert again == f"planted:5:{number}"
    assert (tmp_path / "keep" / again.replace(":", "-")).is_dir()
    assert f"--again {again}" in capsys.readouterr().err
    assert crew.tell() == 1


def test_a_lost_process_ends_no_other_trial(folder: Path, tmp_path: Path) -> None:
    names = list(PLANTED)
    numbers = [names.index(name) for name in ("accepted", "signal", "accepted", "foreign", "refused")]
    crew = run(folder, tmp_path, [Job("planted", 1, numbers)])
    assert crew.trials["planted"] == 5
    assert sum(map(len, crew.bad.values())) == 2
    assert crew.counts["planted"] == {("accepted", "accepted"): 2, ("refused", "refused"): 1}


def test_few_trials_end_well(folder: Path, tmp_path: Path) -> None:
    crew = run(folder, tmp_path, [Job("files", 7, list(range(30))), Job("texts", 9, list(range(4)))])
    assert crew.tell() == 0, dict(crew.bad)
    assert crew.trials == {"files": 30, "texts": 4}
    assert crew.counts["files"]["load", "accepted"] > 2
    assert crew.counts["files"]["load", "refused"] > 3


@pytest.mark.slow
def test_many_trials_end_well(tmp_path: Path) -> None:
    """With every architecture."""
    folder = tmp_path / "seeds"
    folder.mkdir()
    write_seeds(folder)
    jobs = [Job(name, 11, list(range(n, n + 10))) for name in ("files", "texts") for n in range(0, 2000, 10)]
    crew = run(folder, tmp_path, jobs)
    assert crew.tell() == 0, dict(crew.bad)


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_trial_can_be_had_again(kind: str, folder: Path, tmp_path: Path) -> None:
    def files(seed: int) -> dict[str, bytes]:
        trials = FileTrials(Seeds(folder), tmp_path)
        trials.make(kind, random.Random(seed))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert files(1) == files(1)
    assert files(1) != files(2)


def test_gentle_changes_keep_the_file_readable(folder: Path) -> None:
    seeds, rng = Seeds(folder), random.Random(3)
    good = seeds.file(seeds.path("toy-values", "base"))
    before = good.build()
    for _ in range(20):
        assert mutated(good, rng, GENTLE, damage=0.0)[:4] == b"GGUF"
    assert good.build() == before


def test_texts_have_every_length() -> None:
    rng = random.Random(1)
    lengths = [odd_length(rng, 300_000) for _ in range(500)]
    assert {len(str(length)) for length in lengths} == {1, 2, 3, 4, 5, 6}
    assert max(len(text(rng, 3000)) for _ in range(300)) == 3000
    assert all(text(rng, 10) is not None for _ in range(300))


def test_tokenizers_of_every_kind(folder: Path) -> None:
    assert {"default", "tekken", "gpt-2"} < set(PRE_TOKENIZERS)
    seeds = Seeds(folder)
    good = seeds.file(seeds.path("toy-values", "base"))
    file = good.set("general.name", "str", "another")
    byte_level(file, "tekken")
    assert "Ġotter".encode() in tokens_of(file)
    assert "Ġotter".encode() not in tokens_of(good)
