"""The experiments of benchmarks/reward_training: arms, runs, statistics, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.reward_training import domains, report, runs
from benchmarks.reward_training.arms import COPY, SUITES, Arm
from otter_gguf.config import BaseGeometry

BASE = BaseGeometry("llama", n_layer=4, n_embd=576, n_head=9, n_head_kv=3, head_dim=64, n_ff=1536, n_vocab=100)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def record(arm: Arm, seed: int, margins: list[float], **changes: Any) -> runs.Record:
    fields: dict[str, Any] = {
        "domain": "demo",
        "arm": runs.key(arm),
        "seed": seed,
        "parameters": 10,
        "steps": 2,
        "seconds": 1.0,
        "margins": margins,
        "prefix_accuracy": [0.5] * len(margins),
        "curve": [{"step": 1.0, "loss": 0.7, "accuracy": 0.5}, {"step": 2.0, "loss": 0.6, "accuracy": 0.6}],
    }
    return runs.Record(**{**fields, **changes})


@pytest.fixture(scope="module")
def domain() -> domains.Domain:
    return domains.demo_pairs(8, 6)


class TestArms:
    def test_head_alone_inserts_nothing(self) -> None:
        config = SUITES["methods"][0].insertion(BASE)
        assert config.width == 0
        assert config.heads[0].input == "base"

    def test_share_is_of_width_and_inner_size(self) -> None:
        config = COPY.insertion(BASE)
        assert (config.width, config.n_head_kv, config.n_ff) == (36, (1,) * 4, (96,) * 4)

    def test_placements(self) -> None:
        found = {arm.name: arm.insertion(BASE) for arm in SUITES["placement"]}
        assert found["attention only"].n_ff == (0, 0, 0, 0)
        assert found["FFN only"].n_head_kv == (0, 0, 0, 0)
        assert found["last half of the layers"].n_head_kv == (0, 0, 1, 1)
        assert found["every second layer"].n_head_kv == (0, 1, 0, 1)

    def test_suites_share_runs(self) -> None:
        assert runs.key(SUITES["width"][1]) == runs.key(COPY) == runs.key(SUITES["placement"][0])
        assert runs.key(SUITES["width"][0]) != runs.key(COPY)


class TestStatistics:
    def test_error_of_one_seed_is_that_of_the_pairs(self) -> None:
        values = np.array([[1.0, 0.0, 1.0, 0.0]])
        mean, error = report.mean_and_error(values)
        assert mean == 0.5
        assert error == pytest.approx(np.sqrt(values.var(ddof=1) / 4))

    def test_seeds_that_differ_add_to_it(self) -> None:
        same, other = np.tile([1.0, 0.0], (2, 2)), np.array([[1.0, 1, 1, 0], [0.0, 0, 1, 0]])
        assert report.mean_and_error(other)[1] > report.mean_and_error(same)[1]

    def test_difference_on_the_same_pairs(self) -> None:
        worse = np.tile([1.0, 0.0, 0.0, 0.0], (3, 25))
        better = np.tile([1.0, 1.0, 0.0, 0.0], (3, 25))
        mean, error = report.difference(better, worse)
        assert mean == pytest.approx(0.25)
        assert 0.02 < error < 0.07  # sqrt(0.25 * 0.75 / 100) = 0.043
        assert report.difference(worse, worse) == (0.0, 0.0)


class TestReport:
    def test_table_compares_with_the_head(self) -> None:
        head, copy = SUITES["methods"][:2]
        records = [record(head, 0, [1.0, -1.0] * 20), record(copy, 0, [1.0, 1.0] * 20)]
        text = report.table(records, "demo", "methods")
        assert "| Task-Head-Only | 10 | 50.0 ± 8.0 |  | 50.0 ± 0.0 |  | 1 |" in text
        assert "| insertion, copy | 10 | 100.0 ± 0.0 | +50.0 ± " in text
        assert "normal" not in text
        assert report.table(records, "elsewhere", "methods") == ""

    def test_steps_to_the_same_loss(self) -> None:
        copy, normal = SUITES["methods"][1:3]
        slow = [{"step": 1.0, "loss": 0.9, "accuracy": 0.5}, {"step": 2.0, "loss": 0.7, "accuracy": 0.5}]
        text = report.steps_to_loss([record(copy, 0, [1.0]), record(normal, 0, [1.0], curve=slow)], "demo")
        assert "loss of 0.700" in text
        assert "| insertion, copy | 1 | 0.600 |" in text
        assert "| insertion, normal | 2 | 0.700 |" in text

    def test_block_between_markers_alone_is_replaced(self) -> None:
        text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
        assert report.replace_block(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
        assert report.replace_block(text, "y", "new") == text

    def test_document_and_plots(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / report.DOCUMENT).write_text("<!-- demo-methods -->\n<!-- end demo-methods -->\n", encoding="utf-8")
        report.write([record(COPY, 0, [1.0, -1.0])], tmp_path)
        assert "insertion, copy" in (tmp_path / report.DOCUMENT).read_text(encoding="utf-8")
        assert {path.name for path in (tmp_path / "images").iterdir()} == {
            "reward-training-demo-arms.svg",
            "reward-training-demo-curves.svg",
        }


class TestRuns:
    @pytest.mark.parametrize("arm", [SUITES["methods"][0], COPY, SUITES["methods"][-1]], ids=lambda arm: arm.name)
    def test_a_run_trains_and_measures(self, domain: domains.Domain, arm: Arm, tmp_path: Path) -> None:
        found = runs.run(domain, arm, 0)
        assert found.steps == 1
        assert len(found.margins) == len(found.prefix_accuracy) == 6
        assert len(set(found.margins)) == 6
        runs.append(tmp_path / "results.jsonl", found)
        assert runs.read(tmp_path / "results.jsonl") == [found]

    def test_margins_are_those_of_the_trainer(self, domain: domains.Domain, tmp_path: Path) -> None:
        base, tokenizer = domain.load()
        model = runs.build(base, COPY, 0)
        held_out = domain.datasets(tokenizer)[1]
        margins, shares = runs.evaluate(model, held_out)
        small = dataclasses.replace(domain, train=domain.held_out)
        measured = runs.trainer_of(model, small, COPY, 0, str(tmp_path), held_out, held_out).evaluate()
        assert np.mean(margins) == pytest.approx(measured["eval_margin"], abs=1e-5)
        assert np.mean(shares) == pytest.approx(measured["eval_prefix_accuracy"], abs=1e-5)

    def test_a_seed_gives_the_same_run_twice(self, domain: domains.Domain) -> None:
        first, second = runs.run(domain, COPY, 0), runs.run(domain, COPY, 0)
        assert first.margins == second.margins
        assert first.margins != runs.run(domain, COPY, 1).margins
