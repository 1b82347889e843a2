"""From a Hugging Face folder of every architecture to rewards of a GGUF, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_gguf import Otter
from otter_gguf.cli.main import main
from otter_gguf.training import OtterModel
from tests.architecture_toys import BYTE_LEVEL, FORMS, convert_with_any_tokenizer, toy, write_tokenizer
from tests.training.toy import toy_rows, toy_tokenizer, write_rows


def command(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "form"), FORMS.values(), ids=FORMS)
def test_insert_train_convert_and_score(
    model_type: str, form: dict[str, Any], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, sidecar = tmp_path / "base", tmp_path / "trained", tmp_path / "toy.otter.gguf"
    toy(model_type, **form).save_pretrained(base)
    toy_tokenizer().save_pretrained(base)  # for training; texts of the GGUF are given as tokens
    write_tokenizer(base, model_type)
    if model_type in BYTE_LEVEL:
        convert_with_any_tokenizer(tmp_path, monkeypatch)
    data = write_rows(tmp_path / "pairs.jsonl", toy_rows(16))
    command("insert", "--base", base, "-o", tmp_path / "fresh", "--width", 16, "--inner", 32)
    command("train", tmp_path / "fresh", "--data", data, "-o", adapter, "--max-steps", 2, "--cpu", "--threads", 1)
    if model_type not in BYTE_LEVEL:
        (base / "tokenizer.json").unlink()  # Phi-3's converter would put its special tokens among the others
    gguf = tmp_path / "base.gguf"
    options = ("-o", sidecar, "--base-outfile", gguf, "--outtype", "f32", "--no-tokenizer-check")
    command("convert", adapter, "--base", base, *options)
    capfd.readouterr()
    command("info", sidecar, "--json")
    assert json.loads(capfd.readouterr().out)["insertion"]["width"] == 16
    model = OtterModel.from_pretrained(base, adapter)
    with Otter(gguf, otter=sidecar, n_ctx=128, n_threads=1) as llm:
        tokens = llm.tokenize("The sky.")
        found = torch.tensor(llm.score(tokens).rewards)
    with torch.no_grad():
        expected = model.rewards(torch.tensor([tokens]))[0]
    assert (found.reshape(expected.shape) - expected).abs().max() < 2e-2
