"""Vocabulary heads: the formula against a slow one, first values, and the unit that they share with their reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError, UnsupportedError
from otter_gguf.training import OtterModel, calibrate, geometry, insert, tokenise_rows
from otter_gguf.training.initialisation import output_embedding
from otter_gguf.training.modules import ValueHead
from otter_gguf.training.vocabulary import VocabularyHead, principal_table
from tests.refusals import refused

from .toy import toy_base, toy_otter, toy_rows, toy_tokenizer

TANH = HeadConfig("tone", ("kind",), "inserted", "tanh", (2.0,), (0.5,))


def next_head(rank: int = 6, **fields: Any) -> HeadConfig:
    return HeadConfig("next", ("tone",), kind="vocabulary", rank=rank, **fields)


def vocabulary_model(head: HeadConfig | None = None, value: HeadConfig = TANH, **changes: Any) -> OtterModel:
    """A toy with random numbers in every tensor of its vocabulary head."""
    model = toy_otter(heads=(value, head or next_head()), **changes)
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in model.heads["next"].parameters():
            tensor.normal_()
    return model


def next_of(model: OtterModel) -> VocabularyHead:
    return model.vocabulary_heads["next"]


TOKENS = torch.arange(14).reshape(2, 7) * 17 % 256

# ---- the formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_input", ["inserted", "base", "both"])
@pytest.mark.parametrize("activation", ["none", "tanh"])
def test_scores_are_the_formula_token_by_token(head_input: Any, activation: Any) -> None:
    model = vocabulary_model(next_head(input=head_input, activation=activation, scale=(3.0,), shift=(-1.0,)))
    output, head = model(TOKENS), next_of(model)
    scores = head.scores(output.queries["next"])
    assert scores.shape == (2, 7, 258)
    state = output.final_state[1, 4].double()
    s = {"inserted": state[32:], "base": state[:32], "both": state}[head_input]
    weight, bias = head.otter.weight.double(), cast(Tensor, head.otter.bias).double()
    for token in (0, 100, 257):
        row = head.table.otter.weight[token].double()
        raw = sum((weight[i] @ s + bias[i]) * row[i] for i in range(6)) + weight[6] @ s + bias[6]
        expected = 3.0 * (raw.tanh() if activation == "tanh" else raw) - 1.0
        torch.testing.assert_close(scores[1, 4, token].double(), expected, rtol=1e-5, atol=1e-5)


def test_some_candidates_have_the_scores_that_they_have_among_all() -> None:
    model = vocabulary_model()
    query, head = model(TOKENS).queries["next"], next_of(model)
    candidates = torch.randint(0, 258, (2, 7, 5))
    torch.testing.assert_close(head.scores(query, candidates), head.scores(query).gather(2, candidates))
    one = head.scores(query[1, 4], candidates[1, 4])
    torch.testing.assert_close(one, head.scores(query)[1, 4, candidates[1, 4]])


def test_a_head_adds_no_reward_and_changes_neither_rewards_nor_logits() -> None:
    with_head, without = vocabulary_model(), toy_otter(heads=(TANH,))
    ours, other = with_head(TOKENS), without(TOKENS)
    assert with_head.insertion.n_rewards == 1
    torch.testing.assert_close(ours.rewards, other.rewards, rtol=0, atol=0)
    torch.testing.assert_close(ours.logits, other.logits, rtol=0, atol=0)
    assert other.queries is None
    with with_head.disable_insertion():
        assert with_head(TOKENS).queries is None


def test_softmax_is_taken_over_the_labels_of_its_own_head() -> None:
    classes = HeadConfig("class", ("a", "b", "c"), activation="softmax", scale=(2.0, 1.0, 1.0), shift=(0.0, 0.0, -1.0))
    model = toy_otter(heads=(TANH, classes))
    output = model(TOKENS)
    raw = output.raw_rewards[..., 1:].double()
    share = raw.exp() / raw.exp().sum(-1, keepdim=True)
    expected = share * torch.tensor([2.0, 1.0, 1.0]) + torch.tensor([0.0, 0.0, -1.0])
    torch.testing.assert_close(output.rewards[..., 1:].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.rewards[..., 0], 2.0 * output.raw_rewards[..., 0].tanh() + 0.5)
    head = model.value_heads["class"]
    torch.testing.assert_close(head(output.final_state), output.rewards[..., 1:])


# ---- first values ------------------------------------------------------------------------------------------------


def test_every_score_starts_as_the_reward_of_the_prefix() -> None:
    model = toy_otter(heads=(TANH, next_head(activation="tanh", scale=(2.0,), shift=(0.5,))))
    output = model(TOKENS)
    scores = next_of(model).scores(output.queries["next"])
    torch.testing.assert_close(scores, output.rewards.expand(-1, -1, 258))
    assert scores.std() > 0.1


@pytest.mark.parametrize("value_input", ["inserted", "base"])
def test_a_head_that_reads_more_starts_as_the_reward_too(value_input: Any) -> None:
    value = HeadConfig("tone", ("kind",), value_input)
    model = toy_otter(heads=(value, next_head(input="both")))
    output = model(TOKENS)
    torch.testing.assert_close(next_of(model).scores(output.queries["next"]), output.rewards.expand(-1, -1, 258))


def test_a_head_that_reads_something_else_starts_at_zero() -> None:
    model = toy_otter(heads=(HeadConfig("tone", ("kind",), "base"), next_head(input="inserted")))
    assert next_of(model).scores(model(TOKENS).queries["next"]).abs().max() == 0


def test_the_table_is_white_and_ordered_and_depends_on_the_embedding_alone() -> None:
    embedding = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 24) + 5.0
    table = principal_table(embedding, 8)
    torch.testing.assert_close(table.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.T @ table / 300, torch.eye(8), atol=1e-4, rtol=0)
    centred = embedding - embedding.mean(0)
    explained = (centred.T @ table / 300).square().sum(0)  # squared covariance with the embedding = variance
    singular = torch.linalg.svdvals(centred)[:8].square() / 300
    torch.testing.assert_close(explained, singular, rtol=1e-3, atol=1e-4)
    assert torch.equal(table, principal_table(embedding.clone(), 8))
    assert torch.equal(table[:, :3], principal_table(embedding, 3))


def test_a_direction_without_variance_is_zero() -> None:
    embedding = torch.randn(50, 3) @ torch.randn(3, 10)
    table = principal_table(embedding, 5)
    assert torch.isfinite(table).all()
    assert table[:, 3:].abs().max() == 0
    assert table[:, :3].std() > 0.5


def test_a_tied_base_gives_its_embedding_and_a_quantized_one_is_refused() -> None:
    model = toy_otter(base=toy_base(tie_word_embeddings=True), heads=(TANH, next_head()))
    weight = output_embedding(model)
    embedding = model.base_model.get_submodule("model.embed_tokens.base")
    assert weight.data_ptr() == cast(Tensor, embedding.weight).data_ptr()
    torch.testing.assert_close(next_of(model).table.otter.weight, principal_table(weight, 6))
    base = toy_base()
    base.lm_head.weight = torch.nn.Parameter(torch.ones(258, 32, dtype=torch.int8), requires_grad=False)
    config = InsertionConfig.uniform(geometry(base), width=8, heads=(TANH, next_head()))
    with refused(UnsupportedError, "quantized", "embedding"):
        insert(base, config, "normal")


def test_a_vocabulary_head_leaves_the_first_values_of_all_else_alone() -> None:
    plain, both = toy_otter(heads=(TANH,)), toy_otter(heads=(next_head(), TANH))
    for name, tensor in plain.inserted_parameters().items():
        assert torch.equal(tensor, both.inserted_parameters()[name]), name


# ---- unit --------------------------------------------------------------------------------------------------------


def test_scores_follow_a_calibration_of_their_reward() -> None:
    value = HeadConfig("tone", ("kind",), scale=(2.0,), shift=(0.5,))
    model = vocabulary_model(next_head(scale=(4.0,), shift=(-3.0,)), value)
    query = model(TOKENS).queries["next"]
    before = next_of(model).scores(query).detach()
    next_of(model).follow("tone", mean=1.5, deviation=3.0)
    after = next_of(model).scores(model(TOKENS).queries["next"]).detach()
    torch.testing.assert_close(after, (before - 1.5) / 3.0, rtol=1e-4, atol=1e-4)
    next_of(model).follow("other", mean=1.0, deviation=2.0)
    torch.testing.assert_close(next_of(model).scores(model(TOKENS).queries["next"]), after, rtol=0, atol=0)


def test_calibrating_the_value_heads_calibrates_the_scores() -> None:
    value = HeadConfig("tone", ("kind",), scale=(2.0,), shift=(0.5,))
    model = vocabulary_model(next_head(scale=(4.0,), shift=(-3.0,)), value)
    before = next_of(model).scores(model(TOKENS).queries["next"]).detach()
    found = calibrate(model, tokenise_rows(toy_rows(12), toy_tokenizer()))
    after = next_of(model).scores(model(TOKENS).queries["next"]).detach()
    mean, deviation = found["tone"]
    assert abs(deviation - 1) > 0.05
    torch.testing.assert_close(after, (before - mean) / deviation, rtol=1e-4, atol=1e-4)


def test_bounded_rewards_and_their_scores_are_not_calibrated() -> None:
    model = vocabulary_model(next_head(activation="tanh"))
    before = next_of(model).scores(model(TOKENS).queries["next"]).detach()
    assert calibrate(model, tokenise_rows(toy_rows(4), toy_tokenizer())) == {}
    assert torch.equal(next_of(model).scores(model(TOKENS).queries["next"]), before)


# ---- checkpoint --------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_the_scores_back_and_one_without_the_table_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = vocabulary_model()
    assert {name: tuple(t.shape) for name, t in model.inserted_parameters().items() if "next" in name} == {
        "heads.next.otter.weight": (7, 8),
        "heads.next.otter.bias": (7,),
        "heads.next.table.otter.weight": (258, 6),
    }
    model.save_pretrained(tmp_path / "a")
    again = OtterModel.from_pretrained(toy_base(), tmp_path / "a")
    expected = next_of(model).scores(model(TOKENS).queries["next"])
    assert torch.equal(next_of(again).scores(again(TOKENS).queries["next"]), expected)
    tensors = load_file(tmp_path / "a" / "otter_model.safetensors")
    del tensors["heads.next.table.otter.weight"]
    save_file(tensors, tmp_path / "a" / "otter_model.safetensors")
    with refused(FileError, "otter_model.safetensors", "heads.next.table.otter.weight"):
        OtterModel.from_pretrained(toy_base(), tmp_path / "a")


def test_heads_are_told_apart() -> None:
    model = vocabulary_model()
    assert isinstance(model.value_heads["tone"], ValueHead)
    assert list(model.vocabulary_heads) == ["next"]
    with refused(ConfigError, "'next'", "'tone'", "reward"):
        toy_otter(heads=(HeadConfig(), next_head()))
