"""Generated texts on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_gguf import ConfigError, FileError
from otter_gguf.evaluation.store import Store
from tests.evaluation.made_up import generation
from tests.refusals import refused

HEADER = {"model": "base.gguf", "seeds": 3}


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    store = Store(path, HEADER)
    store.add(generation(prompt=0, text='line\nbreak "quoted" 🦦 水獺'))
    store.add(generation(prompt=1, steps=10, guided_steps=3, changed_steps=1))
    assert not path.exists()  # saved now and then, and at the end
    store.save()
    again = Store(path, HEADER)
    assert list(again) == list(store)
    assert ("plain", 1, 0) in again
    assert ("plain", 2, 0) not in again
    assert list(tmp_path.iterdir()) == [path]


def test_saving_nothing_new_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    Store(path, HEADER).save()
    assert not path.exists()
    store = Store(path, HEADER)
    store.add(generation())
    store.save()
    before = path.stat().st_mtime_ns
    Store(path, HEADER).save()
    assert path.stat().st_mtime_ns == before


def test_texts_are_saved_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otter_gguf.evaluation.store._SAVE_SECONDS", 0.0)
    store = Store(tmp_path / "texts.jsonl", HEADER)
    for count in (1, 2):
        store.add(generation(prompt=count))
        assert len(Store(tmp_path / "texts.jsonl", HEADER).rows) == count


def test_texts_of_another_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    store = Store(path, HEADER)
    store.add(generation())
    store.save()
    with refused(ConfigError, "texts.jsonl", "seeds", 3, 4, "--force"):
        Store(path, {**HEADER, "seeds": 4})
    assert Store(path, {**HEADER, "seeds": 4}, force=True).rows == {}
    assert len(Store(path, HEADER).rows) == 1  # forced or not, nothing is lost before there is something new


@pytest.mark.parametrize(
    "text", ["", "no json", json.dumps(HEADER) + '\n{"arm": "plain"}', json.dumps(HEADER) + "\n[]"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "texts.jsonl").write_text(text)
    with refused(FileError, "texts.jsonl", "--force"):
        Store(tmp_path / "texts.jsonl", HEADER)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None, HEADER)
    store.add(generation())
    store.save()
    assert not list(tmp_path.iterdir())
