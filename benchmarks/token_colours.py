"""Draw the README's picture: stories of the demo model, plain and guided, each token on the colour of its reward.

    python benchmarks/token_colours.py                 # writes docs/images/coloured-tokens.svg, a second on one core

The colours are those of ``otter-gguf run``. The picture brings its own background, so that it reads on light and on
dark pages. Prompts and seed were chosen for stories that read well; what guidance does to 200 of them stands in
docs/demo.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from otter_gguf import ARGS, Otter, Policy
from otter_gguf.cli._colour import RewardScale, colour_at
from otter_gguf.cli._transcript import pieces_of
from otter_gguf.demo import demo_files
from otter_gguf.gguf.atomic import atomic_path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "coloured-tokens.svg"
PROMPTS = (
    "Long ago, a small mouse called Max lived in the forest. It was a windy day, and Max was at the playroom. "
    "Mia the fox had built a tower, but it fell down.",
    "Once there was a small boy called Luke. On Monday, Luke went to the sandbox. "
    'Clara looked at his red ball and asked, "May I play with it?"',
)
WEIGHT = 2.0
WAYS: dict[str, Policy | None] = {"plain": None, "guided": ARGS(WEIGHT)}
MAX_TOKENS, TEMPERATURE, SEED = 64, 0.8, 2

COLUMNS = 84  # characters of a line
CHARACTER, LINE, BOX = 8.4, 26, 21  # width of a character; height of a line and of a token's box
FONT_SIZE, MONOSPACED = 14, "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
LEFT, TOP, GAP = 92, 62, 14  # of the text; between two passages
STOPS = 11  # of the legend's bar, as on the page of `otter-gguf run --html`


@dataclass(frozen=True)
class Passage:
    """Text of one kind: a prompt, whose tokens have no colour, or a continuation."""

    name: str
    pieces: tuple[str, ...]
    rewards: tuple[float | None, ...]
    """The reward after each piece; None = without colour."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def passages(llm: Otter, prompts: Sequence[str] = PROMPTS) -> Iterator[Passage]:
    """Each prompt, followed by its continuations."""
    for prompt in prompts:
        words = prompt.split(" ")
        yield Passage("prompt", (words[0], *(f" {word}" for word in words[1:])), (None,) * len(words))
        for name, policy in WAYS.items():
            out = llm.create_completion(
                prompt, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=SEED, guidance=policy
            )
            rewards = out["choices"][0]["rewards"]
            assert rewards is not None
            yield Passage(
                name, tuple(pieces_of(llm, rewards["tokens"])), tuple(row[0] for row in rewards["token_rewards"])
            )


def words(pieces: Sequence[str]) -> Iterator[list[int]]:
    """Indices of the pieces of each word: a word begins with a space, and is not broken over lines."""
    word: list[int] = []
    for index, piece in enumerate(pieces):
        if piece[:1].isspace() and word:
            yield word
            word = []
        word.append(index)
    if word:
        yield word


def places(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Line and column of each piece. The space before the first word of a line hangs out to its left."""
    found: list[tuple[int, int]] = []
    line, column = 0, -1 if pieces and pieces[0].startswith(" ") else 0
    for word in words(pieces):
        if column > 0 and column + sum(len(pieces[index]) for index in word) > COLUMNS:
            line, column = line + 1, -1
        for index in word:
            found.append((line, column))
            column += len(pieces[index])
    return found


class Drawing:
    """The elements of the picture, from top to bottom."""

    def __init__(self, scale: RewardScale) -> None:
        self.scale = scale
        self.elements: list[str] = []
        self.y = TOP

    def add(self, passage: Passage) -> None:
        """A passage below what is there."""
        tops = places(passage.pieces)
        self._text("name", 20, self.y, passage.name)
        for piece, reward, (line, column) in zip(passage.pieces, passage.rewards, tops, strict=True):
            if piece:
                self._token(piece, reward, self.y + line * LINE, column)
        self.y += (tops[-1][0] + 1 if tops else 1) * LINE + GAP

    def _token(self, piece: str, reward: float | None, y: int, column: int) -> None:
        if reward is not None:
            first = max(column, 0)  # no box under a space that hangs out
            width = (column + len(piece) - first) * CHARACTER - 1
            colour = rgb(self.scale.place(reward))
            self.elements.append(
                f'<rect x="{LEFT + first * CHARACTER:g}" y="{y - BOX + 6}" width="{width:g}" height="{BOX}" rx="3" '
                f'fill="{colour}"/>'
            )
        word = piece.lstrip()  # space by position: not every viewer keeps that of text
        if word:
            x = LEFT + (column + len(piece) - len(word)) * CHARACTER
            self._text("prompt" if reward is None else "token", x, y, word, len(word))

    def _text(self, kind: str, x: float, y: int, text: str, characters: int = 0) -> None:
        # Fonts differ in their widths: each piece is fitted into the characters that it has.
        fit = f' textLength="{characters * CHARACTER:g}" lengthAdjust="spacingAndGlyphs"' if characters else ""
        self.elements.append(f'<text class="{kind}" x="{x:g}" y="{y}"{fit}>{escape(text)}</text>')

    def legend(self, ends: tuple[str, str]) -> None:
        """What the colours mean, in the first line."""
        self._text("name", 20, 30, f"The demo model, guided by its own rewards (ARGS, weight {WEIGHT:g}).")
        bar, y = 560, 30
        self._text("name", bar - 80, y, ends[0])
        for index in range(STOPS):
            colour = rgb(index / (STOPS - 1))
            self.elements.append(f'<rect x="{bar + index * 12}" y="{y - 12}" width="12" height="14" fill="{colour}"/>')
        self._text("name", bar + STOPS * 12 + 10, y, ends[1])


def rgb(place: float) -> str:
    """The fill of a place from 0 (low) to 1 (high)."""
    return "rgb({},{},{})".format(*colour_at(place))


def draw(found: Iterable[Passage], scale: RewardScale) -> str:
    """The picture as SVG."""
    drawing = Drawing(scale)
    low, high = scale.ends
    drawing.legend((f"unkind {low}", f"+{high} kind"))
    for passage in found:
        drawing.add(passage)
    width, height = round(LEFT + COLUMNS * CHARACTER + 20), drawing.y
    elements = "\n".join(drawing.elements)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>Continuations of the demo model with every token on the colour of its reward</title>
<style>
text {{ font: {FONT_SIZE}px {MONOSPACED}; fill: #1d1f2b }}
.name {{ font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #5b6070 }}
.prompt {{ fill: #5b6070 }}
rect {{ fill-opacity: .5 }}
.paper {{ fill: #fff; fill-opacity: 1; stroke: #d9dce4 }}
</style>
<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>
{elements}
</svg>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE, help="SVG file to write")
    output = parser.parse_args(arguments).output
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1) as llm:
        assert llm.insertion is not None
        picture = draw(passages(llm), RewardScale(llm.insertion, 0, 0.0))
    with atomic_path(output, force=True) as temporary:
        temporary.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
