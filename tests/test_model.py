"""Otter: generating and scoring through the public class."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, ContextFullError, EngineError, FileError, MismatchError, Otter
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.isolation import open_model
from otter_gguf.options import LoadOptions, SamplingOptions
from tests.completions import joined
from tests.gguf.toy_files import write_base
from tests.guidance.reference import EXACT
from tests.refusals import refused
from tests.synthetic_models import TEXT, load, pair

ROUNDING = 2.5e-6
"""Between two rewards, in deviations, where everything is F32 and a matrix is multiplied with one row here and several
there, which adds up in another order: 1.4e-6 at most, over 8 models and 3 texts."""


@pytest.fixture(scope="module")
def llm() -> Otter:
    return load(pair(labels=("kind", "true")))


@pytest.fixture(scope="module")
def exact() -> Otter:
    """The same with F32 cells and no flash attention, whose kernels round to F16."""
    return load(pair(labels=("kind", "true")), **EXACT)


@pytest.fixture(scope="module")
def plain() -> Otter:
    return Otter(pair().base, n_ctx=512, n_threads=1)


def choice(response: Any) -> Any:
    return response["choices"][0]


# ---- completion ------------------------------------------------------------------------------------------------


def test_completion_has_openai_shape_and_rewards(llm: Otter) -> None:
    out = llm.create_completion(TEXT, max_tokens=9, temperature=0)
    assert out["object"] == "text_completion"
    assert out["model"] == "base.gguf"
    n_prompt = len(llm.tokenize(TEXT, special=True))
    n_tokens = len(choice(out)["rewards"]["tokens"])
    assert out["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
    }
    rewards = choice(out)["rewards"]
    assert rewards["labels"] == ["reward.kind", "reward.true"] == list(llm.reward_labels)
    assert np.shape(rewards["token_rewards"]) == (n_tokens, 2)
    assert len(rewards["text_offset"]) == n_tokens
    assert rewards["reward"] == rewards["token_rewards"][-1][0]
    assert choice(out)["text"] == llm.detokenize(rewards["tokens"]).decode("utf-8", "replace")


def difference_to_scoring(llm: Otter) -> float:
    """The largest one between rewards token by token while generating, and all at once while scoring."""
    out = choice(llm.create_completion(TEXT, max_tokens=40, temperature=0, prompt_rewards=True))
    score = llm.score([*llm.tokenize(TEXT, special=True), *out["rewards"]["tokens"]])
    rewards = [*out["prompt_rewards"]["token_rewards"], *out["rewards"]["token_rewards"]]
    assert np.abs(np.diff(rewards, axis=0)).mean() > 0.5, "a reward could be its neighbour's"
    return float(np.abs(score.rewards - rewards).max())


def test_rewards_are_those_of_the_text(exact: Otter) -> None:
    assert difference_to_scoring(exact) < ROUNDING


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        # A difference of 1e-7 is a whole step of F16 where a key or value lies between two of them.
        pytest.param({"flash_attn": "off"}, 2.5e-4, id="F16 cells"),
        # llama.cpp's kernel for a single query also sums the values in F16, its kernel for several in F32.
        pytest.param({"flash_attn": "on"}, 9.1e-3, id="flash attention"),
    ],
)
def test_rewards_are_nearly_those_of_the_text_in_f16(options: dict[str, Any], measured: float) -> None:
    with load(pair(labels=("kind", "true")), **options) as llm:
        assert ROUNDING < difference_to_scoring(llm) < 2 * measured


def test_another_sidecar_gives_other_rewards_and_the_same_text() -> None:
    first, second = (load(pair(seed=seed, base_of=0)) for seed in (3, 4))
    outs = [choice(llm.create_completion(TEXT, max_tokens=30, temperature=0)) for llm in (first, second)]
    assert outs[0]["text"] == outs[1]["text"]
    assert outs[0]["rewards"]["tokens"] == outs[1]["rewards"]["tokens"]
    difference = np.subtract(outs[0]["rewards"]["token_rewards"], outs[1]["rewards"]["token_rewards"])
    assert np.abs(difference).min() > 0
    assert np.abs(difference).max() > 1e-3


def test_plain_model_generates_the_same_text_without_rewards(llm: Otter, plain: Otter) -> None:
    ours = choice(llm.create_completion(TEXT, max_tokens=30, temperature=0))
    stock = choice(plain.create_completion(TEXT, max_tokens=30, temperature=0, prompt_rewards=True))
    assert stock["text"] == ours["text"]
    assert stock["rewards"] is None
    assert stock["prompt_rewards"] is None
    assert plain.n_rewards == 0
    with refused(ConfigError, pair().base, "otter=", "--otter"):
        plain.score(TEXT)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_streaming_gives_the_same_in_pieces(llm: Otter, temperature: float) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": 5, "prompt_rewards": True}
    whole = choice(llm.create_completion(TEXT, **options))
    chunks = [choice(chunk) for chunk in llm.create_completion(TEXT, stream=True, **options)]
    assert len(chunks) > 3
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for key in ("tokens", "text_offset", "token_rewards"):
        assert [item for chunk in chunks for item in chunk["rewards"][key]] == whole["rewards"][key]
    assert [chunk["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert chunks[-1]["rewards"]["reward"] == whole["rewards"]["reward"]
    assert chunks[0]["prompt_rewards"] == whole["prompt_rewards"]
    assert "prompt_rewards" not in chunks[1]


def test_same_seed_same_text_other_seed_other_text(llm: Otter) -> None:
    texts = [
        choice(llm.create_completion(TEXT, max_tokens=30, temperature=1.5, top_k=0, seed=seed))["text"]
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_string_ends_the_text_before_it(llm: Otter) -> None:
    free = choice(llm.create_completion(TEXT, max_tokens=60, temperature=1, seed=3))
    stop = free["text"][20:23]
    out = choice(llm.create_completion(TEXT, max_tokens=60, temperature=1, seed=3, stop=["never ever", stop]))
    assert out["text"] == free["text"][: free["text"].index(stop)]
    assert out["finish_reason"] == "stop"
    assert out["rewards"]["tokens"] == free["rewards"]["tokens"][: len(out["rewards"]["tokens"])]
    assert all(offset < len(out["text"]) for offset in out["rewards"]["text_offset"])


def test_echo_puts_the_prompt_in_front(llm: Otter) -> None:
    out = choice(llm.create_completion(TEXT, max_tokens=3, temperature=0, echo=True))
    assert out["text"].startswith(TEXT)
    assert choice(llm.create_completion(TEXT, max_tokens=0, echo=True))["text"] == TEXT


def test_max_tokens_zero_gives_the_prompts_reward(exact: Otter) -> None:
    out = choice(exact.create_completion(TEXT, max_tokens=0))
    assert (out["text"], out["finish_reason"], out["rewards"]["tokens"]) == ("", "length", [])
    assert out["rewards"]["reward"] == pytest.approx(exact.score(TEXT).reward, abs=ROUNDING)


@pytest.mark.parametrize("max_tokens", [None, -1])
def test_a_full_context_ends_the_text(max_tokens: int | None) -> None:
    with load(n_ctx=64) as llm:
        prompt = llm.tokenize("The otter")
        out = llm.create_completion(prompt, max_tokens=max_tokens, temperature=0)
        assert choice(out)["finish_reason"] == "length"
        assert out["usage"] is not None
        assert out["usage"]["total_tokens"] == 64


def test_prompt_of_the_contexts_length_fits_and_one_more_does_not() -> None:
    with load(n_ctx=64) as llm:
        assert choice(llm.create_completion([65] * 64, max_tokens=5))["text"] == ""
        with refused(ContextFullError, 65, 64, "n_ctx"):
            llm.create_completion([65] * 65)
        with refused(ContextFullError, 65, 64, "n_ctx"):
            llm.score([65] * 65)
        assert len(llm.score([65] * 64).rewards) == 64


def test_prompts_longer_than_a_batch_are_fed_in_parts(exact: Otter) -> None:
    prompt = TEXT * 3
    with load(pair(labels=("kind", "true")), n_batch=32, n_ubatch=16, **EXACT) as small:
        ours = choice(small.create_completion(prompt, max_tokens=20, temperature=0, prompt_rewards=True))
    other = choice(exact.create_completion(prompt, max_tokens=20, temperature=0, prompt_rewards=True))
    assert ours["text"] == other["text"]
    assert ours["prompt_rewards"] == other["prompt_rewards"]


def test_cached_prompt_gives_the_same_text(exact: Otter) -> None:
    fresh = choice(exact.create_completion(TEXT + "More.", max_tokens=20, temperature=0))
    exact.create_completion(TEXT, max_tokens=5, temperature=0)
    cached = choice(exact.create_completion(TEXT + "More.", max_tokens=20, temperature=0, cache_prompt=True))
    assert cached["text"] == fresh["text"]
    np.testing.assert_allclose(cached["rewards"]["token_rewards"], fresh["rewards"]["token_rewards"], atol=ROUNDING)


def test_cached_prompt_feeds_only_what_is_new(llm: Otter) -> None:
    tokens = llm.tokenize(TEXT * 2)
    llm.create_completion(tokens, max_tokens=0)
    before = llm.context.timing()["calls"]
    llm.create_completion(tokens, max_tokens=0, cache_prompt=True)
    assert llm.context.timing()["calls"] == before + 1, "the last token alone"
    assert llm.context.sequence_max_position(0) == len(tokens) - 1


def test_repeat_penalty_counts_the_prompt(llm: Otter) -> None:
    free = choice(llm.create_completion(TEXT, max_tokens=20, temperature=0))["rewards"]["tokens"]
    penalized = choice(llm.create_completion(TEXT, max_tokens=20, temperature=0, repeat_penalty=50.0))["rewards"]
    tokens = [*llm.tokenize(TEXT, special=True)[-64:], *penalized["tokens"]]
    assert len(set(tokens[-20:])) == 20
    assert free != penalized["tokens"]


def test_streams_go_on_beside_other_calls(llm: Otter) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    expected = choice(llm.create_completion(TEXT, **options))
    stream = llm.create_completion(TEXT, stream=True, **options)
    first = next(stream)
    assert choice(llm.create_completion(TEXT, **options))["rewards"]["tokens"] == expected["rewards"]["tokens"]
    assert joined([first, *stream])["tokens"] == expected["rewards"]["tokens"]


def test_a_stream_gives_way_to_a_text_that_needs_its_sequences(llm: Otter) -> None:
    stream = llm.create_completion(TEXT, max_tokens=50, temperature=0, stream=True)
    next(stream)
    llm.create_completion(TEXT, max_tokens=1, guidance=BestOfN(llm.options.n_seq_max, label="reward.true"))
    with refused(ConfigError, "stream"):
        list(stream)


def test_generate_yields_tokens_and_rewards(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    steps = llm.generate(prompt, temperature=0)
    taken = [next(steps) for _ in range(5)]
    del steps  # its cells would round the other's rewards otherwise
    out = choice(llm.create_completion(prompt, max_tokens=5, temperature=0))
    assert [step.token for step in taken] == out["rewards"]["tokens"]
    assert [step.rewards.tolist() for step in taken] == out["rewards"]["token_rewards"]


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_p": 0},
        {"top_k": -1},
        {"top_k": 2.5},
        {"min_p": "a"},
        {"repeat_penalty": 0},
        {"seed": -2},
        {"seed": 2**32},
        {"max_tokens": -2},
        {"stop": ""},
    ],
)
def test_wrong_sampling_options_are_refused_by_name(llm: Otter, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with refused(ConfigError, name, repr(value)):
        llm.create_completion(TEXT, **options)


@pytest.mark.parametrize("method", ["create_completion", "create_chat_completion", "generate"])
def test_unknown_arguments_are_type_errors(llm: Otter, method: str) -> None:
    with refused(TypeError, "top_kk"):
        getattr(llm, method)([65], top_kk=3)
    with refused(TypeError, "n_contex"):
        Otter(pair().base, n_contex=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"n_ctx": -1}, ("n_ctx", -1)),
        ({"n_batch": 0}, ("n_batch", 0, 1)),
        ({"n_threads": True}, ("n_threads", True)),
        ({"type_k": "q9"}, ("type_k", "'q9'", "q8_0")),
        ({"flash_attn": "maybe"}, ("flash_attn", "'maybe'", "auto, on, off")),
        ({"split_mode": "row"}, ("split_mode", "'row'", "none, layer")),
        ({"n_seq_max": 257}, ("n_seq_max", 257, 256)),
        ({"type_v": "q8_0", "flash_attn": False}, ("type_v", "q8_0", "flash_attn")),
    ],
)
def test_wrong_load_options_are_refused_before_loading(options: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        Otter("no such file", **options)


def test_signatures_show_every_option() -> None:
    for function, options in ((Otter.__init__, LoadOptions), (Otter.create_completion, SamplingOptions)):
        parameters = inspect.signature(function).parameters
        assert set(options.__dataclass_fields__) < set(parameters)
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


def test_context_defaults_to_the_models_own_length_up_to_a_cap() -> None:
    with Otter(pair().base, n_threads=1) as llm:
        assert llm.n_ctx == 4096


@pytest.mark.parametrize("type", ["q8_0", "f32"])
def test_cache_types(type: Any) -> None:
    with load(type_k=type, type_v=type) as llm:
        assert len(choice(llm.create_completion(TEXT, max_tokens=4, temperature=0))["rewards"]["tokens"]) == 4


# ---- scoring ---------------------------------------------------------------------------------------------------


def test_score_tells_prompt_from_response(llm: Otter) -> None:
    score = llm.score("The otter", " eats urchins.")
    assert b"".join(score.pieces[1:]) == b"The otter eats urchins."
    assert score.n_prompt == len(llm.tokenize("The otter", special=True))
    assert score.rewards.shape == (len(score.tokens), 2)
    assert score.response_rewards.shape == (len(score.tokens) - score.n_prompt, 2)
    assert score.final == dict(zip(llm.reward_labels, score.rewards[-1].tolist(), strict=True))
    assert score.to_dict()["reward"] == score.reward == score.final["reward.kind"]


def test_score_of_a_prefix_is_the_beginning_of_the_score(exact: Otter) -> None:
    tokens = exact.tokenize(TEXT)
    whole, part = exact.score(tokens), exact.score(tokens[:10])
    np.testing.assert_array_equal(whole.rewards[:10], part.rewards)
    assert whole.reward != part.reward


def test_score_refuses_nothing_and_mixtures(llm: Otter) -> None:
    with refused(ConfigError, "prompt", "empty"):
        llm.score([])
    with refused(ConfigError, "prompt", "response"):
        llm.score("text", [1, 2])


# ---- tokens and life -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TEXT, "", " ", "\n\n", "🦦" * 10, "\x00\x01"])
def test_tokens_give_the_text_back(llm: Otter, text: str) -> None:
    assert llm.detokenize(llm.tokenize(text, add_bos=False)).decode() == text
    assert llm.tokenize(text.encode()) == llm.tokenize(text)


def test_special_tokens_are_read_only_on_demand(llm: Otter) -> None:
    assert llm.model.eos_token in llm.tokenize("a<|end|>b", special=True)
    assert llm.model.eos_token not in llm.tokenize("a<|end|>b")


def test_properties(llm: Otter) -> None:
    assert (llm.n_vocab, llm.n_ctx, llm.n_rewards) == (320, 512, 2)
    assert llm.metadata["llama.block_count"] == 3
    assert "tokenizer.ggml.tokens" not in llm.metadata
    assert "reward.kind" in repr(llm)


def test_special_tokens_have_numbers(llm: Otter) -> None:
    assert llm.tokenize("")[:1] == [llm.token_bos()]
    assert llm.detokenize([llm.token_bos(), llm.token_eos()], special=True) == b"<|begin|><|end|>"
    assert llm.model.is_eog(llm.token_eos())
    assert not llm.model.is_eog(llm.token_bos())


def test_reset_forgets_the_text(llm: Otter) -> None:
    """A prompt that begins like it is fed as a whole, ``cache_prompt`` or not."""
    tokens = llm.tokenize(TEXT)

    def fed_again() -> int:
        before = llm.context.timing()["tokens"]
        llm.create_completion(tokens, max_tokens=0, cache_prompt=True)
        return int(llm.context.timing()["tokens"] - before)

    llm.create_completion(tokens, max_tokens=0)
    assert fed_again() == 1
    assert llm.last_rewards
    llm.reset()
    assert (llm.last_rewards, llm.save_state().tokens) == ([], ())
    assert llm.context.sequence_max_position(0) == -1
    assert fed_again() == len(tokens)


@pytest.mark.parametrize("guidance", [None, ARGS(1.0, label="reward.kind")])
def test_reset_ends_a_stream(llm: Otter, guidance: ARGS | None) -> None:
    stream = llm.create_completion(TEXT, temperature=0, stream=True, guidance=guidance)
    next(stream)
    llm.reset()
    with refused(ConfigError, "stream"):
        list(stream)
    assert choice(llm.create_completion(TEXT, max_tokens=3))["rewards"]["tokens"]


def test_reset_and_special_tokens_in_a_process_of_its_own(llm: Otter) -> None:
    files = pair(labels=("kind", "true"))
    with open_model(files.base, otter=files.otter, n_ctx=64, n_threads=1, isolate=True) as isolated:
        assert (isolated.token_bos(), isolated.token_eos()) == (llm.token_bos(), llm.token_eos())
        isolated.create_completion("The otter", max_tokens=0)
        assert isolated.save_state().tokens
        isolated.reset()
        assert (isolated.last_rewards, isolated.save_state().tokens) == ([], ())


def test_close_is_idempotent_and_final() -> None:
    llm = load()
    with llm:
        llm.create_completion(TEXT, max_tokens=1)
    llm.close()
    with refused(EngineError, "closed"):
        llm.create_completion(TEXT, max_tokens=1)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with refused(MismatchError, pair().otter, pair(seed=1).base, "fingerprint"):
        Otter(pair(seed=1).base, otter=pair().otter)
    with refused(FileError, pair().otter, "--otter"):
        Otter(pair().otter)
    with refused(FileError, "nothing.gguf"):
        Otter(tmp_path / "nothing.gguf")


def test_a_base_is_checked_before_llama_cpp_reads_it(tmp_path: Path) -> None:
    """A plain one too, of which nothing else is looked at."""
    metadata = KeyValue("llama.attention.layer_norm_rms_epsilon", "f32", -1.0)
    base = write_base(tmp_path / "base.gguf", metadata=(metadata,))
    with refused(FileError, base, metadata.key, -1):
        Otter(base, n_ctx=64, n_threads=1)
