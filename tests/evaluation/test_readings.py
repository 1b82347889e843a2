"""What the model says of finished texts, and their embeddings."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ConfigError, Otter
from otter_gguf.demo import demo_files
from otter_gguf.evaluation.embed import (
    Embedder,
    coherences,
    final_states,
    load_embedder,
    states_embedder,
    table_embedder,
    table_rows,
)
from otter_gguf.evaluation.readings import read_texts
from otter_gguf.gguf.base import BaseFiles
from tests.evaluation.made_up import bare
from tests.refusals import refused
from tests.synthetic_models import TEXT, load, pair

TEXTS = ["The otter", "The otter eats urchins.", "", "x" * 200, TEXT]


def test_rewards_are_those_of_score() -> None:
    with load() as llm:
        (reading,) = read_texts(llm, [("The otter", " sleeps.")])
        score = llm.score("The otter", " sleeps.")
    assert reading.reward == score.reward
    assert reading.token_rewards == tuple(score.response_rewards[:, 0].tolist())


def test_cross_entropy_is_that_of_the_responses_tokens() -> None:
    with load() as llm:
        tokens, prompt = llm.tokenize("The otter sleeps."), llm.tokenize("The otter")
        (reading,) = read_texts(llm, [("The otter", " sleeps.")])
        total = 0.0
        for place in range(len(prompt), len(tokens)):  # the slow way: every token from a fresh start
            llm.context.clear()
            part = np.asarray(tokens[:place], np.int32)
            last = np.arange(place) == place - 1
            llm.context.decode(part, np.arange(place, dtype=np.int32), np.zeros_like(part), last, rewards=False)
            logits = llm.context.logits()[0].astype(np.float64)
            total -= logits[tokens[place]] - math.log(np.exp(logits).sum())
    assert reading.cross_entropy == pytest.approx(total / (len(tokens) - len(prompt)), rel=1e-4)


def test_an_empty_response_has_no_tokens() -> None:
    with load() as llm:
        (reading,) = read_texts(llm, [("The otter", "")])
        assert reading.reward == llm.score("The otter").reward
    assert reading.token_rewards == ()
    assert math.isnan(reading.cross_entropy)


def test_a_long_text_is_cut_at_the_context() -> None:
    with load(n_ctx=32) as llm:
        (reading,) = read_texts(llm, [("The otter", " is" + "x" * 300)])
        assert len(reading.token_rewards or ()) + len(llm.tokenize("The otter")) == llm.n_ctx


def test_a_plain_model_gives_no_rewards() -> None:
    with bare() as llm:
        (reading,) = read_texts(llm, [("The otter", " sleeps.")])
        assert (reading.token_rewards, reading.reward) == (None, None)
        assert reading.cross_entropy > 0
        with refused(ConfigError, "--label", "kind"):
            read_texts(llm, [("a", "b")], "kind")


def test_a_label_chooses_the_reward() -> None:
    with load(pair(labels=("kind", "true"))) as llm:
        kind, true = (read_texts(llm, [("The otter", " eats")], label)[0].reward for label in llm.reward_labels)
        assert read_texts(llm, [("The otter", " eats")])[0].reward == kind != true
        with refused(ConfigError, "--label", "kin", "reward.kind, reward.true"):
            read_texts(llm, [], "kin")


# ---- embeddings ------------------------------------------------------------------------------------------------


def test_states_are_means_over_the_texts_tokens() -> None:
    with load(hidden_states=True) as llm:
        rows = states_embedder(llm).embed(TEXTS)
        tokens = np.asarray(llm.tokenize("The otter"), np.int32)
        llm.context.clear()
        n = len(tokens)
        llm.context.decode(tokens, np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.ones(n, np.bool_))
        begin = int(llm.model.add_bos)
        assert rows[0] == pytest.approx(llm.context.hidden_states()[0][begin:].mean(axis=0), rel=1e-5, abs=1e-6)
        assert rows.shape == (len(TEXTS), llm.model.n_embd)
        assert states_embedder(llm).embed(TEXTS[::-1])[::-1] == pytest.approx(rows)  # no text sees another


def test_a_text_of_several_batches_is_read_as_one() -> None:
    """200 tokens are fed in batches: later ones see the earlier. Kernels of another batch size round otherwise."""
    with load(hidden_states=True) as llm:
        tokens = np.asarray(llm.tokenize(TEXT * 4), np.int32)[:200]
        whole, part = final_states(llm.context, tokens), final_states(llm.context, tokens[:100])
        alone = final_states(llm.context, tokens[64:100])
    assert np.abs(whole[:100] - part).max() < 0.02
    assert np.abs(whole[64:100] - alone).max() > 0.2


def test_table_rows_are_those_of_the_file() -> None:
    with BaseFiles.open(pair().base) as base:
        tokens = np.array([3, 0, 7])
        rows = table_rows(base, tokens)
        table = np.frombuffer(base.tensor_data("token_embd.weight"), np.float32).reshape(-1, rows.shape[1])
    assert np.array_equal(rows, table[tokens])


def test_table_embedder_is_a_mean_of_rows() -> None:
    with bare() as llm, BaseFiles.open(pair().base) as base:
        rows = table_embedder(llm).embed(TEXTS)
        tokens = llm.tokenize("The otter")[int(llm.model.add_bos) :]
        assert rows[0] == pytest.approx(table_rows(base, np.asarray(tokens)).mean(axis=0))
    assert rows.shape[0] == len(TEXTS)
    assert not rows[2].any()


def test_coherences_centre_where_the_embedder_wants_it() -> None:
    vectors = {"a": [2.0, 1.0], "b": [0.0, 1.0], "A": [3.0, 1.0], "B": [1.0, 1.0], " ": [9.0, 9.0]}

    def embed(texts: Sequence[str]) -> Any:
        return np.array([vectors[text] for text in texts])

    texts = [(0, "A"), (1, "B"), (0, " ")]
    raw = coherences(Embedder("raw", embed), ["a", "b"], texts, lambda: None)
    assert raw == pytest.approx([7 / math.sqrt(50), 1 / math.sqrt(2), 0])
    centred = coherences(Embedder("centred", embed, centred=True), ["a", "b"], texts, lambda: None)
    assert centred == pytest.approx([1, 0, 0])  # minus the prompts' mean (1, 1); an empty response has none


@pytest.mark.parametrize("kind", ["states", "table"])
def test_own_responses_are_nearer_than_others(kind: str) -> None:
    """On the demo model: shuffled pairs of prompt and response are clearly less coherent than true ones."""
    files = demo_files()
    prompts = files.load_prompts()[:32]
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1, hidden_states=True) as llm:
        answers = [
            llm.create_completion(prompt, max_tokens=24, temperature=0.8, top_k=10, seed=index)["choices"][0]["text"]
            for index, prompt in enumerate(prompts)
        ]
        embedder = states_embedder(llm) if kind == "states" else table_embedder(llm)
        own = coherences(embedder, prompts, list(enumerate(answers)), lambda: None)
        other = coherences(embedder, prompts, [(i, answers[i - 7]) for i in range(32)], lambda: None)
    gap = own - other
    assert gap.mean() > 4 * gap.std(ddof=1) / math.sqrt(len(gap))
    assert abs(other.mean()) < own.mean() / 2


def test_a_users_embedder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def good(texts): return [[len(t), 1] for t in texts]\ndef flat(texts): return [1.0] * len(texts)\n"
    source += "def nan(texts): return [[float('nan')]] * len(texts)\ndef ragged(texts): return [[1], [1, 2]]\n"
    (tmp_path / "my_vectors.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    good = load_embedder("my_vectors:good")
    assert good.embed(["a", "bb"]).tolist() == [[1, 1], [2, 1]]
    assert (good.name, good.centred) == ("my_vectors:good", False)
    for name, names in {"flat": ("shape",), "nan": ("NaN",), "ragged": ()}.items():
        with refused(ConfigError, "--embedder", f"my_vectors:{name}", *names):
            load_embedder(f"my_vectors:{name}").embed(["a", "bb"])
