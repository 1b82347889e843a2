"""Wrong arguments: one clear line each, and the object stays usable."""

from __future__ import annotations

import functools
import math
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
from tests.refusals import assert_names, refused
from tests.synthetic_models import TEXT, pair

NAN, INF = math.nan, math.inf
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_ctx=128) as llm:
        yield llm


def line_of(error: type[OtterError], call: Callable[[], object]) -> str:
    """The message of what must be raised, which is one line that can be read."""
    with refused(error) as raised:
        call()
    line = str(raised.value)
    assert 15 < len(line) < 400
    return line


@pytest.fixture(autouse=True)
def _stays_usable(llm: Otter) -> Iterator[None]:
    yield
    assert len(tokens_of(llm.create_completion("a", max_tokens=2, temperature=0))) == 2


# ---- prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ([], ("empty",)),
        ([[65], []], ("empty",)),
        (3, (3,)),
        (None, (None,)),
        (1.5, (1.5,)),
        (b"bytes", (b"bytes",)),
        ([65, "a"], ("'a'", 319)),
        (["a", 65.0], (65.0,)),
        (["a", None], (None,)),
        ([1.0, 2.0], (1.0,)),
        ([[65, [66]]], ([66], 319)),
        ([True], (True, 319)),
        ([-1], (-1, 319)),
        ([320], (320, 319)),
        ([2**40], (2**40, 319)),
        (np.asarray([0.5]), (0.5,)),
    ],
)
def test_prompts_that_are_none(llm: Otter, prompt: Any, names: tuple[object, ...]) -> None:
    assert_names(line_of(ConfigError, lambda: llm.create_completion(prompt)), "prompt", *names)
    if not isinstance(prompt, list) or not isinstance(prompt[0] if prompt else 0, (str, list)):
        line_of(ConfigError, lambda: llm.generate(prompt))


def test_an_empty_text_is_the_begin_of_text_token(llm: Otter) -> None:
    """It is no empty prompt: this model begins every text with it."""
    assert llm.tokenize("") == [llm.model.bos_token]
    assert tokens_of(llm.create_completion("", max_tokens=2, temperature=0))


@pytest.mark.parametrize("method", ["create_completion", "generate", "score"])
def test_a_prompt_over_the_context(llm: Otter, method: str) -> None:
    line = line_of(ContextFullError, lambda: getattr(llm, method)([65] * 129))
    assert_names(line, 129, 128, "n_ctx")


def test_a_conversation_over_the_context(llm: Otter) -> None:
    messages = [{"role": "user", "content": TEXT * 4}]
    assert_names(line_of(ContextFullError, lambda: llm.create_chat_completion(messages)), 128, "n_ctx")


@pytest.mark.parametrize("messages", [[], "text", [{"role": "user"}], None, 3, [3]])
def test_messages_that_are_none(llm: Otter, messages: Any) -> None:
    assert_names(line_of(ConfigError, lambda: llm.create_chat_completion(messages)), "messages")


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
    assert_names(line_of(ConfigError, lambda: llm.create_completion("a", **{name: value})), name)
    if name != "logprobs":
        assert_names(line_of(ConfigError, lambda: llm.create_chat_completion(MESSAGES, **{name: value})), name)


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
    ("name", "value"),
    [
        ("n_candidates", -1),
        ("n_candidates", 0),
        ("n_candidates", 2.5),
        ("n_candidates", "ten"),
        ("weight", NAN),
        ("weight", INF),
        ("weight", "1"),
        ("weight", None),
    ],
)
def test_policies_of_nonsense(kind: Any, name: str, value: Any) -> None:
    assert_names(line_of(ConfigError, lambda: kind(**{name: value})), kind.__name__, name, repr(value))


@pytest.mark.parametrize(
    ("guidance", "names"),
    [
        (ARGS(label="kindness"), ("'kindness'", "reward")),
        (Vocabulary(head="kindness"), ("vocabulary head", "'kindness'", "next")),
        (Gated(ARGS(label="kindness"), entropy=1.0), ("'kindness'", "reward")),
        (BestOfN(2, label="kindness"), ("'kindness'", "reward")),
        (ARGS(n_candidates=17), ("n_seq_max=17", "-np", 16)),
        (BestOfN(17), ("n_seq_max=17", "-np", 16)),
    ],
)
def test_guidance_that_the_model_does_not_have(llm: Otter, guidance: Any, names: tuple[object, ...]) -> None:
    for call in (llm.create_completion, functools.partial(llm.create_completion, stream=True)):
        line = line_of(ConfigError, lambda call=call: call("a", guidance=guidance))  # type: ignore[misc]
        assert_names(line, *names)


def test_guidance_of_a_plain_model() -> None:
    with Otter(pair().base, n_ctx=64, n_threads=1) as plain:
        assert_names(line_of(ConfigError, lambda: plain.create_completion("a", guidance=ARGS())), "label", "no reward")
        line = line_of(ConfigError, lambda: plain.create_completion("a", guidance=Vocabulary()))
        assert_names(line, "vocabulary head", "none", "--vocabulary-rank")
        assert_names(line_of(ConfigError, lambda: plain.score("a")), pair().base, "otter=", "--otter")


def test_reward_models_that_cannot_judge(llm: Otter) -> None:
    options: dict[str, Any] = {"guidance": ARGS()}
    line = line_of(ConfigError, lambda: llm.create_completion("a", reward_model=llm, **options))
    assert_names(line, "reward_model", "itself")
    with Otter(pair().base, n_ctx=64, n_threads=1) as plain:
        line = line_of(ConfigError, lambda: llm.create_completion("a", reward_model=plain, **options))
        assert_names(line, "label", "no reward")


def test_a_reward_model_of_another_vocabulary(llm: Otter) -> None:
    with Otter(n_threads=1, n_ctx=64, **demo()) as other:
        line = line_of(MismatchError, lambda: llm.create_completion("a", reward_model=other, guidance=ARGS()))
        assert_names(line, demo()["model_path"], chat_pair().base, 1536, 320)


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
        assert_names(line, base, chat_pair().base, f"token {changed}", b"qq", was.encode())


def demo() -> dict[str, Any]:
    """The demo model's files, as arguments."""
    from otter_gguf.demo import demo_files

    files = demo_files()
    return {"model_path": files.base, "otter": files.sidecar}


# ---- the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["-w", "1", "--candidates", "-1"], ("n_candidates", -1)),
        (["-w", "1", "--label", "kindness"], ("'kindness'", "reward")),
        (["-g", "vocabulary:head=kindness"], ("vocabulary head", "'kindness'", "next")),
        (["-g", "nonsense"], ("'nonsense'", "best_of_n")),
        (["-p", "a" * 400], (401, 128, "-c")),
        (["-n", "-2"], ("max_tokens", -2)),
        (["-r", ""], ("stop", [""])),
        (["--temp", "-1"], ("temperature", -1.0)),
        (["--top-k", "-1"], ("top_k", -1)),
        (["-s", "-5"], ("seed", -5)),
        (["-l", "320+1"], ("logit_bias", 320, 319)),
        (["--grammar", "root ::= ["], ("grammar",)),
        (["--json-schema", "{"], ("schema", "column 2")),
        (["--context-shift", "--keep", "127"], ("n_keep", 127, 126)),
        (["-np", "4", "-w", "1"], ("n_seq_max=10", "-np", 4)),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], names: tuple[object, ...]
) -> None:
    files = chat_pair()
    common = ["-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "128", "-n", "2"]
    prompt = [] if "-p" in flags else ["-p", "a"]
    assert cli.main(["run", *common, *prompt, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("otter-gguf: ")
    assert captured.err.count("\n") == 1
    assert_names(captured.err, *names)


@pytest.mark.parametrize("flags", [["-w", "nan"], ["-l", "nonsense"], ["-n", "many"], ["--temp", "hot"]])
def test_flags_that_are_no_numbers_are_wrong_usage(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "-m", str(pair().base), "-p", "a", *flags])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
