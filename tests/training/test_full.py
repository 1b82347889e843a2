"""The full reward model: trained as a whole by the same trainer, saved with its base, run as a second model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError, MismatchError, UnsupportedError
from otter_gguf.training import OtterModel, OtterTrainer, TrainConfig, calibrate, geometry, insert, load, tokenise_rows
from otter_gguf.training.base import load_tokenizer
from otter_gguf.training.full import FullRewardModel, full_reward_model
from tests.refusals import refused
from tests.training.native_toy import (
    TOKENS,
    convert_folder,
    f32_sidecar,
    native_base,
    native_folder,
    native_rewards,
    write_gguf_base,
)
from tests.training.toy import toy_base, toy_otter, toy_rows, toy_tokenizer


def rewards(model: OtterModel, tokens: Tensor = TOKENS % 256) -> Tensor:
    with torch.no_grad():
        return model.rewards(tokens)


def full(seed: int = 0, **changes: Any) -> FullRewardModel:
    return full_reward_model(toy_base(**changes), seed=seed)


def data(count: int = 32) -> Any:
    return tokenise_rows(toy_rows(count), toy_tokenizer())


def trainer(model: OtterModel, output: Path, **options: Any) -> OtterTrainer:
    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "logging_steps": 4, "save_strategy": "no", **options}
    config = TrainConfig(str(output), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, **settings)
    return OtterTrainer(model, config, data())


def tensors(model: OtterModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.base_model.state_dict().items()}


def test_predicts_from_the_bases_final_state() -> None:
    model, base = full(), toy_base()
    tokens = TOKENS % 256
    with torch.no_grad():
        head: Any = model.heads["reward"]
        state = base.model(tokens).last_hidden_state
        expected = state @ head.otter.weight.T + head.otter.bias
        assert torch.equal(model(tokens).logits, base(tokens).logits)
    torch.testing.assert_close(rewards(model), expected, atol=1e-5, rtol=0)
    assert list(model.inserted_parameters()) == ["heads.reward.otter.weight", "heads.reward.otter.bias"]
    assert not torch.equal(rewards(full(seed=1)), rewards(model))
    assert torch.equal(rewards(full()), rewards(model))


@pytest.mark.parametrize("loss", ["prefix", "final"])
def test_training_changes_the_base_and_the_loss_falls(tmp_path: Path, loss: str) -> None:
    model = full()
    before = tensors(model)
    run = trainer(model, tmp_path, loss=loss, max_steps=24)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    unchanged = [name for name, tensor in tensors(model).items() if torch.equal(tensor, before[name])]
    assert unchanged == ["lm_head.weight"]  # rewards do not depend on it


def test_training_an_insertion_does_not(tmp_path: Path) -> None:
    model = toy_otter()
    before = tensors(model)
    trainer(model, tmp_path).train()
    after = tensors(model)
    assert all(torch.equal(after[name], before[name]) for name in after if ".otter." not in name)


def test_tied_embeddings_are_trained(tmp_path: Path) -> None:
    model = full(tie_word_embeddings=True)
    before = tensors(model)
    trainer(model, tmp_path, max_steps=2).train()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())


def test_dropout_stays_out() -> None:
    model = full(attention_dropout=0.5).train()
    model.rewards(TOKENS % 256).sum().backward()
    assert torch.equal(rewards(model), rewards(full()))
    assert model.get_parameter("base_model.model.embed_tokens.weight").grad is not None


def test_half_precision_bases_are_trained_in_full_precision() -> None:
    model = full_reward_model(toy_base().to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_heads_by_name_or_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    model = full_reward_model(toy_base(), ("harmless", HeadConfig("tone", ("warm", "cold"), activation="tanh")))
    assert model.insertion.reward_labels == ("harmless", "tone.warm", "tone.cold")
    assert {head.input for head in model.insertion.heads} == {"base"}
    model.print_trainable_parameters()
    trained = sum(p.numel() for p in toy_base().model.parameters()) + 3 * 33
    assert capsys.readouterr().out.startswith(f"trainable params: {trained:,d} ||")


def test_takes_a_vocabulary_head_too(tmp_path: Path) -> None:
    model = full_reward_model(toy_base(), (HeadConfig(), HeadConfig("next", ("reward",), kind="vocabulary", rank=4)))
    assert model.get_parameter("heads.next.table.otter.weight").abs().max() > 0
    model.save_pretrained(tmp_path)
    tokens = TOKENS % 256
    with torch.no_grad():
        expected = model(tokens).queries["next"]
        found = load(tmp_path)(tokens).queries["next"]
    assert torch.equal(found, expected)
    assert expected.shape == (1, 19, 5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A trained model in its folder."""
    model = full()
    trainer(model, tmp_path / "run", max_steps=3).train()
    model.base_name, model.tokenizer = "someone/base", toy_tokenizer()
    model.save_pretrained(tmp_path / "full")
    torch.save(rewards(model), tmp_path / "rewards")
    return tmp_path / "full"


def test_saves_a_base_and_an_adapter_beside_it(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["base", "otter_config.json", "otter_model.safetensors"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (saved / "base").iterdir()}
    record = json.loads((saved / "otter_config.json").read_text())
    assert (record["fine_tuned_base"], record["base_model_name_or_path"]) == ("base", "someone/base")
    assert InsertionConfig.from_dict(record["insertion"]).width == 0


def test_loads_what_was_saved(saved: Path) -> None:
    expected = torch.load(saved.parent / "rewards")
    assert not torch.equal(expected, rewards(full()))
    model = load(saved)
    assert isinstance(model, FullRewardModel)
    assert torch.equal(rewards(model), expected)
    assert model.base_name == "someone/base"
    assert load_tokenizer(model)("a")["input_ids"] == toy_tokenizer()("a")["input_ids"]
    assert any(parameter.requires_grad for parameter in model.base_model.parameters())
    model.save_pretrained(saved.parent / "again")
    assert (saved.parent / "again" / "base" / "tokenizer.json").exists()
    other = full(seed=3)
    other.load_weights(saved)
    assert torch.equal(rewards(other), expected)


def test_its_base_and_its_heads_belong_together(saved: Path) -> None:
    with refused(ConfigError, saved, "fine-tuned"):
        OtterModel.from_pretrained(toy_base(), saved)
    toy_base().save_pretrained(saved / "base")
    with refused(MismatchError, saved, saved / "base", "base_fingerprint"):
        load(saved)
    with refused(MismatchError, saved, saved / "base", "base_fingerprint"):
        full().load_weights(saved)
    shutil.rmtree(saved / "base")
    with refused(FileError, saved / "base"):
        load(saved)


def test_replaces_only_its_like_unasked(saved: Path, tmp_path: Path) -> None:
    full().save_pretrained(saved)
    with refused(ConfigError, saved, "insertion", "force"):
        full_reward_model(toy_base(), ("a", "b")).save_pretrained(saved)
    base = toy_base()
    insert(base, full().insertion).save_pretrained(tmp_path / "frozen")
    with refused(ConfigError, tmp_path / "frozen", "frozen base", "force"):
        full().save_pretrained(tmp_path / "frozen")
    with refused(FileError, "otter_config.json", "fine_tuned_base", "base"):
        full().load_weights(tmp_path / "frozen")
    full().save_pretrained(tmp_path / "frozen", force=True)
    assert isinstance(load(tmp_path / "frozen"), FullRewardModel)


def test_a_frozen_adapter_does_not_replace_it_unasked(saved: Path) -> None:
    frozen = insert(toy_base(), full().insertion)
    with refused(ConfigError, saved, "reward", "force"):
        frozen.save_pretrained(saved)
    frozen.save_pretrained(saved, force=True)
    assert not isinstance(OtterModel.from_pretrained(toy_base(), saved), FullRewardModel)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole, resumed = full(), full(seed=9)
    trainer(whole, tmp_path, **options).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    trainer(resumed, tmp_path, **options).train(resume_from_checkpoint=True)
    expected = tensors(whole)
    for name, tensor in tensors(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(rewards(resumed), rewards(whole))
    loaded = load(tmp_path / "checkpoint-3")
    assert not torch.equal(rewards(loaded), rewards(whole))


def test_a_checkpoint_with_a_damaged_base_is_incomplete(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer(full(), tmp_path, **options).train()
    file = tmp_path / "checkpoint-2" / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    with refused(FileError, "checkpoint-2", "base/model.safetensors"):
        trainer(full(), tmp_path, **options).train(resume_from_checkpoint=True)


def test_runs_as_a_second_model_in_llama_cpp(tmp_path: Path) -> None:
    model = full_reward_model(native_base(), (HeadConfig("a", activation="tanh"), "b"))
    trainer(model, tmp_path / "run").train()
    calibrate(model, data(8))
    model.save_pretrained(tmp_path / "full")
    base = write_gguf_base(tmp_path / "base.gguf", model.base_model)
    sidecar = f32_sidecar(tmp_path / "full", base, tmp_path / "full.otter.gguf")
    torch.testing.assert_close(native_rewards(base, sidecar), rewards(model, TOKENS), atol=1e-4, rtol=0)
    untrained = write_gguf_base(tmp_path / "other.gguf", native_base())
    with refused(MismatchError, "full.otter.gguf", untrained, "fingerprint"):
        native_rewards(untrained, sidecar)


@pytest.mark.slow
def test_its_folder_converts_to_a_pair(tmp_path: Path) -> None:
    """The way of the documentation, with llama.cpp's converter."""
    folder = native_folder(tmp_path / "hf")
    model = full_reward_model(native_base())
    trainer(model, tmp_path / "run").train()
    model.tokenizer = load_tokenizer(folder)
    model.save_pretrained(tmp_path / "full")
    base = convert_folder(tmp_path / "full" / "base", tmp_path / "base.gguf")
    sidecar = f32_sidecar(tmp_path / "full", base, tmp_path / "full.otter.gguf")
    torch.testing.assert_close(native_rewards(base, sidecar), rewards(model, TOKENS), atol=1e-4, rtol=0)


def test_refuses_what_cannot_be_trained_as_a_whole() -> None:
    base = toy_base()
    with refused(ConfigError, "width", 8):
        FullRewardModel(base, InsertionConfig.uniform(geometry(base), 8))
    base.lm_head.weight = torch.nn.Parameter(torch.zeros(258, 32, dtype=torch.int8), requires_grad=False)
    with refused(UnsupportedError, "quantized"):
        full_reward_model(base)
