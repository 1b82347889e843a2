"""Wrong arguments: one clear line each, and the object stays usable."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import synthetic
from otter_gguf import (
    ARGS,
    PARGS,
    BestOfN,
    ConfigError,
    ContextFullError,
    Gated,
    MismatchError,
    Otter,
    OtterError,
    Vocabulary,
)
from otter_gguf.cli import main as cli
from otter_gguf.config import InsertionConfig
from tests.completions import chat_pair, tokens_of
from tests.guidance.reference import open_exact
from tests.synthetic_models import TEXT, pair

NAN, INF = math.nan, math.inf
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_ctx=128) as llm:
        yield llm


def line_of(error: type[OtterError], call: Callable[[], object]) -> str:
    """The message of what must be raised, which is one line that can be read."""
    with pytest.raises(error) as refused:
        call()
    line = str(refused.value)
    assert "\n" not in line
    assert 15 < len(line) < 400
    return line


@pytest.fixture(autouse=True)
def _stays_usable(llm: Otter) -> Iterator[None]:
    yield
    assert len(tokens_of(llm.create_completion("a", max_tokens=2, temperature=0))) == 2


# ---- prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompt is empty"),
        ([[65], []], "prompt is empty"),
        (3, "the prompt is 3"),
        (None, "the prompt is None"),
        (1.5, "the prompt is 1.5"),
        (b"bytes", "the prompt is b'bytes'"),
        ([65, "a"], "the prompt has 'a'"),
        (["a", 65.0], "the prompt is 65.0"),
        (["a", None], "the prompt is None"),
        ([1.0, 2.0], "the prompt is 1.0"),
        ([[65, [66]]], r"the prompt has \[66\]"),
        ([True], "the prompt has True"),
        ([-1], "the prompt has -1"),
        ([320], "tokens from 0 to 319"),
        ([2**40], "tokens from 0 to 319"),
        (np.asarray([0.5]), "the prompt is"),
    ],
)
def test_prompts_that_are_none(llm: Otter, prompt: Any, words: str) -> None:
    assert re.search(words, line_of(ConfigError, lambda: llm.create_completion(prompt)))
    if not isinstance(prompt, list) or not isinstance(prompt[0] if prompt else 0, (str, list)):
        line_of(ConfigError, lambda: llm.generate(prompt))


def test_an_empty_text_is_the_begin_of_text_token(llm: Otter) -> None:
    """It is no empty prompt: this model begins every text with it."""
    assert llm.tokenize("") == [llm.model.bos_token]
    assert tokens_of(llm.create_completion("", max_tokens=2, temperature=0))


@pytest.mark.parametrize("method", ["create_completion", "generate", "score"])
def test_a_prompt_over_the_context(llm: Otter, method: str) -> None:
    line = line_of(ContextFullError, lambda: getattr(llm, method)([65] * 129))
    assert "129 tokens, the context 128" in line
    assert "n_ctx" in line


def test_a_conversation_over_the_context(llm: Otter) -> None:
    messages = [{"role": "user", "content": TEXT * 4}]
    assert "the context 128" in line_of(ContextFullError, lambda: llm.create_chat_completion(messages))


@pytest.mark.parametrize("messages", [[], "text", [{"role": "user"}], None, 3, [3]])
def test_messages_that_are_none(llm: Otter, messages: Any) -> None:
    assert "messages" in line_of(ConfigError, lambda: llm.create_chat_completion(messages))


@pytest.mark.parametrize("arguments", [("a", [65]), ([65], "a"), (3,), ([65], 3), (None,), ([],), ([999],)])
def test_texts_that_cannot_be_scored(llm: Otter, arguments: tuple[Any, ...]) -> None:
    line_of(ConfigError, lambda: llm.score(*arguments))


# ---- options ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, Any]] = [
    ("max_tokens", -2),
    ("max_tokens", 1.5),
    ("max_tokens", "5"),
    ("max_tokens", True),
    ("logprobs", -1),
    ("logprobs", 1000),
    ("logprobs", "3"),
    ("n_keep", -1),
    ("n_keep", "1"),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", [3]),
    ("stop", 3),
    ("stop", b"a"),
    ("temperature", "hot"),
    ("temperature", None),
    ("temperature", -0.1),
    ("temperature", NAN),
    ("temperature", INF),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 0),
    ("top_p", "1"),
    ("min_p", 2),
    ("repeat_penalty", 0),
    ("repeat_last_n", -2),
    ("frequency_penalty", "a"),
    ("frequency_penalty", NAN),
    ("presence_penalty", None),
    ("presence_penalty", INF),
    ("seed", 1.5),
    ("seed", "1"),
    ("seed", -2),
    ("seed", 2**32),
    ("logit_bias", 3),
    ("logit_bias", [(65, 1.0)]),
    ("logit_bias", {"a": 1.0}),
    ("logit_bias", {65: "a"}),
    ("logit_bias", {65: None}),
    ("logit_bias", {65: NAN}),
    ("logit_bias", {65: INF}),
    ("logit_bias", {320: 1.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {2**40: 1.0}),
    ("grammar", 3),
    ("grammar", b"root ::= 1"),
    ("json_schema", 3),
    ("json_schema", [1]),
    ("logits_processor", 3),
    ("stopping_criteria", "len"),
    ("reward_model", "judge.gguf"),
    ("reward_model", {"judge": "judge.gguf"}),
    ("guidance", "args"),
    ("guidance", ARGS),
    ("guidance", 1.5),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}"[:40] for name, value in WRONG])
def test_options_out_of_range_or_of_a_wrong_type(llm: Otter, name: str, value: Any) -> None:
    assert name in line_of(ConfigError, lambda: llm.create_completion("a", **{name: value}))
    if name != "logprobs":
        assert name in line_of(ConfigError, lambda: llm.create_chat_completion(MESSAGES, **{name: value}))


@pytest.mark.parametrize(
    "options", [{"top_k": 2**40}, {"repeat_last_n": 2**40, "repeat_penalty": 1.1}, {"max_tokens": 2**70, "stop": "e"}]
)
def test_large_numbers_are_no_mistake(llm: Otter, options: dict[str, Any]) -> None:
    assert tokens_of(llm.create_completion("a", **options))


@pytest.mark.parametrize(
    "options",
    [{"grammar": 'root ::= "a"', "json_schema": {}}, {"logprobs": False, "top_logprobs": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_contradict_each_other(llm: Otter, options: dict[str, Any]) -> None:
    line_of(ConfigError, lambda: llm.create_chat_completion(MESSAGES, **options))


# ---- guidance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ARGS, PARGS, Vocabulary])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_candidates": -1}, "n_candidates is -1"),
        ({"n_candidates": 0}, "n_candidates is 0"),
        ({"n_candidates": 2.5}, "n_candidates is 2.5"),
        ({"n_candidates": "ten"}, "n_candidates is 'ten'"),
        ({"weight": NAN}, "weight is nan"),
        ({"weight": INF}, "weight is inf"),
        ({"weight": "1"}, "weight is '1'"),
        ({"weight": None}, "weight is None"),
    ],
)
def test_policies_of_nonsense(kind: Any, options: dict[str, Any], words: str) -> None:
    assert words in line_of(ConfigError, lambda: kind(**options))


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        (ARGS(label="kindness"), "there is no reward 'kindness'; this model predicts: reward"),
        (Vocabulary(head="kindness"), "there is no vocabulary head 'kindness'; this model has: next"),
        (Gated(ARGS(label="kindness"), entropy=1.0), "'kindness'"),
        (BestOfN(2, label="kindness"), "'kindness'"),
        (ARGS(n_candidates=17), "n_seq_max=17"),
        (BestOfN(17), "n_seq_max=17"),
    ],
)
def test_guidance_that_the_model_does_not_have(llm: Otter, guidance: Any, words: str) -> None:
    for call in (llm.create_completion, functools.partial(llm.create_completion, stream=True)):
        assert words in line_of(ConfigError, lambda call=call: call("a", guidance=guidance))  # type: ignore[misc]


def test_guidance_of_a_plain_model() -> None:
    with Otter(pair().base, n_ctx=64, n_threads=1) as plain:
        assert "no reward" in line_of(ConfigError, lambda: plain.create_completion("a", guidance=ARGS()))
        assert "none" in line_of(ConfigError, lambda: plain.create_completion("a", guidance=Vocabulary()))
        assert "plain model" in line_of(ConfigError, lambda: plain.score("a"))


def test_reward_models_that_cannot_judge(llm: Otter) -> None:
    options: dict[str, Any] = {"guidance": ARGS()}
    assert "itself" in line_of(ConfigError, lambda: llm.create_completion("a", reward_model=llm, **options))
    with Otter(pair().base, n_ctx=64, n_threads=1) as plain:
        assert "no reward" in line_of(ConfigError, lambda: llm.create_completion("a", reward_model=plain, **options))


def test_a_reward_model_of_another_vocabulary(llm: Otter) -> None:
    with Otter(n_threads=1, n_ctx=64, **demo()) as other:
        line = line_of(MismatchError, lambda: llm.create_completion("a", reward_model=other, guidance=ARGS()))
        assert "other vocabularies" in line


def test_a_reward_model_with_another_token_of_the_same_length(llm: Otter, tmp_path: Path) -> None:
    geometry = synthetic.GEOMETRIES["tiny"]
    metadata = synthetic.base_metadata(geometry)
    tokens = next(entry.value for entry in metadata if entry.key == "tokenizer.ggml.tokens")
    changed, was = 300, tokens[300]
    tokens[changed] = "qq"
    base, sidecar = tmp_path / "base.gguf", tmp_path / "otter.gguf"
    synthetic.write(base, metadata, synthetic.base_tensors(geometry, "F32"), 0)
    synthetic.write_sidecar(sidecar, base, InsertionConfig.uniform(geometry.base, 32, 1, 64), "F32", 0)
    with Otter(base, otter=sidecar, n_threads=1, n_ctx=64) as other:
        line = line_of(MismatchError, lambda: llm.create_completion("a", reward_model=other, guidance=ARGS()))
        assert f"token {changed} is b'qq' and {was.encode()!r}" in line


def demo() -> dict[str, Any]:
    """The demo model's files, as arguments."""
    from otter_gguf.demo import demo_files

    files = demo_files()
    return {"model_path": files.base, "otter": files.sidecar}


# ---- the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-w", "1", "--candidates", "-1"], "n_candidates is -1"),
        (["-w", "1", "--label", "kindness"], "no reward 'kindness'"),
        (["-g", "vocabulary:head=kindness"], "kindness"),
        (["-g", "nonsense"], "nonsense"),
        (["-p", "a" * 400], "the context 128"),
        (["-n", "-2"], "max_tokens is -2"),
        (["-r", ""], "stop is"),
        (["--temp", "-1"], "temperature is -1"),
        (["--top-k", "-1"], "top_k is -1"),
        (["-s", "-5"], "seed is -5"),
        (["-l", "320+1"], "logit_bias"),
        (["--grammar", "root ::= ["], "grammar"),
        (["--json-schema", "{"], "schema"),
        (["--context-shift", "--keep", "127"], "n_keep is 127"),
        (["-np", "4", "-w", "1"], "n_seq_max=10"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    files = chat_pair()
    common = ["-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "128", "-n", "2"]
    prompt = [] if "-p" in flags else ["-p", "a"]
    assert cli.main(["run", *common, *prompt, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("otter-gguf: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize("flags", [["-w", "nan"], ["-l", "nonsense"], ["-n", "many"], ["--temp", "hot"]])
def test_flags_that_are_no_numbers_are_wrong_usage(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "-m", str(pair().base), "-p", "a", *flags])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
