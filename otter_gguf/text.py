"""Bytes of tokens to text, piece by piece: UTF-8 across tokens, stop strings across pieces, text for terminals."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from ._numbers import shown
from .errors import ConfigError, OtterError

# C0 and C1 controls but newline and tab, and the characters that reorder text (a terminal obeys all of them); lone
# surrogates, which no encoding can write.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class TextStream:
    """Turns the bytes of successive tokens into text, held back where a stop string may have begun.

    Positions are characters since the start. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: str | Iterable[str] | None = None) -> None:
        self.stop = stop_strings(stop)
        self.stopped = False
        self.decoded = 0
        """Characters decoded so far."""
        self.released = 0
        """Characters given out so far."""
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes) -> str:
        """Take the bytes of one token; return the text that is certain now."""
        return self._take(self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """No more tokens: return the rest."""
        return self._take(self._decoder.decode(b"", final=True), final=True)

    def _take(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        self.decoded += len(text)
        self._held += text
        cut = first_match(self._held, self.stop)
        if cut >= 0:
            self.stopped = True
        else:
            cut = len(self._held) if final else len(self._held) - longest_beginning(self._held, self.stop)
        certain, self._held = self._held[:cut], self._held[cut:]
        self.released += cut
        return certain


def utf8(text: str, what: str, error: type[OtterError] = ConfigError) -> bytes:
    """The text as llama.cpp reads it. ``error``, which says ``what`` it is, if it has half a surrogate pair: Python
    puts those in the place of bytes that it could not read."""
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        found = f"U+{ord(text[problem.start]):04X}"
        raise error(
            f"{what} has {found} at character {problem.start}, half a surrogate pair, which is no text: it stands for "
            "bytes in another encoding than the one they were read with"
        ) from None


def stop_strings(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """The stop strings as a tuple; ``ConfigError`` if one is empty or no string."""
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise ConfigError(f"stop is {shown(stop)}, expected non-empty strings")
    for string in strings:
        utf8(string, "stop")
    return strings


def first_match(text: str, strings: Sequence[str]) -> int:
    """Where the first of the strings begins in the text, or -1."""
    return min((place for place in map(text.find, strings) if place >= 0), default=-1)


def longest_beginning(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of the text that is a proper beginning of one of the strings."""
    for length in range(min(len(text), max(map(len, strings), default=0)), 0, -1):
        end = text[-length:]
        if any(len(string) > length and string.startswith(end) for string in strings):
            return length
    return 0


def terminal_safe(text: str) -> str:
    """The text with control and reordering characters made visible, as in ``\\x1b``; newline and tab stay."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def shortened(text: str, limit: int = 200) -> str:
    """The text, or its beginning and how long it is: a name in a file may have megabytes."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def listed(items: Sequence[str], separator: str = "; ", limit: int = 40) -> str:
    """The items in one line, as many as anybody reads."""
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*map(shortened, items[:limit]), *more])
