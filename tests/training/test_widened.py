"""The paper's form: an ordinary Llama of larger sizes that needs one changed line, its norm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError, MismatchError
from otter_gguf.training import export_widened, geometry, insert, load, load_widened
from tests.refusals import refused
from tests.training.toy import toy_base, toy_folder, toy_otter, toy_tokenizer

TOKENS = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(3))
D = 32


def run_widened(folder: Path, *, partial: bool = True) -> tuple[Tensor, Tensor]:
    """Logits and final state of the exported checkpoint in transformers' own Llama."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()

    def partial_norm(self: Any, x: Tensor) -> Any:
        rms = x[..., :D].square().mean(-1, keepdim=True)  # the one line: [..., :D]
        return self.weight * (x * torch.rsqrt(rms + self.variance_epsilon))

    norm = type(model.model.norm)
    original, norm.forward = norm.forward, partial_norm if partial else norm.forward
    try:
        with torch.no_grad():
            return model(TOKENS).logits, model.model(TOKENS).last_hidden_state
    finally:
        norm.forward = original


def widenable(**changes: Any) -> Any:
    """Sizes that transformers accepts: 48 channels over 6 heads."""
    return toy_otter("normal", **{"width": 16, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"state_source": "table"}, {"n_ff": 0}, {"n_head_kv": 0}, {"n_head_kv": 3, "width": 8}]
)
@pytest.mark.parametrize("tied", [False, True])
def test_computes_the_same_in_an_ordinary_model(tmp_path: Path, changes: dict[str, Any], tied: bool) -> None:
    model = widenable(base=toy_base(tie_word_embeddings=tied), **changes)
    with torch.no_grad():
        output = model(TOKENS, output_hidden_states=True)
    export_widened(model, tmp_path)
    logits, state = run_widened(tmp_path)
    torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, output.hidden_states[-1], atol=1e-4, rtol=0)
    unchanged, _ = run_widened(tmp_path, partial=False)
    assert (unchanged - output.logits).abs().max() > 1e-2


def test_carries_insertion_heads_and_tokenizer(tmp_path: Path) -> None:
    model = widenable(heads=(HeadConfig("safety", ("a", "b")),))
    export_widened(model, tmp_path, tokenizer=toy_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    insertion = InsertionConfig.from_dict(config["otter"]["insertion"])
    assert insertion.state_source == "table"
    assert insertion.heads == model.insertion.heads
    assert insertion.base == geometry(toy_base())
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 60,
    }
    assert {name: config[name] for name in sizes} == sizes
    assert (tmp_path / "tokenizer.json").exists()
    tensors = load_file(tmp_path / "model.safetensors")
    inserted = model.inserted_parameters()
    for name in ("heads.safety.otter.weight", "heads.safety.otter.bias"):
        assert torch.equal(tensors[name], inserted[name])
    query = tensors["model.layers.0.self_attn.q_proj.weight"]
    base = toy_base().state_dict()
    assert torch.equal(query[:32, :D], base["model.layers.0.self_attn.q_proj.weight"])
    assert not query[:32, D:].any()
    assert torch.equal(query[32:], inserted["model.layers.0.self_attn.q_proj.otter.weight"])
    assert not tensors["lm_head.weight"][:, D:].any()


def test_is_written_in_the_bases_type_unless_told(tmp_path: Path) -> None:
    model = widenable(base=toy_base().to(torch.bfloat16))
    export_widened(model, tmp_path / "half")
    export_widened(model, tmp_path / "full", dtype=torch.float32)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    assert LlamaForCausalLM.from_pretrained(tmp_path / "full", dtype="auto").dtype == torch.float32


def test_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = widenable()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    export_widened(model, tmp_path)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refuses_what_larger_sizes_cannot_say(tmp_path: Path) -> None:
    base = toy_base()
    uneven = insert(base, InsertionConfig(geometry(base), 8, (1, 0, 1), (4, 4, 4)))
    with refused(ConfigError, "sizes", "layer"):
        export_widened(uneven, tmp_path)
    with refused(ConfigError, "width", "sizes"):
        export_widened(toy_otter(width=0, n_head_kv=0, n_ff=0, heads=(HeadConfig(input="base"),)), tmp_path)
    with refused(ConfigError, "Llama", 40, 6):
        export_widened(widenable(width=8), tmp_path)
    assert not list(tmp_path.iterdir())


def test_refuses_to_overwrite_a_checkpoint(tmp_path: Path) -> None:
    toy_base().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with refused(FileError, tmp_path, "checkpoint"):
        export_widened(widenable(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


SHAPES: list[dict[str, Any]] = [
    {},
    {"state_source": "table"},
    {"n_ff": 0},
    {"n_head_kv": 0},
    {"n_head_kv": 0, "n_ff": 0},
    {"heads": (HeadConfig("safety", ("a", "b"), "both"), HeadConfig("tone", input="base"))},
    {"heads": (HeadConfig(input="base"),)},
    {"heads": (HeadConfig(), HeadConfig("next", ("reward",), "both", kind="vocabulary", rank=4))},
]


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("tied", [False, True])
def test_loading_is_the_inverse_of_exporting(tmp_path: Path, changes: dict[str, Any], tied: bool) -> None:
    model = widenable(base=toy_base(tie_word_embeddings=tied), **changes)
    export_widened(model, tmp_path)
    loaded = load_widened(tmp_path, toy_base(tie_word_embeddings=tied))
    assert loaded.insertion == model.insertion
    assert loaded.training_record == model.training_record
    expected = model.inserted_parameters()
    assert loaded.inserted_parameters().keys() == expected.keys()
    for name, tensor in loaded.inserted_parameters().items():
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        assert torch.equal(loaded.rewards(TOKENS), model.rewards(TOKENS))
    export_widened(loaded, tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_loads_in_the_type_that_it_was_written_in(tmp_path: Path) -> None:
    model = widenable(base=toy_base().to(torch.bfloat16))
    export_widened(model, tmp_path / "full", dtype=torch.float32)
    export_widened(model, tmp_path / "half")
    full = load_widened(tmp_path / "full", toy_base().to(torch.bfloat16)).inserted_parameters()
    half = load_widened(tmp_path / "half", toy_base().to(torch.bfloat16)).inserted_parameters()
    for name, tensor in model.inserted_parameters().items():
        assert torch.equal(full[name], tensor)
        assert torch.equal(half[name], tensor.to(torch.bfloat16).float())


def test_finds_its_base_by_the_recorded_name(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(folder)
    export_widened(widenable(base=base), tmp_path / "wide")
    loaded = load_widened(tmp_path / "wide")
    assert loaded.base_name == str(folder)
    folder.rename(tmp_path / "moved")
    with refused(FileError, folder, tmp_path / "wide", "--base"):
        load_widened(tmp_path / "wide")


def test_a_checkpoint_of_the_converters_form_has_a_table(tmp_path: Path) -> None:
    """Without our note beside the insertion, h'_0 is what the file has: a table."""
    model = widenable()
    export_widened(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["otter"] = {"insertion": config["otter"]["insertion"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_widened(tmp_path, toy_base())
    assert loaded.insertion.state_source == "table"
    with torch.no_grad():
        assert torch.equal(loaded.rewards(TOKENS), model.rewards(TOKENS))


def test_all_differences_from_the_base_are_named(tmp_path: Path) -> None:
    export_widened(widenable(), tmp_path)
    edit_tensors(tmp_path, several_blocks)
    names = (
        "3 tensors",
        *("model.layers.0.self_attn.q_proj.weight", "2 elements", [3, 40], 0.5, 0),
        *("model.layers.2.mlp.down_proj.weight", "1 elements", [0, 0]),
        *("model.embed_tokens.weight", "1 elements", [7, 32]),
    )
    with refused(MismatchError, *names):
        load_widened(tmp_path, toy_base())


def several_blocks(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 40:42] = 0.5  # where zeros must be
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] += 1  # the base's
    tensors["model.embed_tokens.weight"][7, D] += 1  # a copy of the base's channels
    tensors["model.layers.1.mlp.down_proj.weight"][-1, 0] += 1  # inserted, so as free as any


def test_another_base_is_refused(tmp_path: Path) -> None:
    export_widened(widenable(), tmp_path)
    with refused(MismatchError, tmp_path, "30 tensors"):
        load_widened(tmp_path, toy_base(seed=1))
    with refused(MismatchError, "n_layer", 3, 2):
        load_widened(tmp_path, toy_base(num_hidden_layers=2))


def wrong_tensors(tensors: dict[str, Tensor]) -> None:
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["model.norm.weight"]
    tensors["heads.reward.otter.bias"] = torch.zeros(2)


def not_finite(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"][-1] = torch.inf


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: list[tuple[Callable[[Path], Any], tuple[object, ...]]] = [
    (lambda folder: (folder / "config.json").unlink(), ("config.json", "No such file")),
    (lambda folder: (folder / "config.json").write_text("["), ("config.json", "JSON")),
    (lambda folder: (folder / "config.json").write_text("{}"), ("config.json", "'otter'")),
    (lambda folder: (folder / "model.safetensors").unlink(), ("model*.safetensors",)),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), ("header",)),
    (
        lambda folder: edit_tensors(folder, wrong_tensors),
        ("3 tensors", "model.norm.weight", "extra.weight", "heads.reward.otter.bias", [2], [1]),
    ),
    (lambda folder: edit_tensors(folder, not_finite), ("model.norm.otter.weight", "finite")),
]


@pytest.mark.parametrize("case", range(len(DAMAGES)))
def test_refuses_damage_in_one_line(tmp_path: Path, case: int) -> None:
    damage, names = DAMAGES[case]
    export_widened(widenable(), tmp_path)
    load_widened(tmp_path, toy_base())
    damage(tmp_path)
    with refused(FileError, *names):
        load_widened(tmp_path, toy_base())


def test_an_ordinary_checkpoint_is_no_widened_one(tmp_path: Path) -> None:
    toy_base().save_pretrained(tmp_path)
    with refused(FileError, "config.json", "'otter'"):
        load_widened(tmp_path, toy_base())


def test_load_finds_out_which_form_a_folder_has(tmp_path: Path) -> None:
    model = widenable()
    export_widened(model, tmp_path / "wide")
    model.save_pretrained(tmp_path / "adapter")
    for name in ("wide", "adapter"):
        found = load(tmp_path / name, toy_base()).inserted_parameters()
        assert all(torch.equal(tensor, found[key]) for key, tensor in model.inserted_parameters().items())
    toy_base().save_pretrained(tmp_path / "base")
    with refused(FileError, tmp_path / "base" / "otter_config.json"):
        load(tmp_path / "base", toy_base())
