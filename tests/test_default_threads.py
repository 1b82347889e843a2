"""How many threads compute: as many as stay fast beside one other busy process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import Otter, threads
from otter_gguf.errors import ConfigError
from tests.refusals import refused
from tests.synthetic_models import pair


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (4, 3), (64, 63)])
def test_one_core_is_left_to_others(cores: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    assert threads.default_threads() == expected


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: list[str], quota: str) -> None:
    """Logical processors by what they share a core with, and the share of processor time."""
    for number, text in enumerate(siblings):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "_CPUS", tmp_path)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(siblings))), raising=False)


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        (["0", "1", "2", "3"], "max 100000", 4),
        (["0,2", "1,3", "0,2", "1,3"], "max 100000", 2),
        (["0", "1", "2", "3"], "250000 100000", 3),
        (["0", "1"], "50000 100000", 1),
        (["0", "1"], "800000 100000", 2),
        (["0", "1"], "no number", 2),
        (["0", "1"], "", 2),
    ],
)
def test_cores_are_physical_and_within_the_quota(
    siblings: list[str], quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, siblings, quota)
    assert threads.usable_cores() == expected


def test_without_the_systems_words_every_processor_is_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, [], "max 1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    (tmp_path / "cpu.max").unlink()
    assert threads.usable_cores() == 3


@pytest.mark.parametrize("name", ["n_threads", "n_threads_batch"])
def test_more_threads_than_could_ever_run_are_refused(name: str) -> None:
    most = max(16, os.cpu_count() or 1)
    options: dict[str, Any] = {"n_ctx": 32, "n_threads": 1, name: most + 1}
    with refused(ConfigError, name, most + 1, most):
        Otter(pair().base, **options)
    Otter(pair().base, n_ctx=32, n_threads=1, n_threads_batch=most).close()
