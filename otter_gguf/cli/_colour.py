"""Text on a terminal with each token in the colour of its reward.

Low is vermilion, high is bluish green, the middle grey: apart for readers with any kind of colour vision.
"""

from __future__ import annotations

import math
import os
import sys
from typing import TextIO

from ..completion import Rewards
from ..config import HeadConfig, InsertionConfig
from ..text import terminal_safe

RGB = tuple[int, int, int]

LOW: RGB = (224, 90, 20)
MIDDLE: RGB = (170, 170, 170)
HIGH: RGB = (20, 175, 130)
RESET = "\x1b[0m"
DIM = "\x1b[2m"


def wants_colour(choice: str, stream: TextIO) -> bool:
    """``--color auto|always|never``; auto is a terminal that is not told otherwise by ``NO_COLOR``."""
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always"


def colour_at(place: float) -> RGB:
    """Colour of a place from 0 (low) to 1 (high)."""
    low, high = (LOW, MIDDLE) if place < 0.5 else (MIDDLE, HIGH)
    share = 2 * place if place < 0.5 else 2 * place - 1
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def foreground(rgb: RGB) -> str:
    """The escape sequence of a text colour: 24 bit where the terminal says so, else of the 6x6x6 cube."""
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "\x1b[38;2;{};{};{}m".format(*rgb)
    red, green, blue = (round(part / 255 * 5) for part in rgb)
    return f"\x1b[38;5;{16 + 36 * red + 6 * green + blue}m"


class RewardScale:
    """Where a reward lies between low (0) and high (1).

    A bounded head has its own range. The reward of an unbounded one means something only against another (a
    Bradley-Terry reward that is higher by 1 is e times as likely the better), so it is compared with the prompt's.
    """

    def __init__(self, insertion: InsertionConfig, column: int, prompt_reward: float) -> None:
        head, index = head_of_column(insertion, column)
        self.activation = head.activation
        self.scale, self.shift = head.scale[index], head.shift[index]
        self.origin = prompt_reward

    def place(self, reward: float) -> float:
        """From 0 to 1."""
        if self.activation == "none":
            return 0.5 + 0.5 * math.tanh((reward - self.origin) / 2)
        raw = (reward - self.shift) / self.scale if self.scale else 0.0
        place = raw if self.activation == "sigmoid" else (raw + 1) / 2
        return min(max(place, 0.0), 1.0)

    @property
    def ends(self) -> tuple[str, str]:
        """What the ends of the scale mean, in words."""
        if self.activation == "none":
            return f"{self.origin - 4:.1f}", f"{self.origin + 4:.1f}"
        low = -1 if self.activation == "tanh" else 0
        return f"{self.shift + self.scale * low:.2g}", f"{self.shift + self.scale:.2g}"

    def legend(self) -> str:
        """One line that explains the colours."""
        low, high = self.ends
        bar = "".join(f"{foreground(colour_at(i / 10))}▆" for i in range(11))
        return f"{low} {bar}{RESET} {high}"


def head_of_column(insertion: InsertionConfig, column: int) -> tuple[HeadConfig, int]:
    """The head that a reward's column belongs to, and the label's index in it."""
    for head in insertion.value_heads:
        if column < len(head.labels):
            return head, column
        column -= len(head.labels)
    raise IndexError(column)


class Painter:
    """Writes a streamed text, token by token, in the colours of one reward."""

    def __init__(self, out: TextIO, scale: RewardScale | None, column: int) -> None:
        self.out = out
        self.scale = scale
        self.column = column
        self.written = 0
        self.colour = ""

    def write(self, text: str, rewards: Rewards | None) -> None:
        """One chunk: its text and the tokens that begin in it."""
        if self.scale is None or rewards is None:
            self.out.write(terminal_safe(text))
        else:
            self.out.write(self._painted(text, rewards, self.scale))
        self.written += len(text)
        self.out.flush()

    def _painted(self, text: str, rewards: Rewards, scale: RewardScale) -> str:
        """The end of a token begun before keeps that token's colour."""
        parts = []
        begin = 0
        for offset, row in zip(rewards["text_offset"], rewards["token_rewards"], strict=True):
            place = min(max(offset - self.written, begin), len(text))
            parts.append(self._coloured(text[begin:place]))
            begin = place
            self.colour = foreground(colour_at(scale.place(row[self.column])))
        parts.append(self._coloured(text[begin:]))
        return "".join(parts)

    def _coloured(self, text: str) -> str:
        return f"{self.colour}{terminal_safe(text)}{RESET}" if text else ""


def dim(text: str, colour: bool) -> str:
    """Text that stands back."""
    return f"{DIM}{terminal_safe(text)}{RESET}" if colour else terminal_safe(text)


def note(text: str) -> None:
    """A line for people on stderr."""
    print(text, file=sys.stderr, flush=True)
