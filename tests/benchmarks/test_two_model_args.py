"""ARGS by a second model against ARGS by own rewards (benchmarks/two_model_args.py), on the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import two_model_args
from benchmarks.two_model_args import Lab, OwnRewards, Plain, SecondModel, Settings, best_weight, decode, decode_part
from otter_gguf.demo import demo_files
from otter_gguf.training import OtterModel

SETTINGS = Settings(pairs=16, trial_pairs=16, held_out=4, prompts=2, tuning_prompts=2, max_tokens=5, weights=(1.0, 4.0))
END = -1  # no token: texts go on to max_tokens


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    return Lab(tmp_path_factory.mktemp("lab"), SETTINGS)


@pytest.fixture(scope="module")
def otter(lab: Lab) -> OtterModel:
    return lab.trained("otter").eval()


@pytest.fixture(scope="module")
def prompt(lab: Lab) -> torch.Tensor:
    return torch.tensor(lab.tokenizer()(demo_files().load_prompts()[0])["input_ids"])


def test_a_second_model_with_the_same_rewards_guides_to_the_same_text(
    lab: Lab, otter: OtterModel, prompt: torch.Tensor
) -> None:
    own, second = OwnRewards(otter), SecondModel(lab.base(), otter)
    texts = [[decode(decoder, prompt, 4.0, SETTINGS, END, seed)[0] for seed in range(3)] for decoder in (own, second)]
    assert texts[0] == texts[1]
    unguided = [decode(own, prompt, 0.0, SETTINGS, END, seed)[0] for seed in range(3)]
    assert unguided != texts[0]


def test_rewards_of_candidates_are_those_of_the_whole_texts(otter: OtterModel, prompt: torch.Tensor) -> None:
    """The cache follows the candidate that was taken."""
    decoder = OwnRewards(otter)
    with torch.no_grad():
        logits, text = decoder.start(prompt), prompt
        for index in (3, 0, 7):
            candidates = logits.topk(10).indices
            rewards = decoder.rewards(candidates)
            whole = torch.cat([text.expand(10, -1), candidates[:, None]], dim=1)
            torch.testing.assert_close(rewards, otter.rewards(whole)[:, -1, 0], atol=1e-4, rtol=0)
            assert rewards.std() > 0
            logits, text = decoder.take(candidates, index), whole[index]
            torch.testing.assert_close(logits, otter(text[None]).logits[0, -1], atol=1e-3, rtol=0)


def test_weight_0_is_plain_decoding(lab: Lab, otter: OtterModel, prompt: torch.Tensor) -> None:
    plain = decode(Plain(lab.base()), prompt, 0.0, SETTINGS, END, seed=5)
    guided = decode(OwnRewards(otter), prompt, 0.0, SETTINGS, END, seed=5)
    assert guided[0] == plain[0]
    assert guided[1] == pytest.approx(plain[1], abs=1e-3)


def test_what_a_token_costs_is_counted(lab: Lab, otter: OtterModel) -> None:
    """Every token but the last of a text is followed by one pass of the base; candidates are read for all."""
    steps, k = SETTINGS.max_tokens, SETTINGS.candidates
    expected = {"plain": steps - 1, "own": k * steps, "second": k * steps + steps - 1}
    base = lab.base()
    decoders = {"plain": Plain(base), "own": OwnRewards(otter), "second": SecondModel(base, otter)}
    for name, decoder in decoders.items():
        part = decode_part(decoder, lab.tokenizer(), demo_files().load_prompts()[:1], 0, 2.0, SETTINGS)
        assert (part["tokens"], part["forwards"]) == (steps, expected[name])
    assert decoders["second"].parameters == decoders["own"].parameters + decoders["plain"].parameters


def test_a_text_ends_with_the_end_of_text(otter: OtterModel, prompt: torch.Tensor) -> None:
    tokens, _ = decode(OwnRewards(otter), prompt, 4.0, SETTINGS, END, seed=0)
    cut, _ = decode(OwnRewards(otter), prompt, 4.0, SETTINGS, tokens[2], seed=0)
    assert cut == tokens[: tokens.index(tokens[2])]


def test_the_best_weight_leaves_the_text_varied() -> None:
    def side(weight: float, score: float, distinct: float) -> dict[str, Any]:
        return {"weight": weight, "scores": [score], "distinct_3": distinct}

    tried = [side(1, 0.2, 0.6), side(2, 0.5, 0.5), side(4, 0.9, 0.3)]
    assert best_weight(tried, 0.4) == 2
    assert best_weight(tried, 0.0) == 4
    assert best_weight(tried, 0.9) == 1


def test_a_result_is_made_once(tmp_path: Path) -> None:
    lab = Lab(tmp_path, SETTINGS)
    assert lab.once("a", lambda: {"value": 1}) == {"value": 1}
    assert lab.once("a", lambda: {"value": 2}) == {"value": 1}
    assert lab.once("b", lambda: {"value": 2}) == {"value": 2}


def arguments(work: Path, *guides: str) -> list[str]:
    sizes = "--held-out 4 --prompts 2 --tuning-prompts 2 --max-tokens 5 --pairs 16 --trial-pairs 16 --weights 1 4"
    return ["--work", str(work), "--guides", *guides, *sizes.split()]


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert two_model_args.main([*arguments(tmp_path, "plain", "otter"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["settings"]["prompts"] == len(results["plain"]["scores"]) == len(results["otter"]["scores"])
    assert results["otter"]["weight"] in (1, 4)
    assert results["otter"]["taught_accuracy"] == 1
    assert two_model_args.main(arguments(tmp_path, "plain", "otter")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "Otter insertion" in lines[3]


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["head", "full"])
def test_guides_are_trained(guide: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert two_model_args.main([*arguments(tmp_path, "plain", guide), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[guide]
    base = Lab(tmp_path, SETTINGS).base().num_parameters()
    assert result["parameters"] > (2 * base if guide == "full" else base)
    assert result["parameters"] < (2 * base if guide == "head" else 3 * base)
