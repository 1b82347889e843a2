"""Vocabulary heads in the native layer: scores of every next token, and the base's logits untouched. Softmax heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from otter_gguf.converters.adapter import convert_adapter

from otter_gguf import Otter, _native
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, EngineError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.merge import merge, split
from otter_gguf.gguf.sidecar import to_native_spec
from tests.gguf.toy_files import adapter_tensors, float_tensor, insertion, rewrite, write_adapter, write_base
from tests.native.helpers import Float32, base_logits, feed, feed_chunks, open_base, open_otter, random_tokens
from tests.refusals import refused

V, RANK = 288, 32
REWARD = HeadConfig()
SAFETY = HeadConfig("safety", ("harm", "help"), "both", "softmax", (2.0, 0.5), (0.0, -1.0))
NEXT = HeadConfig("next", ("reward",), kind="vocabulary", rank=RANK)
HARM = HeadConfig("harm", ("safety.harm",), "both", "sigmoid", (3.0,), (0.5,), kind="vocabulary", rank=RANK)
# Value and vocabulary heads take turns: each must find its own outputs in a row.
CONFIG = insertion(heads=(NEXT, REWARD, HARM, SAFETY))
VALUE_ONLY = insertion(heads=(REWARD, SAFETY))

Weights = dict[str, Float32]


def weights(seed: int = 1) -> Weights:
    """An adapter's tensors, small enough to keep rewards and scores near 1."""
    return {
        name: values if ".table." in name else 0.3 * values for name, values in adapter_tensors(CONFIG, seed).items()
    }


def make(
    folder: Path,
    tensors: Weights | None = None,
    config: InsertionConfig = CONFIG,
    *,
    name: str = "a",
    type: str = "F32",
    outtype: str = "f32",
) -> tuple[Path, Path]:
    """A base of a weight type and a sidecar."""
    base, sidecar = folder / f"base-{type}.gguf", folder / f"{name}.otter.gguf"
    if not base.exists():
        write_base(base, type=type)
    write_adapter(folder / name, config, weights() if tensors is None else tensors)
    with BaseFiles.open(base) as files:
        convert_adapter(folder / name, sidecar, files, outtype=outtype)
    return base, sidecar


def stored_table(sidecar: Path, head: str) -> Float32:
    """(V, rank): the token table as the file holds it."""
    with _native.GgufFile(str(sidecar)) as file:
        name = f"cls.table.{head}.otter.weight"
        info = next(tensor for tensor in file.tensors if tensor.name == name)
        return _native.dequantize(file.tensor_data(name), info.type, info.shape[0])


def formula(query: Float32, table: Float32, head: HeadConfig) -> Float32:
    """Scores by the head's definition; ``query`` (rank + 1,), ``table`` (candidates, rank)."""
    raw = table.astype(np.float64) @ query[:-1] + query[-1]
    value = 1 / (1 + np.exp(-raw)) if head.activation == "sigmoid" else raw
    scores: Float32 = (head.scale[0] * value + head.shift[0]).astype(np.float32)
    return scores


# ---- the base is left alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F32", "Q4_0"])
def test_logits_are_identical(type: str, tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, type=type, outtype="auto")
    tokens = random_tokens(150)
    for size in (75, 1):
        plain = base_logits(open_base(base), tokens, size)
        logits, _ = feed_chunks(open_otter(base, sidecar, CONFIG), tokens, size)
        assert np.array_equal(plain.view(np.uint32), logits.view(np.uint32))


def test_another_table_changes_scores_and_no_logit_and_no_reward(tmp_path: Path) -> None:
    other = weights() | {"heads.next.table.otter.weight": weights(2)["heads.next.table.otter.weight"]}
    base, first = make(tmp_path)
    _, second = make(tmp_path, other, name="b")
    contexts = [open_otter(base, sidecar, CONFIG) for sidecar in (first, second)]
    for context in contexts:
        feed(context, random_tokens(20))
    one, two = contexts
    assert np.array_equal(one.logits(), two.logits())
    assert np.array_equal(one.rewards(), two.rewards())
    assert np.abs(one.vocabulary_scores(0, 19) - two.vocabulary_scores(0, 19)).max() > 0.1
    # the other head's table is as it was
    assert np.array_equal(one.vocabulary_scores(1, 19), two.vocabulary_scores(1, 19))


def test_rewards_are_those_of_the_value_heads_alone(tmp_path: Path) -> None:
    value_tensors = {
        name: values for name, values in weights().items() if "next" not in name and "heads.harm" not in name
    }
    base, sidecar = make(tmp_path)
    _, alone = make(tmp_path, value_tensors, VALUE_ONLY, name="b")
    tokens = random_tokens(40)
    logits, rewards = feed_chunks(open_otter(base, sidecar, CONFIG), tokens, 40)
    same_logits, same_rewards = feed_chunks(open_otter(base, alone, VALUE_ONLY), tokens, 40)
    assert rewards.shape == (40, 3)
    assert np.array_equal(rewards, same_rewards)
    assert np.array_equal(logits, same_logits)
    scored = open_otter(base, sidecar, CONFIG).score(tokens)
    assert scored.shape == (40, 3)
    assert np.abs(scored - rewards).max() <= 1e-5


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_scores_are_the_formula_over_the_stored_table(outtype: str, tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, outtype=outtype)
    context = open_otter(base, sidecar, CONFIG)
    feed(context, random_tokens(12))
    candidates = np.array([0, 287, 5, 5, 100], np.int32)
    for index, head in enumerate((NEXT, HARM)):
        table, queries = stored_table(sidecar, head.name), context.queries(index)
        assert queries.shape == (12, RANK + 1)
        for row in (0, 11):
            expected = formula(queries[row], table, head)
            scores = context.vocabulary_scores(index, row)
            assert scores.shape == (V,)
            assert np.abs(scores - expected).max() <= 1e-4
            assert np.array_equal(context.vocabulary_scores(index, row, candidates), scores[candidates])
        # the comparison can fail: one head's queries over the other's table
        assert np.abs(formula(queries[0], stored_table(sidecar, ("harm", "next")[index]), head) - scores).max() > 0.1


@pytest.mark.parametrize("size", [10, 1])
def test_queries_are_the_linear_map_of_the_state(size: int, tmp_path: Path) -> None:
    base, sidecar = make(tmp_path)
    context, tensors = open_otter(base, sidecar, CONFIG, hidden_states=True), weights()
    for first in range(0, 10, size):
        feed(context, random_tokens(10)[first : first + size], first)
    h, h_inserted = context.hidden_states()
    for index, (name, state) in enumerate((("next", h_inserted), ("harm", np.concatenate([h, h_inserted], 1)))):
        expected = state @ tensors[f"heads.{name}.otter.weight"].T + tensors[f"heads.{name}.otter.bias"]
        assert np.abs(context.queries(index) - expected).max() <= 1e-4
        assert np.abs(expected).max() > 0.1


def test_softmax_is_over_the_labels_of_its_head(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path)
    context, tensors = open_otter(base, sidecar, CONFIG, hidden_states=True), weights()
    feed(context, random_tokens(10))
    state = np.concatenate(context.hidden_states(), 1)
    raw = state @ tensors["heads.safety.otter.weight"].T + tensors["heads.safety.otter.bias"]
    share = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    assert np.abs(context.rewards()[:, 1:] - (share * SAFETY.scale + SAFETY.shift)).max() <= 1e-5
    assert share.std(0).min() > 1e-3
    assert np.abs(context.rewards()[:, 1:] - (raw * SAFETY.scale + SAFETY.shift)).max() > 0.1


def test_softmax_of_huge_scores_is_finite(tmp_path: Path) -> None:
    tensors = weights() | {"heads.safety.otter.bias": np.array([900.0, 800.0], np.float32)}
    context = open_otter(*make(tmp_path, tensors), CONFIG)
    feed(context, random_tokens(3))
    assert np.allclose(context.rewards()[:, 1:], np.array([1.0, 0.0]) * SAFETY.scale + SAFETY.shift)


def test_threads_share_a_large_table(tmp_path: Path) -> None:
    rank, rng = 8192, np.random.default_rng(0)
    spec = insertion(heads=(REWARD,))
    base, small = make(tmp_path, adapter_tensors(spec), spec)
    made = {
        "cls.output.next.otter.weight": rng.normal(0.0, 0.1, (rank + 1, 32)),
        "cls.output.next.otter.bias": rng.normal(0.0, 0.1, rank + 1),
        "cls.table.next.otter.weight": rng.normal(0.0, 0.1, (V, rank)),
    }
    plans = {name: float_tensor(name, values.astype(np.float32)) for name, values in made.items()}
    sidecar = rewrite(small, tmp_path / "large.gguf", tensors=plans)
    heads = [
        _native.HeadSpec(name=name, kind=kind, input="inserted", activation="none", scale=[1], shift=[0], rank=r)
        for name, kind, r in (("reward", "value", 0), ("next", "vocabulary", rank))
    ]
    inserted = _native.InsertionSpec(
        width=32, n_head_kv=(1, 2), n_ff=(32, 0), state_source="slice", state_offset=0, heads=heads
    )
    model = _native.Model(str(base), sidecar=str(sidecar), insertion=inserted)
    found = []
    for n_threads in (1, 3):
        context = _native.Context(model, n_ctx=32, n_threads=n_threads)
        feed(context, random_tokens(2))
        found.append(context.vocabulary_scores(0, 1))
        raw = made["cls.table.next.otter.weight"].astype(np.float32) @ context.queries(0)[1, :-1]
        assert np.abs(found[-1] - raw - context.queries(0)[1, -1]).max() <= 1e-3
    assert np.abs(found[0] - found[1]).max() <= 1e-3  # the states differ in their last bits


# ---- files -----------------------------------------------------------------------------------------------------


def test_merged_files_give_the_same_and_split_again(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, type="Q4_0", outtype="q8_0")
    merged, again = tmp_path / "merged.gguf", tmp_path / "again.gguf"
    merge(base, sidecar, merged)
    split(merged, None, again)
    assert again.read_bytes() == sidecar.read_bytes()
    contexts = [open_otter(base, sidecar, CONFIG), open_otter(merged, None, CONFIG)]
    for context in contexts:
        feed(context, random_tokens(20))
    for head in (0, 1):
        first, second = (context.vocabulary_scores(head, 19) for context in contexts)
        assert np.array_equal(first, second)
        assert first.std() > 0.01


def test_mapped_and_read_files_give_the_same(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path, outtype="q8_0")
    found = []
    for use_mmap in (True, False):
        model = _native.Model(str(base), sidecar=str(sidecar), insertion=to_native_spec(CONFIG), use_mmap=use_mmap)
        context = _native.Context(model, n_ctx=32, n_threads=1)
        feed(context, random_tokens(3))
        found.append(context.vocabulary_scores(0, 2))
    assert np.array_equal(found[0], found[1])


# ---- refusals --------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path)
    context = open_otter(base, sidecar, CONFIG)
    with refused(ConfigError, "output row 0", "decode"):
        context.vocabulary_scores(0, 0)
    feed(context, random_tokens(3))
    for head in (2, -1):
        with refused(ConfigError, f"vocabulary head {head}", 2):
            context.vocabulary_scores(head, 0)
        with refused(ConfigError, f"vocabulary head {head}", 2):
            context.queries(head)
    for row in (3, -1):
        with refused(ConfigError, f"output row {row}", 3):
            context.vocabulary_scores(0, row)
    for token in (V, -1):
        with refused(ConfigError, f"token {token}", "vocabulary"):
            context.vocabulary_scores(0, 0, np.array([5, token], np.int32))
    with refused(ConfigError, "tokens", "1-D"):
        context.vocabulary_scores(0, 0, np.zeros((2, 2), np.int32))
    assert context.vocabulary_scores(0, 0, np.zeros(0, np.int32)).shape == (0,)
    feed(context, random_tokens(1), 3, rewards=False)
    with refused(ConfigError, "decode", "rewards"):
        context.vocabulary_scores(0, 0)
    with refused(ConfigError, "decode", "rewards"):
        context.queries(0)


def test_a_model_without_such_a_head_has_none(tmp_path: Path) -> None:
    plain = open_base(make(tmp_path)[0])
    feed(plain, random_tokens(2))
    with refused(ConfigError, "vocabulary head 0", "model"):
        plain.vocabulary_scores(0, 0)


def test_wrong_heads_are_refused(tmp_path: Path) -> None:
    for rank, scale in ((32, [1.0, 1.0]), (-1, [1.0])):
        with refused(ConfigError, "head x", "label", "rank"):
            _native.HeadSpec(
                name="x", kind="vocabulary", input="base", activation="none", scale=scale, shift=scale, rank=rank
            )
    base, sidecar = make(tmp_path)
    wrong = insertion(heads=(HeadConfig("next", ("reward",), kind="vocabulary", rank=16), REWARD, HARM, SAFETY))
    with refused(EngineError, base, "cls.output.next.otter.weight"):
        open_otter(base, sidecar, wrong)
    with refused(EngineError, base, 41, 38):
        open_otter(base, sidecar, insertion(heads=(NEXT, REWARD, SAFETY)))


# ---- Otter -----------------------------------------------------------------------------------------------------


def test_otter_names_its_vocabulary_heads(tmp_path: Path) -> None:
    base, sidecar = make(tmp_path)
    with Otter(base, otter=sidecar, n_ctx=64, n_threads=1) as llm:
        assert llm.vocabulary_heads == ("next", "harm")
        assert llm.reward_labels == ("reward", "safety.harm", "safety.help")
        score = llm.score([1, 5, 6, 7])
        assert score.rewards.shape == (4, 3)
        llm.context.clear()
        feed(llm.context, [1, 5, 6, 7])
        index = llm.vocabulary_heads.index("harm")
        expected = formula(llm.context.queries(index)[3], stored_table(sidecar, "harm"), HARM)
        assert np.abs(llm.context.vocabulary_scores(index, 3) - expected).max() <= 1e-4
    with Otter(base, n_ctx=64, n_threads=1) as plain:
        assert plain.vocabulary_heads == ()
