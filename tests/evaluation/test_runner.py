"""Texts by several arms, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import ARGS, ConfigError, Otter
from otter_gguf.demo import demo_files
from otter_gguf.evaluation import Judge, Plan, Settings, evaluate
from otter_gguf.evaluation.evaluate import TEXTS, file_identity
from otter_gguf.evaluation.memory import memory_of, open_measured
from otter_gguf.evaluation.runner import PLAIN, Arm, Engine, Opened, count_steps, run_arms
from otter_gguf.evaluation.store import Generation, Store
from otter_gguf.gguf.merge import merge
from otter_gguf.guidance import spec
from otter_gguf.guidance.gated import Gated
from otter_gguf.options import LoadOptions
from tests.refusals import refused
from tests.synthetic_models import pair

PROMPTS = ["The otter", "Urchins are", "123 of them"]
SETTINGS = Settings(max_tokens=8, seeds=2, temperature=1.0, ignore_eos=True)
LENGTH = Judge("length", lambda prompt, response: float(len(response)))


def plan(**changes: Any) -> Plan:
    files = pair()
    made: dict[str, Any] = {
        "model": str(files.base),
        "otter": str(files.otter),
        "prompts": PROMPTS,
        "policies": {"args:weight=2": ARGS(weight=2, n_candidates=4)},
        "settings": SETTINGS,
        "options": LoadOptions(n_ctx=128, n_threads=1),
    }
    return Plan(**{**made, **changes})


def texts_of(folder: Path) -> list[Generation]:
    lines = (folder / TEXTS).read_text().splitlines()
    return [Generation(**json.loads(line)) for line in lines[1:]]


def test_settings_are_checked() -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("max_tokens", 0, "-n"),
        ("seeds", 0, "--seeds"),
        ("top_k", 0, "--top-k"),
        ("seed", -1, "--seed"),
        ("temperature", float("nan"), "--temp"),
    ]
    for name, value, flag in wrong:
        with refused(ConfigError, flag, value):
            Settings(**{name: value})


def test_no_two_texts_of_an_arm_share_a_seed() -> None:
    seeds = [SETTINGS.seed_of(prompt, round, 3) for round in range(2) for prompt in range(3)]
    assert seeds == [1, 2, 3, 4, 5, 6]


def test_arms_take_turns(tmp_path: Path) -> None:
    evaluate(plan(), folder=tmp_path)
    order = [(row.round, row.prompt, row.arm) for row in texts_of(tmp_path)]
    arms = [PLAIN, "args:weight=2"]
    turns = [(round, p, arms[(p + i) % 2]) for round in range(2) for p in range(3) for i in range(2)]
    assert order == turns


def test_texts_are_those_of_create_completion(tmp_path: Path) -> None:
    evaluate(plan(settings=dataclasses.replace(SETTINGS, ignore_eos=False)), folder=tmp_path)
    rows = {row.key: row for row in texts_of(tmp_path)}
    files = pair()
    with Otter(files.base, otter=files.otter, n_ctx=128, n_threads=1, n_seq_max=4) as llm:
        for (arm, prompt, round), row in rows.items():
            options: dict[str, Any] = {"guidance": ARGS(weight=2, n_candidates=4)}
            if arm == PLAIN:
                options = {"top_k": 10, "top_p": 1.0, "min_p": 0.0}
            seed = SETTINGS.seed_of(prompt, round, 3)
            answer = llm.create_completion(PROMPTS[prompt], max_tokens=8, temperature=1.0, seed=seed, **options)
            assert row.text == answer["choices"][0]["text"]


def test_costs_leave_the_prompt_out(tmp_path: Path) -> None:
    evaluate(plan(), folder=tmp_path)
    for row in texts_of(tmp_path):
        guided = row.arm != PLAIN
        assert row.passes == row.tokens == 8
        assert row.fed == (8 * 4 if guided else 8)
        assert row.seconds > 0 < row.prompt_seconds
        assert row.steps == (8 if guided and row.round == 0 else None)
        assert row.guided_steps == row.steps


def test_ignored_ends_make_texts_equally_long(tmp_path: Path) -> None:
    """The random model's end of text comes early under a policy that prefers it."""
    lengths = {}
    for ignore in (True, False):
        settings = dataclasses.replace(SETTINGS, ignore_eos=ignore, max_tokens=60, temperature=5.0, top_k=1000)
        results = evaluate(plan(settings=settings), folder=tmp_path, force=True)
        lengths[ignore] = [row.tokens for row in texts_of(tmp_path)]
        assert results.header["ignore_eos"] == ignore
    assert set(lengths[True]) == {60}


def test_shares_of_guided_steps_come_from_the_records() -> None:
    def record(guided: bool, scores: list[float | None]) -> dict[str, Any]:
        return {"kind": "token", "guided": guided, "logits": [2.0, 1.0], "scores": scores}

    records = [record(True, [1.0, 3.0]), record(True, [3.0, 1.0]), record(False, [2.0, 1.0])]
    assert count_steps(records) == {"steps": 3, "guided_steps": 2, "changed_steps": 1}
    assert count_steps([record(True, [None, 1.0])])["changed_steps"] == 1  # the favourite is ruled out
    assert count_steps([*records, {"kind": "segment"}]) == {}
    assert count_steps([{"kind": "token", "step": 3, "candidates": [5], "choice": None}]) == {}  # a threshold's
    assert count_steps([]) == {}


def test_every_kind_of_search_can_be_evaluated() -> None:
    searches = (
        "threshold:limit=0.0,action=resample",
        "cards:target=1.0,max_tries=1",
        "best_of_n:n=2",
        "chunk_beam:chunk=2",
    )
    results = evaluate(plan(policies={text: spec.parse(text) for text in searches}))
    assert {arm.cost.guided_share for arm in results.arms} == {None}
    assert [arm.name for arm in results.arms] == [PLAIN, *searches]


def test_a_gate_lowers_the_share_of_guided_steps() -> None:
    open_gate, closed = (Gated(ARGS(weight=2, n_candidates=4), entropy=limit) for limit in (0.0, 99.0))
    results = evaluate(plan(policies={"open": open_gate, "closed": closed}))
    shares = {arm.name: (arm.cost.guided_share, arm.cost.fed_per_token) for arm in results.arms}
    assert shares == {PLAIN: (None, 1), "open": (1.0, 4), "closed": (0.0, 1)}


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    class Stop(KeyboardInterrupt):
        pass

    whole = evaluate(plan(), LENGTH)
    left = 5

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop

    store = Store(tmp_path / TEXTS, plan().header())
    files = pair()
    llm, memory = open_measured(files.base, files.otter, n_ctx=128, n_threads=1, n_seq_max=4)
    engines = {name: Engine(Opened(llm, memory)) for name in ("base", "otter")}
    with llm, pytest.raises(Stop):
        run_arms(plan().arms(), engines, PROMPTS, SETTINGS, store, tick)
    assert len(texts_of(tmp_path)) == 5
    before = [row.seconds for row in texts_of(tmp_path)]
    again = evaluate(plan(), LENGTH, folder=tmp_path)
    assert len(texts_of(tmp_path)) == 12
    assert [row.seconds for row in texts_of(tmp_path)][:5] == before  # kept, not made anew
    assert [arm.metrics["judge"] for arm in again.arms] == [arm.metrics["judge"] for arm in whole.arms]


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    evaluate(plan(), folder=tmp_path)
    longer = plan(settings=dataclasses.replace(SETTINGS, max_tokens=9))
    with refused(ConfigError, "texts.jsonl", "max_tokens", 8, 9, "--force"):
        evaluate(longer, folder=tmp_path)
    with refused(ConfigError, "texts.jsonl", "arms", "--force"):  # the name alone does not make it the same policy
        evaluate(plan(policies={"args:weight=2": ARGS(weight=3, n_candidates=4)}), folder=tmp_path)
    assert evaluate(longer, folder=tmp_path, force=True).arms[0].lengths.mean == 9


def test_a_finished_folder_needs_no_text_for_another_judge(tmp_path: Path) -> None:
    first = evaluate(plan(), LENGTH, folder=tmp_path)
    before = (tmp_path / TEXTS).read_bytes()
    second = evaluate(plan(), Judge("always 1", lambda prompt, response: 1.0), folder=tmp_path)
    assert (tmp_path / TEXTS).read_bytes() == before
    assert second.arms[0].metrics["judge"].mean == 1 != first.arms[0].metrics["judge"].mean
    assert second.arms[1].metrics["reward"] == first.arms[1].metrics["reward"]


def test_guidance_raises_the_guides_own_reward() -> None:
    policies = {f"args:weight={weight}": ARGS(weight=weight) for weight in (-3.0, 3.0)}
    files = demo_files()
    prompts = files.load_prompts()[:8]
    settings = Settings(max_tokens=24, seeds=1)
    results = evaluate(
        plan(model=str(files.base), otter=str(files.sidecar), prompts=prompts, policies=policies, settings=settings)
    )
    plain, low, high = (arm.metrics["reward"].mean for arm in results.arms)
    assert low < plain < high
    assert results.arms[2].differences["reward"].mean == pytest.approx(high - plain)


def test_a_second_model_is_asked_and_counted() -> None:
    files = pair()
    policy = ARGS(weight=2, n_candidates=4)
    results = evaluate(
        plan(second_model=str(files.base), second_otter=str(files.otter), second_policies={"args": policy})
    )
    plain, own, second = results.arms
    assert (second.cost.passes_per_token, second.cost.fed_per_token) == (2, 5)
    assert second.metrics["reward"] == own.metrics["reward"]  # the same rewards from elsewhere, so the same texts
    assert second.cost.extra_memory > own.cost.extra_memory > plain.cost.extra_memory == 0
    assert second.cost.extra_memory_saved == pytest.approx(0)
    assert 0 < (own.cost.extra_memory_saved or 0) < 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"prompts": ["one"]}, ("prompts", 1, 2)),
        ({"second_model": "x.gguf"}, ("--second-policy",)),
        ({"policies": {PLAIN: ARGS()}}, ("plain",)),
    ],
)
def test_a_contradictory_plan_is_refused(changes: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        plan(**changes)


def test_without_an_insertion_all_runs_on_the_base() -> None:
    bare = plan(otter=None, policies={})
    assert bare.arms() == [Arm(PLAIN, "base")]
    results = evaluate(bare, LENGTH)
    assert results.embedder == "token table"
    assert "reward" not in results.arms[0].metrics
    assert evaluate(plan(), LENGTH).embedder == "final states"


def test_a_merged_file_is_compared_with_itself_unguided(tmp_path: Path) -> None:
    merge(pair().base, pair().otter, tmp_path / "merged.gguf")
    merged = plan(model=str(tmp_path / "merged.gguf"), otter=None)
    assert [arm.engine for arm in merged.arms()] == ["otter", "otter"]
    both, apart = evaluate(merged, LENGTH), evaluate(plan(), LENGTH)
    for mine, other in zip(both.arms, apart.arms, strict=True):
        assert mine.metrics["judge"] == other.metrics["judge"]
    assert both.arms[1].cost.extra_memory == 0 < apart.arms[1].cost.extra_memory
    with refused(ConfigError, "merged.gguf", "split"):
        evaluate(dataclasses.replace(merged, second_model=merged.model, second_policies={"args": ARGS()}))


# ---- memory ----------------------------------------------------------------------------------------------------


def test_memory_counts_what_llama_cpp_reports() -> None:
    files = pair()
    base, alone = open_measured(files.base, n_ctx=128, n_threads=1, n_seq_max=1)
    otter, both = open_measured(files.base, files.otter, n_ctx=128, n_threads=1, n_seq_max=1)
    wide, longer = open_measured(files.base, files.otter, n_ctx=4096, n_threads=1, n_seq_max=1)
    with base, otter, wide:
        assert alone.weights == base.model.n_bytes < both.weights == longer.weights
        assert 0 < alone.cache < both.cache < longer.cache
        assert 0 < alone.compute < both.compute
    assert (alone + both).total == alone.total + both.total


def test_memory_is_read_from_log_lines() -> None:
    lines = [
        "llama_context:        CPU  output buffer size =     0.50 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =     1.50 MiB",
        "llama_kv_cache:        CPU KV buffer size =     2.00 MiB",
        "llama_kv_cache: size =    3.50 MiB (   512 cells)",
        "sched_reserve:        CPU compute buffer size =     4.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =    99.00 MiB",
    ]
    mib = 2**20
    assert memory_of(7, lines).to_dict() == {
        "weights": 7,
        "cache": 3.5 * mib,
        "compute": 4 * mib,
        "output": mib // 2,
        "total": 8 * mib + 7,
    }


def test_measuring_leaves_the_log_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("otter_gguf")
    before = (logger.level, logger.propagate, list(logger.handlers))
    llm, _ = open_measured(pair().base, n_ctx=64, n_threads=1)
    llm.close()
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert capfd.readouterr() == ("", "")


def test_a_file_is_told_from_another_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000 + b"a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_bytes(b"x" * 3_000_000 + b"b")
    first, second = file_identity(str(tmp_path / "a")), file_identity(str(tmp_path / "other" / "a"))
    assert first["name"] == second["name"]
    assert first != second
    assert first == file_identity(str(tmp_path / "a"))
