"""The shipped files: there, small, bound to each other, and apart from what was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.demo_model.stories import corpus
from otter_gguf import FileError, MismatchError, Otter
from otter_gguf.demo import DemoFiles, Judge, Verdict, demo_files
from tests.refusals import refused

MAX_BYTES, MAX_INSERTION_BYTES = 8_000_000, 4_500_000
TRAINED_STORIES_SEED = 20241


@pytest.fixture(scope="module")
def files() -> DemoFiles:
    return demo_files()


def test_everything_together_is_at_most_8_mb_and_the_insertion_4_5(files: DemoFiles) -> None:
    paths = [files.base, files.sidecar, files.prompts, *files.adapter.iterdir()]
    assert sum(path.stat().st_size for path in paths) <= MAX_BYTES
    assert sum(path.stat().st_size for path in [files.sidecar, *files.adapter.iterdir()]) <= MAX_INSERTION_BYTES


def test_the_adapter_is_bound_to_the_shipped_base_and_tells_no_path(files: DemoFiles) -> None:
    pytest.importorskip("torch")
    from otter_gguf.training import OtterModel
    from otter_gguf.training.base import load_base

    base = load_base(files.base)
    model = OtterModel.from_pretrained(base, files.adapter)
    assert [*model.value_heads, *model.vocabulary_heads] == ["reward", "next"]
    record = json.loads((files.adapter / "otter_config.json").read_text(encoding="utf-8"))
    assert record["base_model_name_or_path"] == "otter-gguf demo base"
    other = load_base(files.base)
    other.get_parameter("model.norm.weight").data.mul_(2)
    with refused(MismatchError, files.adapter, "base_fingerprint"):
        OtterModel.from_pretrained(other, files.adapter)


def test_missing_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with refused(FileError, tmp_path, "demo-base.Q8_0.gguf", "demo.otter.gguf", "prompts.json"):
        demo_files(tmp_path)


def test_enough_different_prompts(files: DemoFiles) -> None:
    prompts = files.load_prompts()
    assert len(set(prompts)) == len(prompts) >= 128


def test_prompts_are_not_from_the_training_stories(files: DemoFiles) -> None:
    seen = {story.prompt for story in corpus(TRAINED_STORIES_SEED, 4000)}
    assert seen.isdisjoint(files.load_prompts())


def test_pairs_speak_to_the_judges_unseen_words(files: DemoFiles) -> None:
    unseen, everything = Judge.load("unseen"), Judge.load()
    for pair in files.load_pairs():
        assert unseen.score(pair.chosen) == 1
        assert unseen.score(pair.rejected) == -1
        assert everything.verdict(pair.chosen) == unseen.verdict(pair.chosen) != Verdict(0, 0)


def test_stories_are_legible(files: DemoFiles) -> None:
    """Greedy continuations are made of the grammar's words alone and end as sentences do."""
    known = {word for story in corpus(1, 4000) for word in story.text.split()}
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1) as llm:
        for prompt in files.load_prompts()[:8]:
            choice = llm.create_completion(prompt, max_tokens=128, temperature=0)["choices"][0]
            words = choice["text"].split()
            assert choice["finish_reason"] == "stop"
            assert words[-1][-1] in '.!?"'
            assert sum(word in known for word in words) / len(words) > 0.97
