"""Distillation: the teacher's one pass is exact, its targets have the head's unit, and the loss teaches a ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError, UnsupportedError
from otter_gguf.training import OtterModel, OtterTrainer, TrainConfig, tokenise_rows
from otter_gguf.training.data import collate
from otter_gguf.training.distillation import (
    CandidateRewards,
    Candidates,
    Distillation,
    DistillConfig,
    agreement,
    candidate_loss,
    candidate_rewards,
    draw_positions,
    rank_correlation,
    score_targets,
    top_candidates,
)
from tests.refusals import refused

from .toy import toy_base, toy_otter, toy_rows, toy_tokenizer

HEADS = (HeadConfig("tone"), HeadConfig("next", ("tone",), "both", kind="vocabulary", rank=16))


def toy_batch(count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    return collate(tokenise_rows(toy_rows(count, seed), toy_tokenizer()).rows)


class ObservedToken(Distillation):
    """The ablation: at each position the one candidate is the token that the text goes on with."""

    def propose(self, model: OtterModel, tokens: Tensor, position: Tensor, state: Tensor) -> Tensor:
        return tokens.gather(1, (position + 1).clamp_max(tokens.shape[1] - 1))[..., None]


# ---- the teacher ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("state_source", ["slice", "table"])
def test_candidates_in_one_pass_have_the_rewards_that_feeding_them_gives(attention: str, state_source: Any) -> None:
    heads = (HeadConfig("tone", activation="tanh"), HeadConfig("safety", ("a", "b"), "both"))
    base = toy_base(attn_implementation=attention)
    model = toy_otter(base=base, heads=heads, state_source=state_source)
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    position = torch.tensor([[0, 5, 9], [2, 3, 11]])
    proposed = torch.randint(0, 256, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    found = candidate_rewards(model, tokens, Candidates(position, proposed, torch.ones(2, 3, dtype=torch.bool)))
    assert found.rewards.shape == (2, 3, 4, 3)
    for text, place, choice in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        prefix = tokens[text, : position[text, place] + 1]
        fed = model(torch.cat([prefix, proposed[text, place, choice, None]])[None])
        torch.testing.assert_close(found.rewards[text, place, choice], fed.rewards[0, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.raw[text, place, choice], fed.raw_rewards[0, -1], rtol=0, atol=1e-5)
    assert found.rewards.std(2).min() > 1e-3  # the candidates do differ


def test_other_attention_is_refused() -> None:
    model = toy_otter(heads=HEADS)
    model.config._attn_implementation = "flash_attention_2"
    with refused(UnsupportedError, "'sdpa'", "'eager'", "'flash_attention_2'"):
        candidate_rewards(model, torch.zeros(1, 3, dtype=torch.long), _one_candidate())


def _one_candidate() -> Candidates:
    return Candidates(torch.tensor([[1]]), torch.tensor([[[5]]]), torch.ones(1, 1, dtype=torch.bool))


def test_candidates_are_the_bases_most_likely_tokens() -> None:
    model = toy_otter(heads=HEADS)
    output = model(toy_batch()["input_ids"])
    expected = output.logits.topk(5, dim=-1).indices
    assert torch.equal(top_candidates(model, output.final_state, 5), expected)
    assert top_candidates(model, output.final_state, 1000).shape[-1] == 258


def test_targets_are_what_makes_scores_equal_rewards() -> None:
    """For each activation: the head's own calibration of the target is the reward."""
    cases: list[tuple[HeadConfig, dict[str, Any], str]] = [
        (HeadConfig("tone", scale=(2.0,), shift=(1.0,)), {"scale": (4.0,), "shift": (-1.0,)}, "tone"),
        (HeadConfig("tone", activation="tanh"), {}, "tone"),
        (HeadConfig("tone", activation="tanh", scale=(3.0,)), {"activation": "tanh", "scale": (3.0,)}, "tone"),
        (HeadConfig("c", ("x", "y", "z"), activation="softmax"), {"activation": "sigmoid"}, "c.y"),
        (HeadConfig("c", ("x", "y", "z"), activation="softmax"), {}, "c.z"),
    ]
    for value, fields, label in cases:
        other = HeadConfig("other", ("p", "q"))
        head_config = HeadConfig("next", (label,), kind="vocabulary", rank=4, **fields)
        model = toy_otter(heads=(other, value, head_config))
        output, head = model(toy_batch()["input_ids"]), model.vocabulary_heads["next"]
        target = score_targets(
            model, head, CandidateRewards(output.rewards[:, :, None], output.raw_rewards[:, :, None])
        )
        reward = output.rewards[..., model.insertion.reward_labels.index(label), None]
        torch.testing.assert_close(head.calibrated(target), reward, rtol=1e-4, atol=1e-5)


# ---- positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_positions_are_different_and_inside(training: bool) -> None:
    first, end = torch.tensor([3, 0, 5, 7]), torch.tensor([20, 2, 5, 11])
    seen: set[int] = set()
    for _ in range(40):
        position, mask = draw_positions(first, end, 4, training)
        assert mask.sum(1).tolist() == [4, 2, 0, 4]
        for row in range(4):
            there = position[row][mask[row]].tolist()
            assert len(set(there)) == len(there)
            assert all(first[row] <= p < end[row] for p in there)
        seen |= set(position[0].tolist())
    assert len(seen) == (17 if training else 4)


# ---- loss and metrics ----------------------------------------------------------------------------------------------


def test_the_loss_written_out() -> None:
    scores, target = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double() * 2
    mask = torch.tensor([[True, True, False], [True, False, True]])
    rows = [(scores[text, place], target[text, place]) for text, place in mask.nonzero().tolist()]
    n = len(rows)
    means = [float(y.mean()) for _, y in rows]
    within = [float(((y - y.mean()) ** 2).mean()) for _, y in rows]
    between = sum((m - sum(means) / n) ** 2 for m in means) / n
    expected = 0.0
    for (s, y), own in zip(rows, within, strict=True):
        e = s - y
        expected += float(e.mean()) ** 2 / between / n
        expected += float(((e - e.mean()) ** 2).mean()) / (own + 0.1 * sum(within) / n) / n
    assert float(candidate_loss(scores, target, mask)) == pytest.approx(expected)
    assert float(candidate_loss(target, target, mask)) == 0
    assert float(candidate_loss(scores, target, torch.zeros_like(mask))) == 0


def test_the_loss_sees_a_ranking_that_a_plain_squared_error_does_not() -> None:
    prefix = 100 * torch.randn(1, 64, 1)
    target = prefix + torch.randn(1, 64, 8)
    mask = torch.ones(1, 64, dtype=torch.bool)
    no_ranking = prefix.expand_as(target)
    assert (no_ranking - target).square().mean() / target.var() < 0.01
    assert candidate_loss(no_ranking, target, mask) > 0.5


def test_rewards_are_drawn_to_the_scores_and_not_to_a_larger_spread() -> None:
    """For scores with half the spread of the rewards, both parts pull the rewards inwards."""
    target = torch.randn(1, 6, 5).requires_grad_()
    scores, mask = 0.5 * target.detach(), torch.ones(1, 6, dtype=torch.bool)
    candidate_loss(scores, target, mask).backward()
    gradient = cast(Tensor, target.grad)
    assert (gradient * (target.detach() - target.detach().mean(-1, keepdim=True))).sum(-1).min() > 0
    torch.testing.assert_close(candidate_loss(0.01 * scores, 0.01 * target, mask), candidate_loss(scores, target, mask))


def test_rank_correlation_and_agreement() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 9.0, 1.0]])
    b = torch.tensor([[10.0, 20.0, 30.0, 31.0], [4.0, 3.0, 2.0, 1.0], [4.0, 9.0, 3.0, 1.0]])
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor([1.0, -1.0, 0.2]).double())
    mask = torch.tensor([[True, False, True]])
    torch.testing.assert_close(agreement(a[None], b[None], mask), torch.tensor([0.6, 0.5]))


# ---- training ------------------------------------------------------------------------------------------------------


def distill(model: OtterModel, kind: type[Distillation] = Distillation, steps: int = 40) -> None:
    """Train what the loss reaches, the heads alone, so that teacher and candidates stay the same."""
    torch.manual_seed(0)
    term = kind(DistillConfig(candidates=8, positions=8, share=1.0, train_blocks=False))
    batch = toy_batch(8)
    optimizer = torch.optim.Adam(model.vocabulary_heads["next"].parameters(), lr=5e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        term(model, batch, model(batch["input_ids"], use_cache=False, return_logits=False))[0].backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def measured(model: OtterModel, seed: int) -> dict[str, float]:
    """The logged values on other texts."""
    term = Distillation(DistillConfig(candidates=8, positions=6))
    batch = toy_batch(8, seed)
    values = term(model, batch, model(batch["input_ids"], use_cache=False, return_logits=False))[1]
    return {name: float(value) for name, value in values.items()}


def test_distillation_ranks_candidates_and_the_observed_token_alone_does_not() -> None:
    distilled, observed = toy_otter(heads=HEADS), toy_otter(heads=HEADS)
    before = measured(distilled, seed=5)
    distill(distilled)
    distill(observed, ObservedToken)
    after, ablation = measured(distilled, seed=5), measured(observed, seed=5)
    assert set(after) == {"distill_error", "distill_rank", "distill_top"}
    assert after["distill_error"] < 0.7 * before["distill_error"]
    assert after["distill_rank"] > max(before["distill_rank"], ablation["distill_rank"]) + 0.15
    assert after["distill_error"] < 0.5 * ablation["distill_error"]


@pytest.mark.parametrize("train_blocks", [True, False])
def test_gradients_reach_the_head_and_all_else_only_if_asked(train_blocks: bool) -> None:
    model = toy_otter("normal", heads=HEADS)  # with copy, inserted attention does not reach h' at first
    head = model.vocabulary_heads["next"]
    with torch.no_grad():
        head.otter.weight.normal_()
    batch = toy_batch()
    term = Distillation(DistillConfig(positions=3, weight=0.5, train_blocks=train_blocks))
    loss, logged = term(model, batch, model(batch["input_ids"], use_cache=False, return_logits=False))
    assert float(loss.detach()) == pytest.approx(0.5 * float(logged["distill_error"]))
    loss.backward()
    touched = {n for n, p in model.inserted_parameters().items() if p.grad is not None and p.grad.abs().max() > 0}
    own = {"heads.next.otter.weight", "heads.next.otter.bias", "heads.next.table.otter.weight"}
    assert touched == (set(model.inserted_parameters()) if train_blocks else own)
    gradient = cast(Tensor, head.otter.weight.grad).abs()
    assert gradient[:-1].max() > 0, "W"
    assert gradient[-1].max() > 0, "w"


def toy_run(folder: Path, steps: int, extra: Any = (), **changes: Any) -> OtterTrainer:
    arguments = TrainConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        **changes,
    )
    data = tokenise_rows(toy_rows(16), toy_tokenizer())
    return OtterTrainer(toy_otter(heads=HEADS), arguments, data, extra_losses=extra)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    term = Distillation(DistillConfig(candidates=4, positions=2))
    whole = toy_run(tmp_path / "whole", 4, [term])
    whole.train()
    assert {"distill_error", "distill_rank", "distill_top"} <= set(whole.state.log_history[0])
    resumed = toy_run(tmp_path / "whole", 4, [term])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    fresh = toy_run(tmp_path / "other", 4)
    fresh.train()
    for name, tensor in whole.otter.inserted_parameters().items():
        assert torch.equal(tensor, resumed.otter.inserted_parameters()[name]), name
    table = "heads.next.table.otter.weight"
    assert not torch.equal(whole.otter.inserted_parameters()[table], fresh.otter.inserted_parameters()[table])


def test_without_a_vocabulary_head_there_is_nothing_to_distil() -> None:
    model, batch = toy_otter(), toy_batch()
    with refused(ConfigError, "vocabulary head"):
        Distillation()(model, batch, model(batch["input_ids"]))


@pytest.mark.parametrize(
    "fields",
    [{"candidates": 0}, {"positions": 0}, {"share": 0.0}, {"share": 1.5}, {"weight": 0.0}, {"weight": float("nan")}],
)
def test_contradictory_settings_are_refused(fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    with refused(ConfigError, name, value):
        DistillConfig(**fields)
