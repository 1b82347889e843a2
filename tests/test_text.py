"""Incremental decoding, stop strings, text for terminals."""

from __future__ import annotations

import pytest

from otter_gguf.errors import ConfigError
from otter_gguf.text import TextStream, first_match, listed, longest_beginning, shortened, terminal_safe
from tests.refusals import refused


def stream(data: bytes, size: int, stop: str | list[str] | None = None) -> tuple[list[str], TextStream]:
    """Feed bytes in parts of a size; what came out of each, and the stream."""
    text = TextStream(stop)
    parts = [text.push(data[i : i + size]) for i in range(0, len(data), size)]
    return [*parts, text.finish()], text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_utf8_survives_any_cut(size: int) -> None:
    text = "naïve 水獺 🦦 end"
    assert "".join(stream(text.encode(), size)[0]) == text


def test_a_character_appears_only_when_it_is_whole() -> None:
    parts, _ = stream("🦦".encode(), 1)
    assert parts == ["", "", "", "🦦", ""]


@pytest.mark.parametrize("data", [b"a\xffb", b"a\xf0\x9f", b"\x80"])
def test_wrong_bytes_become_replacement_characters(data: bytes) -> None:
    assert "".join(stream(data, 1)[0]) == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("stop", ["STOP", ["zzz", "STOP", "OP"], "S"])
def test_stop_string_is_cut_wherever_tokens_end(size: int, stop: str | list[str]) -> None:
    parts, text = stream(b"before STOP after", size, stop)
    assert text.stopped
    assert "".join(parts) == "before "


def test_without_the_stop_string_nothing_is_lost() -> None:
    parts, text = stream(b"an STO almost STO", 1, "STOP")
    assert not text.stopped
    assert "".join(parts) == "an STO almost STO"


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    text = TextStream("\n\nHuman:")
    assert text.push(b"fine\n") == "fine"
    assert text.push(b"\nHum") == ""
    assert text.push(b"bug") == "\n\nHumbug"


def test_multibyte_stop_string_across_tokens() -> None:
    parts, text = stream("é水é".encode(), 1, "水")
    assert text.stopped
    assert "".join(parts) == "é"


def test_nothing_comes_after_a_stop() -> None:
    text = TextStream("x")
    assert text.push(b"axb") == "a"
    assert text.push(b"more") == ""
    assert text.finish() == ""


def test_counts_characters() -> None:
    text = TextStream("END")
    text.push("水E".encode())
    assert (text.decoded, text.released) == (2, 1)


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1]])
def test_empty_stop_strings_are_refused(stop: object) -> None:
    with refused(ConfigError, "stop", repr(stop)):
        TextStream(stop)  # type: ignore[arg-type]


def test_first_match_and_longest_beginning() -> None:
    assert first_match("abcab", ["ca", "b"]) == 1
    assert first_match("abc", ["x"]) == -1
    assert longest_beginning("xxab", ["abc", "b!"]) == 2
    assert longest_beginning("abc", ["abc"]) == 0
    assert longest_beginning("aba", ["abab"]) == 3


@pytest.mark.parametrize("text", ["\x1b[31m", "\x07", "\x9b31m", "a\rb", "\u202eabc", "\u2066", "\ud800", "\x00"])
def test_terminal_safe_shows_what_a_terminal_would_obey(text: str) -> None:
    safe = terminal_safe(text)
    assert "\\" in safe
    assert all(ch == "\n" or ch.isprintable() for ch in safe)


def test_terminal_safe_leaves_text_alone() -> None:
    text = "plain, naïve 水獺 🦦\n\tline"
    assert terminal_safe(text) == text


def test_long_texts_and_lists_are_told_in_short() -> None:
    assert shortened("otter", 5) == "otter"
    assert shortened("otters", 5) == "otter... (6 characters)"
    assert listed(["a", "b"], ", ", 2) == "a, b"
    assert listed(["a", "b", "c", "d"], ", ", 2) == "a, b, and 2 more"
    assert len(listed(["x" * 10_000_000])) < 300
