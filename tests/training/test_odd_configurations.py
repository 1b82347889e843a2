"""A base whose config.json is odd: one line, and nothing of it is fetched or run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_gguf.errors import FileError
from otter_gguf.training.base import load_base
from tests.refusals import refused
from tests.training.toy import toy_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd") / "base"
    toy_base().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "strangers/kernel"},
        {"_attn_implementation": "strangers/kernel"},
        {"attn_implementation": "strangers/kernel@main:forward"},
        {"attn_implementation": {"": "strangers/kernel"}},
        {"text_config": {"hidden_size": 8}},
        {"model_type": "no such type"},
        {"model_type": 7},
        {"hidden_size": "wide"},
        {"rope_parameters": ["x"]},
        {"architectures": 3},
    ],
    ids=str,
)
def test_an_odd_configuration_is_refused_or_ignored(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "config.json"
    before = file.read_text(encoding="utf-8")
    file.write_text(json.dumps({**json.loads(before), **changes}), encoding="utf-8")
    try:
        if changes == {"architectures": 3}:  # the class follows from model_type
            load_base(folder)
        else:
            with refused(FileError, folder):
                load_base(folder)
    finally:
        file.write_text(before, encoding="utf-8")


def test_the_configuration_as_it_was_loads(folder: Path) -> None:
    assert load_base(folder).config.model_type == "llama"
