"""`otter-gguf insert`: what the flags mean, what is written, what is refused."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_gguf.cli import insert as verb
from otter_gguf.cli._common import given
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError
from otter_gguf.training import OtterModel
from tests.refusals import refused
from tests.training.toy import toy_folder, toy_otter

BASE = BaseGeometry("llama", 3, 32, 4, 2, 8, 48, 258)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("insert") / "base")


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


def config(*arguments: str) -> InsertionConfig:
    """The configuration that flags mean for the toy's sizes."""
    parser = argparse.ArgumentParser()
    verb.add_insert_arguments(parser)
    args = parser.parse_args(list(arguments))
    explicit = given(args, verb.InsertOptions)
    return verb.insertion_config(verb.InsertOptions(**explicit), BASE, args.head or (), explicit)


def test_writes_an_adapter_that_equals_the_python_call(base: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "adapter"
    assert run("--base", base, "-o", out, "--width", 8, "--inner", 12, "--state-offset", 3, "--seed", 0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    loaded, expected = OtterModel.from_pretrained(base, out), toy_otter()
    assert loaded.insertion == expected.insertion
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.rewards(tokens), expected.rewards(tokens))


def test_json_says_what_was_inserted(base: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("--base", base, "-o", tmp_path / "a", "--width", 8, "--head", "safety=a,b", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rewards"] == ["safety.a", "safety.b"]
    assert result["output"] == str(tmp_path / "a")
    assert result["base_parameters"] == 39776
    model = OtterModel.from_pretrained(base, tmp_path / "a")
    assert result["inserted_parameters"] == sum(t.numel() for t in model.inserted_parameters().values())


def test_flags_have_the_documented_defaults() -> None:
    assert config("--state-offset", "0", "--width", "8") == InsertionConfig.uniform(BASE, 8, 1, 256)
    with refused(ConfigError, "slice", 64, 32):
        config()


def test_sizes_can_be_given_for_each_layer() -> None:
    made = config("--width", "8", "--kv-heads", "1,0,2", "--inner", "0,5,6")
    assert (made.n_head_kv, made.n_ff) == ((1, 0, 2), (0, 5, 6))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (3, 3, 3)), ("0,2", (3, 0, 3)), ("1-2", (0, 3, 3)), ("2", (0, 0, 3)), ("0-0,2", (3, 0, 3))],
)
def test_layers_are_numbers_and_ranges(layers: str, expected: tuple[int, ...]) -> None:
    made = config("--width", "8", "--inner", "3", "--layers", layers)
    assert made.n_ff == expected
    assert [bool(size) for size in made.n_head_kv] == [bool(size) for size in expected]


def test_heads_have_names_labels_input_and_activation() -> None:
    made = config(
        "--width", "8", "--head", "tone", "--head", "safety=a,b", "--head-input", "both", "--activation", "tanh"
    )
    assert made.heads == (
        HeadConfig("tone", ("tone",), "both", "tanh"),
        HeadConfig("safety", ("a", "b"), "both", "tanh"),
    )
    assert made.reward_labels == ("tone", "safety.a", "safety.b")


def test_width_0_is_heads_alone_without_more_flags() -> None:
    made = config("--width", "0")
    assert (made.n_head_kv, made.n_ff, made.heads[0].input) == ((0, 0, 0), (0, 0, 0), "base")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--layers", "0,3"], ("--layers", "0,3", "'3'", "0-2")),
        (["--layers", "2-1"], ("--layers", "'2-1'", "0-2")),
        (["--layers", ""], ("--layers", "''", "0-2")),
        (["--layers", "-1"], ("--layers", "'-1'", "0-2")),
        (["--kv-heads", "1,2"], ("--kv-heads", 2, 3)),
        (["--inner", "many"], ("--inner", "many")),
        (["--inner", "-4"], ("--inner", -4)),
        (["--width", "0", "--inner", "4"], ("width", 0, "FFN")),
        (["--width", "0", "--head-input", "both"], ("width", 0, "'base'")),
        (["--head", "Tone"], ("head", "'Tone'")),
        (["--head", "a", "--head", "a"], ("heads", "a")),
        (["--head", "a=x,x"], ("'a'", "labels")),
    ],
)
def test_contradictions_are_refused(arguments: list[str], names: tuple[object, ...]) -> None:
    flags = [f"{flag}={value}" for flag, value in zip(arguments[::2], arguments[1::2], strict=True)]
    with refused(ConfigError, *names):
        config("--width=8", *flags)


def test_an_adapter_is_replaced_only_by_force(base: Path, tmp_path: Path) -> None:
    run("--base", base, "-o", tmp_path, "--width", 8)
    before = (tmp_path / "otter_model.safetensors").read_bytes()
    with refused(ConfigError, tmp_path, "--force"):
        run("--base", base, "-o", tmp_path, "--width", 4)
    assert (tmp_path / "otter_model.safetensors").read_bytes() == before
    run("--base", base, "-o", tmp_path, "--width", 4, "--force")
    assert OtterModel.from_pretrained(base, tmp_path).insertion.width == 4


def test_a_base_that_is_not_there_is_a_file_error(tmp_path: Path) -> None:
    with refused(FileError, tmp_path / "nowhere"):
        run("--base", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verbs_modules_do_not_import_torch() -> None:
    code = "import sys, otter_gguf.cli.insert, otter_gguf.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
