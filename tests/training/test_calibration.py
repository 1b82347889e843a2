"""Calibrated rewards: mean 0 and deviation 1 over prefixes, the same order as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError
from otter_gguf.training import OtterModel, RewardDataset, calibrate, tokenise_rows
from otter_gguf.training.data import Graded
from tests.refusals import refused
from tests.training.toy import toy_otter, toy_rows, toy_tokenizer

HEADS = (
    HeadConfig("plain"),
    HeadConfig("bounded", activation="sigmoid"),
    HeadConfig("scaled", ("x", "y"), "both", scale=(2.0, -0.5), shift=(3.0, 1.0)),
)


@pytest.fixture
def data() -> RewardDataset:
    return tokenise_rows(toy_rows(24), toy_tokenizer())


def prefix_rewards(model: OtterModel, data: RewardDataset) -> Tensor:
    """(prefixes, n_rewards), response by response."""
    found = []
    for pair in data.rows:
        for tokens in pair.sequences:
            with torch.no_grad():
                found.append(model.rewards(torch.tensor([tokens]))[0, pair.start :])
    return torch.cat(found)


def test_rewards_get_mean_0_and_deviation_1(data: RewardDataset) -> None:
    model = toy_otter("normal", heads=HEADS)
    before = prefix_rewards(model, data)
    found = calibrate(model, data, batch_size=5)
    after = prefix_rewards(model, data)
    assert list(found) == ["plain", "scaled.x", "scaled.y"]
    for label, column in {"plain": 0, "scaled.x": 2, "scaled.y": 3}.items():
        assert found[label] == pytest.approx(
            (before[:, column].mean().item(), before[:, column].std().item()), abs=1e-4
        )
        assert after[:, column].mean().item() == pytest.approx(0, abs=1e-4)
        assert after[:, column].std().item() == pytest.approx(1, abs=1e-4)
        assert abs(before[:, column].mean().item()) > 1e-2
        expected = (before[:, column] - found[label][0]) / found[label][1]
        torch.testing.assert_close(after[:, column], expected, atol=1e-4, rtol=0)
    assert torch.equal(after[:, 1], before[:, 1])
    assert model.insertion.heads == HEADS


def test_a_second_calibration_changes_nothing_more(data: RewardDataset) -> None:
    model = toy_otter("normal", heads=HEADS)
    calibrate(model, data)
    for mean, deviation in calibrate(model, data).values():
        assert mean == pytest.approx(0, abs=1e-4)
        assert deviation == pytest.approx(1, abs=1e-4)


def test_only_the_first_pairs_are_read(data: RewardDataset) -> None:
    few, part, whole = (toy_otter("normal") for _ in range(3))
    calibrate(few, data, max_pairs=8)
    calibrate(part, RewardDataset(data.rows[:8]))
    calibrate(whole, data)
    name = "heads.reward.otter.weight"
    tensors: list[Any] = [model.inserted_parameters()[name] for model in (few, part, whole)]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[0], tensors[2])


def test_rewards_with_labels_of_their_own_stay(data: RewardDataset) -> None:
    model, texts = toy_otter("normal", heads=HEADS), [Graded(row.sequences[0], row.start, 0.5, 2) for row in data.rows]
    assert list(calibrate(model, RewardDataset([*texts, *data.rows]))) == ["plain"]
    before = {name: tensor.detach().clone() for name, tensor in model.inserted_parameters().items()}
    assert calibrate(model, RewardDataset([*texts])) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.inserted_parameters().items())
    assert list(calibrate(model, RewardDataset([*data.rows]))) == ["plain", "scaled.x", "scaled.y"]


def test_a_constant_reward_cannot_be_calibrated(data: RewardDataset) -> None:
    model = toy_otter("normal")
    with torch.no_grad():
        model.inserted_parameters()["heads.reward.otter.weight"].zero_()
    with refused(ConfigError, "'reward'"):
        calibrate(model, data)
