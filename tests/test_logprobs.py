"""Log-probabilities: those of the base, whatever chose the tokens, in both of OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, Otter, Vocabulary
from otter_gguf.completion import Run, _ranked
from otter_gguf.steps import Logprobs
from tests.completions import chat_pair, choice_of, choices_of, tokens_of, without_end
from tests.guidance.reference import Float64, Text, open_exact
from tests.refusals import refused
from tests.synthetic_models import TEXT

N = 24
SAMPLED: dict[str, Any] = {"max_tokens": N, "temperature": 1, "seed": 3}


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=64) as llm:
        yield llm


def reference(llm: Otter, prompt: Sequence[int], tokens: Sequence[int]) -> Float64:
    """(n, n_vocab) log softmax of the base's logits before each token, in float64, from a context of its own."""
    text = Text(llm, prompt)
    rows = []
    for token in tokens:
        shifted = text.logits - text.logits.max()
        rows.append(shifted - np.log(np.exp(shifted).sum()))
        text.append(token)
    return np.asarray(rows, np.float64)


def check(llm: Otter, choice: Any, rows: Float64, count: int) -> None:
    """A choice's log-probabilities against all tokens'."""
    tokens, places = choice["rewards"]["tokens"], choice["logprobs"]
    assert len(places["token_logprobs"]) == len(places["top_logprobs"]) == len(tokens) == len(rows)
    assert places["text_offset"] == choice["rewards"]["text_offset"]
    np.testing.assert_allclose(places["token_logprobs"], rows[np.arange(len(rows)), tokens], atol=1e-5)
    for token, name, top, row in zip(tokens, places["tokens"], places["top_logprobs"], rows, strict=True):
        assert name == name_of(llm, token)
        best = np.argsort(-row, kind="stable")[:count]
        expected = {name_of(llm, int(index)): row[index] for index in (*best, token)}
        assert list(top)[:count] == [name_of(llm, int(index)) for index in best]
        assert top == pytest.approx(expected, abs=1e-5)


def name_of(llm: Otter, token: int) -> str:
    """As OpenAI writes it."""
    data = llm.model.token_bytes(token, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(rf"\x{byte:02x}" for byte in data)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.1, "top_k": 2},
        {"repeat_penalty": 1.5},
        {"logit_bias": {65: 9.0, 66: float("-inf")}},
        {"logits_processor": lambda ids, logits: -logits},
        {"guidance": ARGS(4.0)},
        {"guidance": Vocabulary(5.0)},
        {"guidance": BestOfN(3)},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_they_are_the_bases_whatever_chose_the_token(llm: Otter, options: dict[str, Any]) -> None:
    prompt = llm.tokenize(TEXT)
    choice = choice_of(llm.create_completion(prompt, logprobs=5, **{**SAMPLED, **options}))
    rows = reference(llm, prompt, choice["rewards"]["tokens"])
    check(llm, choice, rows, 5)
    assert len(rows) > 5


def test_they_are_not_those_of_another_temperature(llm: Otter) -> None:
    """The twin: log-probabilities of the distribution that was drawn from differ by far more than the tolerance."""
    prompt = llm.tokenize(TEXT)
    choice = choice_of(llm.create_completion(prompt, logprobs=0, **SAMPLED, top_k=0, top_p=1.0, min_p=0.0))
    rows = reference(llm, prompt, choice["rewards"]["tokens"]) / 0.8
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    chosen = rows[np.arange(len(rows)), choice["rewards"]["tokens"]]
    assert np.abs(chosen - choice["logprobs"]["token_logprobs"]).max() > 0.01


@pytest.mark.parametrize("guidance", [None, ARGS(4.0), Vocabulary(5.0), BestOfN(3)])
def test_asking_changes_no_choice(llm: Otter, guidance: Any) -> None:
    options = {**SAMPLED, "guidance": guidance}
    without, asked = (choice_of(llm.create_completion(TEXT, logprobs=n, **options)) for n in (None, 7))
    assert without.pop("logprobs") is None
    assert asked.pop("logprobs") is not None
    assert without == asked


def test_zero_gives_those_of_the_chosen_tokens_alone(llm: Otter) -> None:
    choice = choice_of(llm.create_completion(TEXT, logprobs=0, **SAMPLED))
    places = choice["logprobs"]
    assert [list(top.items()) for top in places["top_logprobs"]] == [
        [pair] for pair in zip(places["tokens"], places["token_logprobs"], strict=True)
    ]


@pytest.mark.parametrize("guidance", [None, ARGS(4.0), BestOfN(3)], ids=["plain", "args", "search"])
@pytest.mark.parametrize("stop", [[], [" ", "\n", "e"]])
def test_chunks_carry_those_of_their_tokens(llm: Otter, guidance: Any, stop: list[str]) -> None:
    options = {**SAMPLED, "guidance": guidance, "stop": stop, "logprobs": 3}
    whole = choice_of(llm.create_completion(TEXT, **options))
    chunks = [choice_of(chunk) for chunk in llm.create_completion(TEXT, stream=True, **options)]
    for chunk in chunks:
        assert len(chunk["logprobs"]["token_logprobs"]) == len(chunk["rewards"]["tokens"])
    for key, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][key]] == values


def test_a_stop_string_takes_those_of_its_tokens_along(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    free = choice_of(llm.create_completion(prompt, logprobs=2, **SAMPLED, logit_bias=without_end(llm)))
    stop = free["text"][8:11]
    cut = choice_of(llm.create_completion(prompt, logprobs=2, **SAMPLED, logit_bias=without_end(llm), stop=stop))
    kept = len(cut["rewards"]["tokens"])
    assert 0 < kept < len(free["rewards"]["tokens"])
    assert cut["logprobs"] == {key: values[:kept] for key, values in free["logprobs"].items()}


def test_every_text_of_a_batch_has_its_own(llm: Otter) -> None:
    prompts = [TEXT, "The otter", "a"]
    for prompt, choice in zip(prompts, choices_of(llm.create_completion(prompts, logprobs=4, **SAMPLED)), strict=True):
        tokens = llm.tokenize(prompt, special=True)
        check(llm, choice, reference(llm, tokens, choice["rewards"]["tokens"]), 4)


def test_tokens_of_the_same_text_count_once_by_the_best() -> None:
    """A byte token and a token of that letter have the same text."""
    run = Run("", (), [[1]], [], iter(()), lambda token: b"a" if token < 2 else b"\xf0\x9f")
    place = Logprobs(-3.0, [0, 2, 1], [-1.0, -2.0, -3.0])
    assert _ranked(run, 1, place) == {"a": -1.0, r"bytes:\xf0\x9f": -2.0}


# ---- chat ------------------------------------------------------------------------------------------------------


def chat(llm: Otter, **options: Any) -> Any:
    """A short conversation."""
    return llm.create_chat_completion([{"role": "user", "content": TEXT}], **SAMPLED, **options)


def test_chat_gives_openais_shape(chatty: Otter) -> None:
    prompt = chatty.tokenize_chat([{"role": "user", "content": TEXT}])
    choice = choice_of(chat(chatty, logprobs=True, top_logprobs=3))
    rows = reference(chatty, prompt, choice["rewards"]["tokens"])
    places = choice["logprobs"]["content"]
    assert len(places) == len(rows) > 3
    for token, place, row in zip(choice["rewards"]["tokens"], places, rows, strict=True):
        assert (place["token"], bytes(place["bytes"])) == (name_of(chatty, token), chatty.model.token_bytes(token))
        assert place["logprob"] == pytest.approx(row[token], abs=1e-5)
        best = np.argsort(-row, kind="stable")[:3].tolist()
        assert [top["token"] for top in place["top_logprobs"]] == [name_of(chatty, index) for index in best]
        assert [top["logprob"] for top in place["top_logprobs"]] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_chat_without_places_gives_the_chosen_alone(chatty: Otter) -> None:
    places = choice_of(chat(chatty, logprobs=True))["logprobs"]["content"]
    assert all(place["top_logprobs"] == [] for place in places)
    assert choice_of(chat(chatty))["logprobs"] is None


def test_chat_chunks_add_up(chatty: Otter) -> None:
    whole = choice_of(chat(chatty, logprobs=True, top_logprobs=2))
    chunks = [choice_of(chunk) for chunk in chat(chatty, logprobs=True, top_logprobs=2, stream=True)]
    assert [place for chunk in chunks for place in chunk["logprobs"]["content"]] == whole["logprobs"]["content"]
    assert len(chunks) > 3


@pytest.fixture(scope="module")
def chatty() -> Iterator[Otter]:
    """With a chat template."""
    with open_exact(chat_pair()) as llm:
        yield llm


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logprobs", [-1, 101, 1000, 2.5, "3", True])
def test_wrong_counts_are_refused(llm: Otter, logprobs: Any) -> None:
    with refused(ConfigError, "logprobs", repr(logprobs), 100):
        llm.create_completion(TEXT, logprobs=logprobs)


def test_places_without_logprobs_are_refused(chatty: Otter) -> None:
    with refused(ConfigError, "top_logprobs", "logprobs=True"):
        chat(chatty, top_logprobs=3)
    with refused(ConfigError, "logprobs", 1000, 100):
        chat(chatty, logprobs=True, top_logprobs=1000)


def test_more_places_than_tokens_are_all_of_them(llm: Otter) -> None:
    """The vocabulary has more than the most that may be asked for."""
    choice = choice_of(llm.create_completion(TEXT, logprobs=100, **SAMPLED))
    assert llm.n_vocab > 100
    assert all(90 < len(top) <= 101 for top in choice["logprobs"]["top_logprobs"])
    assert tokens_of(llm.create_completion(TEXT, **SAMPLED)) == choice["rewards"]["tokens"]
