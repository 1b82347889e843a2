"""Every example runs as a script, and what it claims is true."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from examples import guided_decoding, own_policy, score_file, train_on_trl_data
from examples import otter_in_80_lines as otter
from otter_gguf import ARGS, FileError, Otter, Policy
from otter_gguf.config import BaseGeometry, InsertionConfig
from otter_gguf.demo import Judge, demo_files
from otter_gguf.training import insert
from tests.refusals import refused
from tests.training.reference import reference

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def run(example: str, *arguments: str) -> str:
    """What a script prints, run as ``python examples/NAME.py``."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [example, *arguments])
        runpy.run_path(str(FOLDER / example), run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def demo() -> Iterator[Otter]:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=512, n_threads=1) as llm:
        yield llm


# ---- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_first_lines_say_how_to_run_it(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring is not None
    assert f"python examples/{path.name}" in docstring


def test_the_list_names_every_example() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.name for path in EXAMPLES]


# ---- otter_in_80_lines -----------------------------------------------------------------------------------------


@pytest.fixture
def config() -> otter.Config:
    return otter.Config()


@pytest.fixture
def base(config: otter.Config) -> otter.Weights:
    return otter.new_base(config)


@pytest.fixture(scope="module")
def trained() -> otter.Weights:
    """The inserted tensors after training."""
    c = otter.Config()
    inserted = otter.new_insertion(c)
    otter.train(c, otter.new_base(c), inserted)
    return inserted


def insertion(c: otter.Config) -> InsertionConfig:
    sizes = (c.layers, c.width, c.group * c.kv_heads, c.kv_heads, c.head, c.inner, c.vocab)
    return InsertionConfig.uniform(BaseGeometry("llama", *sizes), c.new_width, c.new_kv_heads, c.new_inner)


def accuracy(c: otter.Config, base: otter.Weights, inserted: otter.Weights) -> float:
    """Share of the prefixes of held-out pairs at which the chosen response is ahead."""
    with torch.no_grad():
        return float((otter.lead(c, otter.widen(c, base, inserted), *otter.pairs(c, 200, seed=-1)) > 0).float().mean())


def test_method_prints_its_loss_and_rewards() -> None:
    out = run("otter_in_80_lines.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < 0.3 < 0.6 < losses[0]
    rewards = re.findall(r"\(([-+][\d.]+)\)", out)
    assert len(rewards) == 2 * (otter.PROMPT + otter.RESPONSE)


def test_method_has_about_80_lines_of_code() -> None:
    """From ``Config`` to ``train``, without comments and docstrings."""
    source = (FOLDER / "otter_in_80_lines.py").read_text(encoding="utf-8")
    body = ast.parse(source).body
    names = [getattr(node, "name", None) for node in body]
    lines: set[int] = set()
    for node in body[names.index("Config") : names.index("train") + 1]:
        assert node.end_lineno is not None
        lines |= set(range(node.lineno, node.end_lineno + 1))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):  # a docstring
                assert inner.end_lineno is not None
                lines -= set(range(inner.lineno, inner.end_lineno + 1))
    text = source.splitlines()
    code = [number for number in lines if text[number - 1].strip() and not text[number - 1].lstrip().startswith("#")]
    assert 70 <= len(code) <= 90


def test_method_is_the_one_of_the_reference(config: otter.Config, base: otter.Weights, trained: otter.Weights) -> None:
    named = {**trained, "heads.reward.otter.bias": torch.zeros(1)}
    texts, _ = otter.pairs(config, 3, seed=5)
    wide = otter.widen(config, base, trained)
    state = otter.forward(config, wide, texts)
    for row, text in enumerate(texts):
        expected_state, expected = reference(insertion(config), base, named, text)
        torch.testing.assert_close(state[row].double(), expected_state, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            otter.rewards(config, wide, state)[row].double(), expected[:, 0], atol=1e-4, rtol=1e-4
        )


def test_method_is_the_one_of_the_package(config: otter.Config, base: otter.Weights, trained: otter.Weights) -> None:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.group * config.kv_heads,
            num_key_value_heads=config.kv_heads,
            tie_word_embeddings=False,
        )
    )
    llama.load_state_dict(base)
    model = insert(llama, insertion(config))
    with torch.no_grad():
        for name, tensor in model.inserted_parameters().items():
            tensor.copy_(trained[name] if name in trained else torch.zeros_like(tensor))
        assert set(model.inserted_parameters()) - set(trained) == {"heads.reward.otter.bias"}
        texts, _ = otter.pairs(config, 3, seed=6)
        output, wide = model(texts), otter.widen(config, base, trained)
        state = otter.forward(config, wide, texts)
    torch.testing.assert_close(otter.logits(config, wide, state), output.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(otter.rewards(config, wide, state), output.rewards.squeeze(-1), atol=1e-4, rtol=1e-4)


def test_method_leaves_the_logits_alone(config: otter.Config, base: otter.Weights, trained: otter.Weights) -> None:
    texts, _ = otter.pairs(config, 20, seed=7)
    fresh = otter.new_insertion(config)
    with torch.no_grad():
        plain = otter.rewards(config, wide := otter.widen(config, base, fresh), otter.forward(config, wide, texts))
        other = otter.rewards(config, wide := otter.widen(config, base, trained), otter.forward(config, wide, texts))
    assert not torch.allclose(plain, other, atol=0.1)  # the inserted tensors count ...
    for inserted in (fresh, trained):
        assert otter.logit_change(config, base, inserted, texts) < 1e-4  # ... and not for the base


def test_an_ordinary_norm_changes_the_logits(config: otter.Config, base: otter.Weights, trained: otter.Weights) -> None:
    texts, _ = otter.pairs(config, 20, seed=7)
    assert otter.logit_change(config, base, trained, texts, partial_norm=False) > 0.1


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_base_rows_that_read_more_change_the_logits(name: str, config: otter.Config, base: otter.Weights) -> None:
    texts, _ = otter.pairs(config, 20, seed=7)
    wide = otter.widen(config, base, otter.new_insertion(config))
    with torch.no_grad():
        before = otter.logits(config, wide, otter.forward(config, wide, texts))
        rows, columns = base[f"model.layers.0.{name}.weight"].shape
        assert (wide[f"model.layers.0.{name}.weight"][:rows, columns:] == 0).all()
        wide[f"model.layers.0.{name}.weight"][:rows, columns:] = 0.3
        after = otter.logits(config, wide, otter.forward(config, wide, texts))
    assert float((after - before).abs().max()) > 1e-2


def test_method_trains_what_is_inserted_and_nothing_else(config: otter.Config, base: otter.Weights) -> None:
    inserted = otter.new_insertion(config)
    before: dict[str, Tensor] = {name: w.detach().clone() for name, w in {**base, **inserted}.items()}
    otter.train(config, base, inserted, steps=1)
    assert [name for name, w in base.items() if w.grad is not None or not torch.equal(w, before[name])] == []
    still = [name for name, w in inserted.items() if w.grad is None or torch.equal(w, before[name])]
    assert still == []


def test_method_learns(config: otter.Config, base: otter.Weights, trained: otter.Weights) -> None:
    assert accuracy(config, base, otter.new_insertion(config)) < 0.8
    assert accuracy(config, base, trained) > 0.9


# ---- guided_decoding -------------------------------------------------------------------------------------------


def test_guided_decoding_prints_every_way() -> None:
    lines = run("guided_decoding.py", "-n", "8").splitlines()
    starts = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    assert starts == ["plain", "ARGS", "vocabulary"] * len(guided_decoding.PROMPTS)


def by_way(llm: Otter, weight: float) -> dict[str, list[guided_decoding.Result]]:
    results: dict[str, list[guided_decoding.Result]] = {}
    for result in guided_decoding.compare(llm, guided_decoding.PROMPTS, weight, max_tokens=24):
        results.setdefault(result.way, []).append(result)
    return results


def test_guidance_raises_rewards_at_its_price(demo: Otter) -> None:
    found = by_way(demo, 2.0)
    mean = {way: statistics.fmean(result.reward for result in results) for way, results in found.items()}
    assert min(mean["ARGS"], mean["vocabulary"]) > mean["plain"] + 0.5
    for way, cost in {"plain": 1.0, "ARGS": 10.0, "vocabulary": 1.0}.items():
        # One step more than there are tokens where the text ends by itself.
        assert all(cost <= result.cost <= cost * 1.1 for result in found[way]), way


def test_guidance_without_weight_is_plain(demo: Otter) -> None:
    found = by_way(demo, 0.0)
    assert [result.text for result in found["ARGS"]] == [result.text for result in found["plain"]]
    assert [result.cost for result in found["ARGS"]] == [result.cost for result in found["plain"]]


# ---- score_file ------------------------------------------------------------------------------------------------


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_score_file_scores_its_own_lines() -> None:
    kind, unkind, helped, sneered = rows_of(run("score_file.py"))
    assert kind["reward"] > unkind["reward"]
    assert helped["reward"] > sneered["reward"]
    assert (helped["id"], sneered["id"]) == (3, 4)


def test_score_file_writes_a_file(tmp_path: Path, demo: Otter) -> None:
    source, target = tmp_path / "texts.jsonl", tmp_path / "scored.jsonl"
    prompt, response = "Finn met Hana.", " Finn helped her."
    source.write_text(f"A line of text.\n\n{json.dumps({'prompt': prompt, 'response': response})}\n", encoding="utf-8")
    assert run("score_file.py", str(source), "-o", str(target), "--tokens") == ""
    first, second = rows_of(target.read_text(encoding="utf-8"))
    assert first["text"] == "A line of text."
    score = demo.score(prompt, response)
    assert second["reward"] == pytest.approx(score.reward, abs=1e-3)
    assert "".join(piece for piece, _ in second["tokens"]) == f"<s>{prompt}{response}"
    assert second["tokens"][-1][1] == second["reward"]


@pytest.mark.parametrize("line", ["{no json", '{"prompt": "without a response"}'])
def test_score_file_names_a_bad_line(line: str, tmp_path: Path) -> None:
    with refused(FileError, "texts.jsonl", "line 2"):
        list(score_file.read_rows(["A good line.", line], "texts.jsonl"))


# ---- train_on_trl_data -----------------------------------------------------------------------------------------


def ranked(sidecar: Path) -> float:
    """Share of pairs that no test trains on whose kind story has the higher reward."""
    pairs = train_on_trl_data.demo_preferences().select(range(60, 100))
    with Otter(demo_files().base, otter=sidecar, n_ctx=512, n_threads=1) as llm:
        return statistics.fmean(
            llm.score(row["prompt"], row["chosen"]).reward > llm.score(row["prompt"], row["rejected"]).reward
            for row in pairs
        )


@pytest.fixture(scope="module")
def own_sidecar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the script writes for the first sixty pairs as a file of its reader's, and what it prints."""
    folder = tmp_path_factory.mktemp("trl")
    pairs = train_on_trl_data.demo_preferences().select(range(60))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in pairs), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        words = ["-o", str(folder / "kind"), "--data", str(folder / "pairs.jsonl"), "--epochs", "1"]
        out = run("train_on_trl_data.py", *words)
    return folder / "kind" / "adapter.otter.gguf", out


def test_demo_preferences_have_the_columns_of_trl() -> None:
    preferences = train_on_trl_data.demo_preferences()
    assert preferences.column_names == ["prompt", "chosen", "rejected"]
    assert len(preferences) == 100


def test_preferences_become_a_sidecar_that_ranks_and_guides(own_sidecar: tuple[Path, str]) -> None:
    sidecar, out = own_sidecar
    assert re.findall(r"^(plain|guided): reward ([-+][\d.]+)", out, re.MULTILINE)
    assert ranked(sidecar) > 0.7
    base, judge = demo_files().base, Judge.load()
    found = [train_on_trl_data.decode(base, sidecar, prompt) for prompt in demo_files().load_prompts()[:6]]
    plain, guided = (statistics.fmean(judge.score(texts[way][0]) for texts in found) for way in ("plain", "guided"))
    assert guided > plain + 0.3


def test_swapped_preferences_become_a_sidecar_that_ranks_the_other_way(tmp_path: Path) -> None:
    swapped = train_on_trl_data.demo_preferences().select(range(60))
    swapped = swapped.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    base, sidecar = demo_files().base, tmp_path / "unkind.otter.gguf"
    train_on_trl_data.train(base, swapped, tmp_path / "unkind", epochs=1)
    train_on_trl_data.convert(tmp_path / "unkind", base, sidecar)
    assert ranked(sidecar) < 0.3


def test_a_model_without_a_vocabulary_head_is_decoded_in_two_ways(own_sidecar: tuple[Path, str], demo: Otter) -> None:
    with Otter(demo_files().base, otter=own_sidecar[0], n_ctx=64, n_threads=1) as llm:
        assert list(guided_decoding.ways(llm, 2.0)) == ["plain", "ARGS"]
    assert list(guided_decoding.ways(demo, 2.0)) == ["plain", "ARGS", "vocabulary"]


# ---- own_policy ------------------------------------------------------------------------------------------------


def summary(llm: Otter, policy: Policy | None) -> own_policy.Summary:
    return own_policy.summarize(llm, policy, demo_files().load_prompts()[:8], max_tokens=24)


def test_own_policy_prints_all_policies() -> None:
    lines = run("own_policy.py", "-p", guided_decoding.PROMPTS[0]).splitlines()
    assert [line.split()[0] for line in lines] == ["plain", "ARGS", "BelowTarget"]


def test_own_policy_reaches_the_rewards_of_args_for_less(demo: Otter) -> None:
    plain, args, own = (summary(demo, policy) for policy in (None, ARGS(2.0), own_policy.BelowTarget()))
    assert own.reward > plain.reward + 0.5
    assert own.reward > args.reward - 0.2
    assert plain.cost < own.cost < args.cost / 2
    assert 0 < own.guided < 0.5


def test_own_policy_hangs_on_its_target(demo: Otter) -> None:
    """Rewards of the demo lie between -1 and 1: one target is always reached, the other one never."""
    plain, args = summary(demo, None), summary(demo, ARGS(2.0))
    never, always = (summary(demo, own_policy.BelowTarget(target)) for target in (-2.0, 2.0))
    assert never == plain
    assert always == args
