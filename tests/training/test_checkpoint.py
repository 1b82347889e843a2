"""The adapter checkpoint: what is written, what is refused, and that a kill leaves the old or the new one."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError, MismatchError, OtterError, UnsupportedError
from otter_gguf.gguf import atomic
from otter_gguf.training import OtterModel, geometry, insert
from otter_gguf.training.base import load_base, load_tokenizer
from tests.converters.toy_hf import Payload
from tests.refusals import refused
from tests.training.toy import toy_base, toy_folder, toy_otter, toy_tokenizer

TOKENS = torch.arange(20)[None]
CONFIG, TENSORS = "otter_config.json", "otter_model.safetensors"


def rewards(model: OtterModel) -> torch.Tensor:
    with torch.no_grad():
        return model.rewards(TOKENS)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    toy_otter("normal").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_loads_what_was_saved(adapter: Path) -> None:
    model = toy_otter("normal")
    loaded = OtterModel.from_pretrained(toy_base(), adapter)
    assert torch.equal(rewards(loaded), rewards(model))
    assert not torch.equal(rewards(loaded), rewards(toy_otter("uniform")))
    assert loaded.insertion == model.insertion
    assert loaded.training_record == {"init": {"kind": "normal", "std": 0.3, "seed": 0}}


def test_holds_exactly_the_documented_files(adapter: Path) -> None:
    assert sorted(path.name for path in adapter.iterdir()) == [CONFIG, TENSORS]
    record = json.loads((adapter / CONFIG).read_text())
    assert list(record) == [
        "format",
        "version",
        "insertion",
        "base_model_name_or_path",
        "revision",
        "base_fingerprint",
        "base_adapters",
        "training",
    ]
    assert (record["format"], record["version"]) == ("otter-adapter", 1)
    assert InsertionConfig.from_dict(record["insertion"]) == toy_otter().insertion


def test_tensor_table_of_the_documentation(tmp_path: Path) -> None:
    base = toy_base()
    heads = (HeadConfig("a", ("x", "y"), "both"), HeadConfig("b", input="base"))
    config = InsertionConfig(geometry(base), 6, (2, 0, 0), (0, 5, 0), heads, "table")
    insert(base, config, "normal").save_pretrained(tmp_path)
    with safe_open(tmp_path / TENSORS, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    d, e, kv, query, inner = 32, 6, 16, 32, 5
    assert shapes == {
        "model.embed_tokens.otter.weight": (258, e),
        "model.layers.0.input_layernorm.otter.weight": (e,),
        "model.layers.0.self_attn.q_proj.otter.weight": (query, d + e),
        "model.layers.0.self_attn.k_proj.otter.weight": (kv, d + e),
        "model.layers.0.self_attn.v_proj.otter.weight": (kv, d + e),
        "model.layers.0.self_attn.o_proj.otter.weight": (e, 32 + query),
        "model.layers.1.post_attention_layernorm.otter.weight": (e,),
        "model.layers.1.mlp.gate_proj.otter.weight": (inner, d + e),
        "model.layers.1.mlp.up_proj.otter.weight": (inner, d + e),
        "model.layers.1.mlp.down_proj.otter.weight": (e, 48 + inner),
        "model.norm.otter.weight": (e,),
        "heads.a.otter.weight": (2, d + e),
        "heads.a.otter.bias": (2,),
        "heads.b.otter.weight": (1, d),
        "heads.b.otter.bias": (1,),
    }


def test_finds_its_base_by_the_recorded_name(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "base")
    model = toy_otter("normal", AutoModelForCausalLM.from_pretrained(folder))
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(rewards(OtterModel.from_pretrained(None, tmp_path / "adapter")), rewards(model))
    assert torch.equal(rewards(OtterModel.from_pretrained(folder, tmp_path / "adapter")), rewards(model))
    folder.rename(tmp_path / "moved")
    with refused(FileError, folder, tmp_path / "adapter", "--base"):
        OtterModel.from_pretrained(None, tmp_path / "adapter")


def test_the_recorded_name_can_be_another(tmp_path: Path) -> None:
    model = toy_otter("normal")
    assert model.base_name is None
    model.base_name = "someone/base"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "someone/base"


def test_never_reads_pickled_weights(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    toy_otter().save_pretrained(tmp_path / "adapter")
    for content in ((folder / "pytorch_model.bin").read_bytes(), pickle.dumps(Payload(tmp_path / "ran"))):
        (folder / "pytorch_model.bin").write_bytes(content)
        with refused(FileError, folder, "base model"):
            OtterModel.from_pretrained(folder, tmp_path / "adapter")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_base_never_runs(tmp_path: Path, name: str) -> None:
    """Nor is anybody asked whether it may."""
    folder = toy_folder(tmp_path / "base")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}
    (folder / name).write_text(json.dumps({**known, "auto_map": auto_map, "model_type": "evil"}))
    if name == "config.json":
        with refused(FileError, folder, "base model"):
            load_base(folder)
    else:  # there may be a tokenizer without that code
        assert "evil" not in type(load_tokenizer(folder)).__module__
    assert not (tmp_path / "ran").exists()


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(adapter: Path) -> None:
        record = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps({**record, **changes}))

    return edit


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(adapter: Path) -> None:
        tensors = load_file(adapter / TENSORS)
        edit(tensors)
        save_file(tensors, adapter / TENSORS)

    return apply


def several_problems(tensors: dict[str, torch.Tensor]) -> None:
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["model.norm.otter.weight"]
    tensors["heads.reward.otter.bias"] = torch.zeros(2)


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.otter.weight"][0] = torch.nan


def whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.otter.weight"] = torch.zeros(8, dtype=torch.int8)


def truncate(adapter: Path) -> None:
    data = (adapter / TENSORS).read_bytes()
    (adapter / TENSORS).write_bytes(data[: len(data) // 2])


DAMAGES: list[tuple[Callable[[Path], Any], type[OtterError], tuple[object, ...]]] = [
    (lambda adapter: (adapter / CONFIG).unlink(), FileError, ("otter_config.json", "No such file")),
    (lambda adapter: (adapter / CONFIG).write_text("{"), FileError, ("otter_config.json", "JSON")),
    (lambda adapter: (adapter / CONFIG).write_text("[]"), FileError, ("otter_config.json", "JSON")),
    (edit_config(format="lora"), FileError, ("otter_config.json", "format", "otter-adapter")),
    (edit_config(version=2), UnsupportedError, ("otter_config.json", "version 2", 1)),
    (edit_config(insertion=None), FileError, ("otter_config.json", "insertion")),
    (edit_config(insertion={"width": 3}), FileError, (CONFIG, "insertion", "base")),
    (lambda adapter: (adapter / TENSORS).unlink(), FileError, ("otter_model.safetensors", "No such file")),
    (truncate, FileError, ("otter_model.safetensors",)),
    (edit_tensors(not_a_number), FileError, (TENSORS, "model.norm.otter.weight", "torch.float32", "finite")),
    (edit_tensors(whole_numbers), FileError, (TENSORS, "model.norm.otter.weight", "torch.int8", "finite")),
    (
        edit_tensors(several_problems),
        FileError,
        ("3 tensors", "model.norm.otter.weight", "extra.weight", "heads.reward.otter.bias", [2], [1]),
    ),
]


@pytest.mark.parametrize("case", range(len(DAMAGES)))
def test_refuses_damage_in_one_line(adapter: Path, case: int) -> None:
    damage, error, names = DAMAGES[case]
    OtterModel.from_pretrained(toy_base(), adapter)
    damage(adapter)
    with refused(error, *names):
        OtterModel.from_pretrained(toy_base(), adapter)


def test_refuses_another_base(adapter: Path) -> None:
    with refused(MismatchError, "n_layer", 3, 2):
        OtterModel.from_pretrained(toy_base(num_hidden_layers=2), adapter)


def test_refuses_a_base_with_other_norms_unless_told(adapter: Path) -> None:
    base = toy_base()
    with torch.no_grad():
        base.model.layers[1].input_layernorm.weight[3] += 1e-3
    before = str(base)
    with refused(MismatchError, adapter, "base_fingerprint", "check_base"):
        OtterModel.from_pretrained(base, adapter)
    assert str(base) == before
    assert OtterModel.from_pretrained(base, adapter, check_base=False).insertion == toy_otter().insertion


def test_folders_without_a_fingerprint_load_on_any_base_of_these_sizes(adapter: Path) -> None:
    record = json.loads((adapter / CONFIG).read_text())
    del record["base_fingerprint"], record["base_adapters"]
    (adapter / CONFIG).write_text(json.dumps(record))
    assert not torch.equal(rewards(OtterModel.from_pretrained(toy_base(seed=1), adapter)), rewards(toy_otter("normal")))


def test_weights_are_taken_into_a_model_at_hand(adapter: Path) -> None:
    model = toy_otter("uniform")
    assert not torch.equal(rewards(model), rewards(toy_otter("normal")))
    model.load_weights(adapter)
    assert torch.equal(rewards(model), rewards(toy_otter("normal")))
    with refused(FileError, TENSORS, "9 tensors", "model.layers.0.mlp.gate_proj.otter.weight", [12, 40], [13, 40]):
        toy_otter(n_ff=13).load_weights(adapter)


def test_the_tokenizer_comes_from_where_the_base_came_from(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(folder)
    expected = toy_tokenizer()("The otter")["input_ids"]
    for source in (base, folder, str(folder), toy_otter("normal", base)):
        assert load_tokenizer(source)("The otter")["input_ids"] == expected
    with refused(FileError, "tokenizer"):
        load_tokenizer(toy_base())
    (folder / "tokenizer.json").unlink()
    with refused(FileError, folder, "tokenizer"):
        load_tokenizer(folder)


def test_replaces_only_the_same_insertion_unasked(adapter: Path) -> None:
    toy_otter("uniform").save_pretrained(adapter)
    other = toy_otter(n_ff=13)
    with refused(ConfigError, adapter, "insertion", "force"):
        other.save_pretrained(adapter)
    assert torch.equal(rewards(OtterModel.from_pretrained(toy_base(), adapter)), rewards(toy_otter("uniform")))
    other.save_pretrained(adapter, force=True)
    assert OtterModel.from_pretrained(toy_base(), adapter).insertion == other.insertion


def test_an_unwritable_folder_is_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(FileError, tmp_path / "file", "adapter"):
        toy_otter().save_pretrained(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [False, True])
def test_kill_at_the_exchange_leaves_the_old_or_the_new_adapter(adapter: Path, after: bool) -> None:
    """The child is killed right before or right after both folders change places."""
    old, new = toy_otter("normal"), toy_otter("uniform")
    child = os.fork()
    if child == 0:
        _save_and_die(new, adapter, after)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = rewards(OtterModel.from_pretrained(toy_base(), adapter))
    assert torch.equal(found, rewards(new if after else old))
    assert len(list(adapter.parent.iterdir())) == 2
    new.save_pretrained(adapter)
    assert sorted(path.name for path in adapter.iterdir()) == [CONFIG, TENSORS]
    assert list(adapter.parent.iterdir()) == [adapter]


def _save_and_die(model: OtterModel, adapter: Path, after: bool) -> None:
    exchange = atomic._exchange

    def killed(first: Path, second: Path) -> bool:
        if after:
            exchange(first, second)
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    atomic._exchange = killed
    model.save_pretrained(adapter)
    os._exit(0)
