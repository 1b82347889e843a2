"""Texts that llama.cpp's tokenizer has no stack for, no time, or no characters: results, or a line."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_gguf import _native
from otter_gguf.errors import ConfigError
from otter_gguf.gguf.encoding import KeyValue
from tests.native.children import run_child
from tests.native.test_interrupt import StopError
from tests.refusals import refused
from tests.tokenizer_toys import MERGES, bpe_base, sentencepiece_base

# Those that llama.cpp cuts with std::regex, each by other patterns; the least text that ended a small thread had 1,617.
RECURSIVE = ("bloom", "deepseek-coder", "deepseek-llm", "default", "exaone-moe", "falcon", "gpt-4o", "tekken", "youtu")
MAX_RUN = 2**17
MAX_SQUARED = 2**12


def open_vocabulary(folder: Path, pre: str) -> _native.Model:
    return _native.Model(str(bpe(folder, pre)), vocab_only=True)


def bpe(folder: Path, pre: str) -> Path:
    return bpe_base(folder / f"{pre}.gguf", MERGES, KeyValue("tokenizer.ggml.pre", "str", pre))


@pytest.fixture
def alarm() -> Iterator[None]:
    """A signal in 0.2 s, whose handler raises."""

    def handler(*_: object) -> None:
        raise StopError

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, previous)


def test_long_runs_of_one_kind_fit_a_small_stack(tmp_path: Path) -> None:
    files = [bpe(tmp_path, pre) for pre in RECURSIVE]
    code = """
    from otter_gguf import _native

    def tokenize():
        for path in sys.argv[1:]:
            model = _native.Model(path, vocab_only=True)
            for kind in ("a", "A", "aB", " ", "1", "!", "\\n", "é", "中"):
                text = (kind * 4000).encode()
                tokens = model.tokenize(text, add_special=False)
                assert model.detokenize(tokens) == text, (path, kind)
            print(path)

    in_small_thread(tokenize)
    """
    assert run_child(code, *files).split() == [str(path) for path in files]


@pytest.mark.parametrize("pre", ["falcon", "gpt-4o", "default"])
def test_a_stack_of_its_own_changes_no_token(pre: str, tmp_path: Path) -> None:
    """The same words stand alone, in short texts, and in a text with a long word, which takes another way."""
    model = open_vocabulary(tmp_path, pre)
    words = [b"the otter", b"swing 123 'saltand", b"\n\n  12345!? ", "é中 x".encode(), b"!" * 400]
    lines = [model.tokenize(b"x\n" + word + b"x\n", add_special=False) for word in words]
    whole = model.tokenize(b"".join(b"x\n" + word + b"x\n" for word in words), add_special=False)
    assert whole == [token for line in lines for token in line]


def test_the_longest_run(tmp_path: Path) -> None:
    model = open_vocabulary(tmp_path, "falcon")
    assert len(model.tokenize(b"!" * MAX_RUN, add_special=False)) == MAX_RUN
    with refused(ConfigError, MAX_RUN + 1, MAX_RUN):
        model.tokenize(b"!" * (MAX_RUN + 1))
    prose = b"the otter swings, " * 20_000
    assert model.detokenize(model.tokenize(prose, add_special=False)) == prose


def test_tokenizers_without_recursion_take_any_run(tmp_path: Path) -> None:
    text = b"!" * (2 * MAX_RUN)
    assert len(open_vocabulary(tmp_path, "gpt-2").tokenize(text, add_special=False)) == len(text)


@pytest.mark.parametrize(("pre", "text"), [("deepseek-llm", " {}中"), ("superbpe", "x1{}")])
def test_runs_that_take_the_square_of_their_length(pre: str, text: str, tmp_path: Path) -> None:
    model = open_vocabulary(tmp_path, pre)
    kind = text[0] if text[0] == " " else "1"
    fits, beyond = (text.format(kind * count) for count in (MAX_SQUARED - 2, MAX_SQUARED + 1))
    assert model.detokenize(model.tokenize(fits.encode(), add_special=False)) == fits.encode()
    with refused(ConfigError, MAX_SQUARED):
        model.tokenize(beyond.encode())


@pytest.mark.parametrize("beyond", [b"\xf4\x90\x80\x80", b"the \xf7\xbf\xbf\xbf otter"])
def test_a_character_beyond_unicode_is_a_config_error(beyond: bytes, tmp_path: Path) -> None:
    model = open_vocabulary(tmp_path, "gpt-2")
    with refused(ConfigError, "UTF-8", "U+10FFFF"):
        model.tokenize(beyond)
    last = b"\xf4\x8f\xbf\xbf"
    assert model.detokenize(model.tokenize(last, add_special=False)) == last


@pytest.mark.parametrize("text", ["<s>", "é"])
def test_a_signal_stops_a_text_that_takes_long(text: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Special tokens, and characters that no token spells, cost llama.cpp the square of their number."""
    model = _native.Model(str(sentencepiece_base(tmp_path / "base.gguf")), vocab_only=True)
    request.getfixturevalue("alarm")
    begin = time.monotonic()
    with pytest.raises(StopError):
        model.tokenize((text * 400_000).encode(), parse_special=True)
    assert time.monotonic() - begin < 2.0
    assert model.tokenize(b"the otter", parse_special=True)


@pytest.mark.slow
def test_a_text_that_takes_long_ends_by_itself(tmp_path: Path) -> None:
    model = _native.Model(str(sentencepiece_base(tmp_path / "base.gguf")), vocab_only=True)
    text = b"<s>" * 150_000
    begin = time.process_time()
    with refused(ConfigError, len(text)):
        model.tokenize(text, parse_special=True)
    assert time.process_time() - begin < 15.0
