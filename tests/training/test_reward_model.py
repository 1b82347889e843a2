"""The view that TRL trains: rewards of whole sequences, and a run of TRL's own RewardTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from transformers.trainer_utils import set_seed
from trl import RewardConfig, RewardTrainer

from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError
from otter_gguf.training import OtterModel, OtterRewardModel
from tests.refusals import refused
from tests.training.toy import toy_base, toy_folder, toy_otter, toy_rows, toy_tokenizer

HEADS = (
    HeadConfig("safety", ("harmless", "helpful"), "both", "sigmoid", (2.0, 3.0), (0.5, -1.0)),
    HeadConfig("tone", input="base"),
)


@pytest.fixture
def texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (length,), generator=draw).tolist() for length in (9, 4, 13)]


def padded(texts: list[list[int]], side: str, token: int = 257) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    rows, masks = [], []
    for text in texts:
        padding, ones = [token] * (width - len(text)), [1] * len(text)
        rows.append(text + padding if side == "right" else padding + text)
        masks.append(ones + [0] * len(padding) if side == "right" else [0] * len(padding) + ones)
    return torch.tensor(rows), torch.tensor(masks)


def alone(model: OtterModel, text: list[int], column: int = 0) -> Tensor:
    return model.rewards(torch.tensor([text]))[0, -1, column]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_reward_of_the_last_token_that_is_no_padding(texts: list[list[int]], side: str) -> None:
    model = toy_otter("normal")
    tokens, mask = padded(texts, side)
    logits = OtterRewardModel(model)(tokens, attention_mask=mask).logits
    expected = torch.stack([alone(model, text) for text in texts])
    assert logits.shape == (3, 1)
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-5, rtol=0)
    assert (logits[:, 0] - model.rewards(tokens)[:, -1, 0]).abs().max() > 0.01  # without the mask


@torch.no_grad()
def test_an_end_of_text_token_counts_although_padding_is_the_same_token(texts: list[list[int]]) -> None:
    model = toy_otter("normal")
    ended = [[*text, 257] for text in texts]
    logits = OtterRewardModel(model)(*padded(ended, "right")).logits[:, 0]
    torch.testing.assert_close(logits, torch.stack([alone(model, text) for text in ended]), atol=1e-5, rtol=0)
    assert (logits - torch.stack([alone(model, text) for text in texts])).abs().min() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_gradients_alone(texts: list[list[int]], side: str) -> None:
    padded_model, model = toy_otter("normal"), toy_otter("normal")
    OtterRewardModel(padded_model)(*padded(texts, side)).logits.sum().backward()
    torch.stack([alone(model, text) for text in texts]).sum().backward()
    others = model.inserted_parameters()
    for name, tensor in padded_model.inserted_parameters().items():
        torch.testing.assert_close(tensor.grad, others[name].grad, atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_chooses_among_rewards_and_reads_calibration(texts: list[list[int]]) -> None:
    model = toy_otter("normal", heads=HEADS)
    tokens = torch.tensor([texts[0]])
    expected = model.rewards(tokens)[0]
    for column, name in enumerate(("safety.harmless", "safety.helpful", "tone")):
        view = OtterRewardModel(model, name)
        torch.testing.assert_close(view(tokens).logits[0, 0], expected[-1, column])
        state = view.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        torch.testing.assert_close(view.score(state)[0, :, 0], expected[:, column])


@pytest.mark.parametrize("reward", [None, "safety", "harmless", ""])
def test_an_ambiguous_or_unknown_reward_is_refused(reward: str | None) -> None:
    with refused(ConfigError, repr(reward), "safety.harmless, safety.helpful, tone"):
        OtterRewardModel(toy_otter(heads=HEADS), reward)


def test_a_view_shares_tensors_and_not_the_configuration() -> None:
    model = toy_otter()
    before = model.config.to_dict()
    view = OtterRewardModel(model)
    view.config.pad_token_id = 7
    assert view.config.num_labels == 1
    assert model.config.to_dict() == before
    trained = {id(parameter) for parameter in view.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in model.inserted_parameters().values()}
    assert model.inserted_parameters().keys() == toy_otter().inserted_parameters().keys()


def reward_trainer(model: OtterRewardModel, output: Path, steps: int, **options: Any) -> RewardTrainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 5,
        "save_strategy": "no",
        "bf16": False,
        "center_rewards_coefficient": 0.01,
        **options,
    }
    config = RewardConfig(
        output_dir=str(output), max_steps=steps, use_cpu=True, disable_tqdm=True, report_to=[], **settings
    )
    return RewardTrainer(model, config, train_dataset=Dataset.from_list(toy_rows(64)), processing_class=toy_tokenizer())


def test_trls_trainer_learns_and_leaves_the_base(tmp_path: Path) -> None:
    set_seed(0)
    toy_folder(tmp_path / "base")
    model = toy_otter("normal")
    base = {name: tensor.clone() for name, tensor in toy_base().state_dict().items()}
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    run = reward_trainer(OtterRewardModel(model), tmp_path / "out", 30)
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.2
    after = {name.replace(".base.", "."): tensor for name, tensor in model.base_model.state_dict().items()}
    assert [name for name, tensor in base.items() if not torch.equal(tensor, after[name])] == []
    assert [name for name, tensor in model.inserted_parameters().items() if torch.equal(tensor, before[name])] == []


def test_what_trls_trainer_saves_is_the_adapter(tmp_path: Path) -> None:
    toy_folder(tmp_path / "base")
    model = toy_otter("normal")
    model.base_name = str(tmp_path / "base")
    view = OtterRewardModel(model)
    run = reward_trainer(view, tmp_path / "out", 2, save_strategy="steps", save_steps=1)
    run.train()
    run.save_model()
    batch = padded([[5, 6, 7], [8, 9, 10, 11]], "right")
    with torch.no_grad():
        expected = view(*batch).logits
        for folder, same in ((tmp_path / "out", True), (tmp_path / "out" / "checkpoint-1", False)):
            found = OtterRewardModel(OtterModel.from_pretrained(None, folder))(*batch).logits
            assert torch.equal(found, expected) == same
    assert [file.name for file in (tmp_path / "out").rglob("*model*.safetensors")].count("otter_model.safetensors") == 3
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == 258


def test_a_plain_language_model_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_labels"):
        reward_trainer(cast(Any, toy_base()), tmp_path, 1)
