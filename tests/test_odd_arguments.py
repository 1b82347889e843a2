"""Texts that no encoding can write, bytes in the place of text, numbers that no float holds: one clear line each."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, Contrast, Ensemble, FileError, Otter, Threshold
from otter_gguf._waiting import readable
from otter_gguf.chat import ChatTemplate
from otter_gguf.cli import main as cli
from otter_gguf.config import HeadConfig
from otter_gguf.errors import ConfigError
from otter_gguf.options import LoadOptions, SamplingOptions
from otter_gguf.text import TextStream, utf8
from tests.completions import chat_pair, choice_of, tokens_of
from tests.guidance.reference import open_exact
from tests.refusals import assert_names, refused
from tests.tokenizer_toys import bpe_base

HALF = "a\ud800b"
"""Half a surrogate pair, as ``os.fsdecode`` and JSON make them."""
NAME = "U+D800"
HUGE = 10**400
LONG = 10**5000
"""Python does not even write it."""
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(chat_pair(), n_ctx=128) as llm:
        yield llm


# ---- text ------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str, Callable[[Otter, str], Any]]] = {
    "tokenize": ("text", lambda llm, text: llm.tokenize(text)),
    "prompt": ("prompt", lambda llm, text: llm.create_completion(text, max_tokens=1)),
    "prompts": ("prompt", lambda llm, text: llm.create_completion(["a", text], max_tokens=1)),
    "generate": ("prompt", lambda llm, text: llm.generate(text)),  # type: ignore[arg-type]
    "score": ("prompt", lambda llm, text: llm.score(text)),
    "response": ("response", lambda llm, text: llm.score("a", text)),
    "content": (
        "messages[1]['content']",
        lambda llm, text: llm.tokenize_chat([*MESSAGES, {"role": "user", "content": text}]),
    ),
    "role": ("messages[0]['role']", lambda llm, text: llm.tokenize_chat([{"role": text, "content": "a"}])),
    "other entry": ("messages", lambda llm, text: llm.tokenize_chat([{**MESSAGES[0], "name": text}])),
    "stop": ("stop", lambda llm, text: llm.create_completion("a", stop=["b", text])),
    "stop of a chat": ("stop", lambda llm, text: llm.create_chat_completion(MESSAGES, stop=text)),
    "grammar": ("grammar", lambda llm, text: llm.create_completion("a", grammar=f'root ::= "{text}"', max_tokens=1)),
    "json_schema": ("json_schema", lambda llm, text: llm.create_completion("a", json_schema={"const": text})),
    "schema as text": (
        "json_schema",
        lambda llm, text: llm.create_completion("a", json_schema=json.dumps({"const": text}, ensure_ascii=False)),
    ),
    "response_format": (
        "json_schema",
        lambda llm, text: llm.create_chat_completion(
            MESSAGES, response_format={"type": "json_object", "schema": {"const": text}}, max_tokens=1
        ),
    ),
    "guidance": ("text", lambda llm, text: llm.create_completion("a", guidance=Contrast(prompt=text))),
    "message": ("text", lambda llm, text: llm.create_completion("a", guidance=Threshold(0.0, message=text))),
}


@pytest.mark.parametrize("what", TEXTS)
def test_half_a_surrogate_pair_is_refused_by_name(llm: Otter, what: str) -> None:
    name, call = TEXTS[what]
    with refused(ConfigError, name, NAME):
        call(llm, HALF)
    call(llm, "𝄞")  # a whole one is a character


def test_keys_of_a_bias_that_are_no_tokens(llm: Otter) -> None:
    for key in (HALF, "a", "9" * 5000, float("inf"), float("nan"), 1.5, None, np.complex128(1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with refused(ConfigError, "logit_bias"):
                llm.create_completion("a", logit_bias={key: 1.0})  # type: ignore[arg-type]
    biased = llm.create_completion("a", logit_bias={"97": 1000.0}, temperature=0, max_tokens=1)
    assert tokens_of(biased) == [97]
    assert tokens_of(llm.create_completion("a", logit_bias={np.int64(97): 1000}, temperature=0, max_tokens=1)) == [97]


def test_text_of_a_template_that_is_none() -> None:
    """The file is wrong, not the messages."""
    template = ChatTemplate("{{ '\\ud800' }}", path="model.gguf", bos_token="", eos_token="")
    with refused(FileError, "model.gguf", "template", NAME):
        template.render(MESSAGES)
    template.source = "{{ '\\U0001d11e' }}"
    assert template.render(MESSAGES) == "𝄞"


def test_one_place_says_where() -> None:
    assert utf8("ü𝄞", "x") == "ü𝄞".encode()
    with refused(ConfigError, "the x", "U+DCFF", 2):
        utf8("ab\udcff", "the x")
    with refused(ConfigError, "stop", NAME):
        TextStream([HALF])


def test_bytes_that_llama_cpp_cannot_split(tmp_path: Path) -> None:
    """Behind the last code point: its own exception was no typed one."""
    with Otter(bpe_base(tmp_path / "bpe.gguf"), n_ctx=64, n_threads=1) as llm:
        with refused(ConfigError, "text"):
            llm.tokenize(b"\xf4\x90\x80\x80")
        assert llm.tokenize("\U0010ffff".encode())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_no_prompt(llm: Otter, kind: Callable[[bytes], Any]) -> None:
    """Their numbers are no tokens. As a text for ``tokenize`` they are what they say."""
    prompt = kind(b"ab")
    for call in (llm.create_completion, llm.generate, llm.score, lambda prompt: llm.create_completion([prompt])):
        with refused(ConfigError, "prompt"):
            call(prompt)
    assert llm.tokenize(prompt) == llm.tokenize("ab")
    tokens = llm.tokenize("ab")
    array: Any = np.asarray(tokens)  # numbers as they are
    assert choice_of(llm.create_completion(array, max_tokens=3, temperature=0)) == choice_of(
        llm.create_completion(tokens, max_tokens=3, temperature=0)
    )


# ---- numbers ---------------------------------------------------------------------------------------------------

COMPLEX = [1j, np.complex64(1), np.complex128(1 + 2j)]


@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, LONG, *COMPLEX, "1", None, True], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"]
)
def test_sampling_by_numbers_that_are_none(name: str, value: Any) -> None:
    with refused(ConfigError, name):
        SamplingOptions(**{name: value})


def test_sampling_by_numbers_of_every_kind(llm: Otter) -> None:
    numbers: list[Any] = [1, 0.5, np.float32(0.5), np.float64(0.5), np.int64(1), Fraction(1, 2)]
    for number in numbers:
        options: dict[str, Any] = {"temperature": number, "top_p": number, "min_p": number, "repeat_penalty": number}
        assert tokens_of(llm.create_completion("a", max_tokens=2, frequency_penalty=number, **options))


@pytest.mark.parametrize("value", [HUGE, LONG, *COMPLEX, None, "x", [1]], ids=lambda value: type(value).__name__)
def test_other_numbers_that_are_none(llm: Otter, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, where it drops an imaginary part
        for what, call in (
            ("logit_bias", lambda: llm.create_completion("a", logit_bias={97: value})),
            ("tensor_split", lambda: LoadOptions(tensor_split=(1, value))),
            ("scale", lambda: HeadConfig(scale=(value,))),
            ("shift", lambda: HeadConfig(shift=(value,))),
            ("weight", lambda: ARGS(value)),
            ("limit", lambda: Threshold(value)),
            ("weights", lambda: Ensemble({"reward": value})),
            ("caution", lambda: Ensemble({"reward": 1.0}, "cautious", value)),
            ("processor", lambda: llm.create_completion("a", logits_processor=lambda t, x: [value] * len(x))),
        ):
            with refused(ConfigError, what):
                call()


def test_messages_of_a_threshold_that_are_no_tokens() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in ([1j], [1.5], np.asarray([1 + 2j]), [None], 1.5):
            with refused(ConfigError, "message"):
                Threshold(0.0, message=message)  # type: ignore[arg-type]
    assert Threshold(0.0, message=np.asarray([1, 2])).message == (1, 2)  # type: ignore[arg-type]
    assert Threshold(0.0, message=[]).message == ()


def test_counts_beyond_what_llama_cpp_counts() -> None:
    for name in (
        "n_ctx",
        "n_batch",
        "n_ubatch",
        "n_threads",
        "n_threads_batch",
        "n_gpu_layers",
        "main_gpu",
        "n_seq_max",
    ):
        value: Any
        for value in (2**31, 10**20, LONG):
            with refused(ConfigError, name, 2**31 - 1):
                LoadOptions(**dict.fromkeys([name], value))
    assert LoadOptions(n_gpu_layers=2**31 - 1, main_gpu=2**31 - 1).main_gpu == 2**31 - 1


@pytest.mark.parametrize("flags", [("-c", "9" * 20), ("-ngl", "99999999999"), ("-mg", "99999999999")])
def test_the_command_line_says_so_in_a_line(flags: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    files = chat_pair()
    command = ["run", "-m", str(files.base), "-p", "a", "-t", "1", *flags]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert_names(line, flags[1])


def test_the_command_line_refuses_half_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    files = chat_pair()
    for flags in (("-p", "\udcff"), ("-p", "a", "--grammar", 'root ::= "\udcff"')):
        assert cli.main(["run", "-m", str(files.base), "-t", "1", "-c", "64", *flags]) == 2
        assert_names(capsys.readouterr().err, "U+DCFF")


def test_a_configuration_with_a_number_of_401_digits() -> None:
    fields = json.loads('{"scale": [1' + "0" * 400 + "]}")
    with refused(ConfigError, "'reward'", "scale"):
        HeadConfig(**fields)


# ---- many files ------------------------------------------------------------------------------------------------

MANY = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
from otter_gguf import open_model
with open_model(sys.argv[1], n_ctx=128, n_threads=1, isolate=sys.argv[2] == "isolated") as llm:
    answer = llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=2, temperature=0)
    print(answer["choices"][0]["message"]["role"])
"""


@pytest.mark.parametrize("where", ["here", "isolated"])
def test_chat_in_a_process_with_more_than_1024_files(where: str) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("the system allows too few files")
    command = [sys.executable, "-c", MANY, str(chat_pair().base), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "assistant\n"), done.stderr


def test_waiting_for_a_file() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as file:
        assert not readable(file, 0.01)
        os.write(writing, b"a")
        assert readable(file, 10)
        assert file.read(1) == b"a"
        os.close(writing)
        assert readable(file, 10)  # its end
