"""A text as one HTML page, each token on the colour of its reward. Nothing is loaded from elsewhere, no script runs."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..text import terminal_safe
from ._colour import RGB, colour_at

_STOPS = 11  # of the legend's bar

_STYLE = """\
:root { color-scheme: light dark; --ink: #1d1f2b; --paper: #ffffff; --quiet: #6b7080; --line: #d9dce4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef4; --paper: #15171e; --quiet: #9aa0b0; --line: #343846; }
}
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.7 system-ui, sans-serif; }
h1 { font-size: 1.15rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem; }
.prompt { color: var(--quiet); }
.text span[title] { border-radius: .2rem; cursor: help; }
.text span[title]:hover { outline: 2px solid var(--ink); }
.legend { color: var(--quiet); font-size: .9rem; }
.bar { display: inline-block; width: 10rem; height: .8rem; border-radius: .2rem; margin: 0 .5rem;
  vertical-align: middle; }
"""


@dataclass(frozen=True)
class Candidate:
    """A token that could have been chosen, for a tooltip."""

    piece: str
    """Its text."""
    reward: float | None = None
    score: float | None = None
    """What the choice was made by."""
    chosen: bool = False


def heat_map(
    title: str,
    pieces: Sequence[str],
    rewards: Sequence[float],
    place: Callable[[float], float],
    *,
    prompt: str = "",
    label: str = "reward",
    ends: tuple[str, str] = ("low", "high"),
    candidates: Sequence[Sequence[Candidate]] = (),
) -> str:
    """The page.

    Args:
        title: Of the page; also its heading.
        pieces: Text of each token.
        rewards: Of the text up to and with each token; NaN leaves a token without colour.
        place: Where a reward lies, from 0 (low) to 1 (high), such as :meth:`RewardScale.place`.
        prompt: Text before the first token, without colour.
        label: What the rewards mean.
        ends: What the ends of the scale mean, in words.
        candidates: Of each token, for its tooltip; () for none.

    Raises:
        ValueError: ``pieces``, ``rewards`` and ``candidates`` are not as many.
    """
    details = candidates or [()] * len(pieces)
    text = "".join(
        _token(piece, reward, place, label, among)
        for piece, reward, among in zip(pieces, rewards, details, strict=True)
    )
    before = f'<span class="prompt">{_escaped(prompt)}</span>' if prompt else ""
    stops = ", ".join(_background(colour_at(index / (_STOPS - 1))) for index in range(_STOPS))
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
<p class="legend">{_escaped(label)}: {_escaped(ends[0])}<span class="bar"
style="background: linear-gradient(to right, {stops})"></span>{_escaped(ends[1])}</p>
<div class="text">{before}{text}</div>
</body>
</html>
"""


def _token(
    piece: str, reward: float, place: Callable[[float], float], label: str, candidates: Sequence[Candidate]
) -> str:
    """A token with its colour, and its figures as a tooltip."""
    lines = [f"{label} {reward:.4g}" if math.isfinite(reward) else f"{label} unknown"]
    lines += [_candidate(candidate) for candidate in candidates]
    style = f' style="background: {_background(colour_at(place(reward)))}"' if math.isfinite(reward) else ""
    return f'<span title="{_escaped(chr(10).join(lines))}"{style}>{_escaped(piece)}</span>'


def _candidate(candidate: Candidate) -> str:
    """One line: a mark at the chosen one, the token in quotes with its white space visible, its figures."""
    parts = ["▸" if candidate.chosen else " ", repr(candidate.piece)]
    if candidate.reward is not None:
        parts.append(f"reward {candidate.reward:.4g}")
    if candidate.score is not None:
        parts.append(f"score {candidate.score:.4g}")
    return " ".join(parts)


def _background(rgb: RGB) -> str:
    """A colour that lets dark ink on light paper, and light ink on dark paper, stand out."""
    return "rgb({} {} {} / .5)".format(*rgb)


def _escaped(text: str) -> str:
    """Text as HTML text or attribute; control characters made visible."""
    return html.escape(terminal_safe(text))
