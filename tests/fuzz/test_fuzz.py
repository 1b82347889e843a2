"""The fuzzer: it sees every kind of bad end, draws the same again, and finds nothing in a small run."""

from __future__ import annotations

import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import ConfigError, Otter, OtterError
from tests.gguf.mutants import GENTLE, copied, mutated
from tests.refusals import refused

from . import fleet, vocabularies
from .coverage import Reached
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


def test_a_process_ends_by_itself_and_writes_what_it_has_counted(folder: Path, tmp_path: Path) -> None:
    crew = Fleet(folder, tmp_path, tmp_path / "keep")
    idle, busy = crew.child(), crew.child()
    idle.end(patience=60.0)
    busy.ask("planted", 1, list(PLANTED).index("hang"))
    busy.end(patience=0.1)
    assert (idle.exit_code, busy.exit_code) == (0, -signal.SIGKILL)


def test_what_was_reached_is_counted_once() -> None:
    """A template that two object files compile, and that ran in one of them."""

    def compiled(count: int) -> dict[str, Any]:
        branches = [{"count": count, "throw": False}, {"count": 0, "throw": False}, {"count": 0, "throw": True}]
        function = {"start_line": 1, "end_line": 20, "demangled_name": "otter::f(int)", "execution_count": count}
        return {"lines": [{"line_number": 5, "count": count, "branches": branches}], "functions": [function]}

    never, once = Reached(), Reached()
    for count in (0, 3, 0):
        once.add("csrc/ops/f.h", compiled(count))
        never.add("csrc/ops/f.h", compiled(0))
    (row,) = once.table()
    assert row.split() == "csrc/ops lines 1 of 1 (100.0%) branches 1 of 2 (50.0%)".split()
    row, function = never.table()
    assert row.split() == "csrc/ops lines 0 of 1 ( 0.0%) branches 0 of 2 ( 0.0%)".split()
    assert function == "never ran: csrc/ops/f.h:1 otter::f (20 lines)"


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
    gemma = good.set("general.name", "str", "another")
    vocabularies.gemma4(gemma)
    assert tokens_of(gemma)[:2] == [b"<0x00>", b"<0x01>"]
    assert "▁otter".encode() in tokens_of(gemma)


@pytest.mark.parametrize("space", [b"\xc0\xa0", b"\xe0\x80\xa0", b"\xf0\x80\x80\xa0"])
def test_an_overlong_space_that_would_end_the_process_is_refused(space: bytes, folder: Path, tmp_path: Path) -> None:
    """Found by the fuzzer: Gemma 4's tokenizer replaces spaces by their bytes, and then finds others in the text."""
    seeds = Seeds(folder)
    file = copied(seeds.file(seeds.path("toy-values", "base")))
    vocabularies.gemma4(file)
    with Otter(file.write(tmp_path / "base.gguf"), n_ctx=8) as llm:
        with refused(ConfigError, "byte 2"):
            llm.tokenize(b"ab" + space + b"cd")
        assert llm.tokenize(b"ab cd") != llm.tokenize(b"abcd")


@pytest.mark.parametrize("change", [vocabularies.gemma4, vocabularies.add_special])
def test_most_of_these_tokenizers_are_taken(change: Any, folder: Path, tmp_path: Path) -> None:
    seeds, taken = Seeds(folder), 0
    for seed in range(10):
        file = copied(seeds.file(seeds.path("toy-values", "base")))
        change(file, *([] if change is vocabularies.gemma4 else [random.Random(seed)]))
        with suppress(OtterError), Otter(file.write(tmp_path / "base.gguf"), n_ctx=8) as llm:
            taken += len(llm.tokenize("the otter <mask>  <|end|>", special=True)) > 3
    assert taken >= 7
