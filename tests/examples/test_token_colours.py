"""The README's picture: every token of real texts, on the colours of the terminal, within its frame."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import token_colours
from benchmarks.token_colours import COLUMNS, PICTURE, PROMPTS, Passage, places, rgb
from otter_gguf import Otter
from otter_gguf.cli._colour import RewardScale, colour_at
from otter_gguf.demo import demo_files

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str, kind: str) -> list[str]:
    found = ElementTree.fromstring(picture).iter(f"{SVG}text")
    return [element.text or "" for element in found if element.get("class") == kind]


def fills(picture: str) -> list[str]:
    """Colours of the tokens' boxes, which have rounded corners."""
    found = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    return [element.get("fill", "") for element in found if element.get("rx") and element.get("fill")]


def words(pieces: Sequence[str]) -> list[str]:
    return [piece.strip() for piece in pieces if piece.strip()]


@pytest.fixture(scope="module")
def scale() -> RewardScale:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=64, n_threads=1) as llm:
        assert llm.insertion is not None
        return RewardScale(llm.insertion, 0, 0.0)


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=256, n_threads=1) as llm:
        return list(token_colours.passages(llm))


def test_the_script_draws_every_token_of_the_model(passages: list[Passage], tmp_path: Path) -> None:
    target = tmp_path / "picture.svg"
    assert token_colours.main(["-o", str(target)]) == 0
    picture = target.read_text(encoding="utf-8")
    expected = [word for passage in passages if passage.name != "prompt" for word in words(passage.pieces)]
    assert texts(picture, "token") == expected
    assert texts(picture, "prompt") == [word for prompt in PROMPTS for word in prompt.split()]
    assert len(fills(picture)) == len(expected)
    assert len(picture.encode()) < 60_000


def test_guided_stories_have_the_higher_rewards(passages: list[Passage]) -> None:
    mean = {
        way: statistics.fmean(
            reward for passage in passages if passage.name == way for reward in passage.rewards if reward is not None
        )
        for way in token_colours.WAYS
    }
    assert mean["guided"] > mean["plain"] + 0.3


def test_colours_are_those_of_the_terminal(scale: RewardScale) -> None:
    picture = token_colours.draw([Passage("plain", (" bad", " so", " good"), (-1.0, 0.0, 1.0))], scale)
    assert fills(picture) == ["rgb({},{},{})".format(*colour_at(place)) for place in (0.0, 0.5, 1.0)]
    assert fills(picture) == [rgb(place) for place in (0.0, 0.5, 1.0)]
    assert len(set(fills(picture))) == 3


def test_markup_in_a_text_is_text(scale: RewardScale) -> None:
    picture = token_colours.draw([Passage("plain", (" <b>", "&", '"'), (0.0, 0.0, 0.0))], scale)
    assert texts(picture, "token") == ["<b>", "&", '"']


def test_words_stay_whole_and_within_the_line() -> None:
    pieces = [" ", *[" other", "wise", ","] * 30]
    found = places(pieces)
    for piece, (_, column) in zip(pieces, found, strict=True):
        assert column >= (-1 if piece.startswith(" ") else 0)
        assert column + len(piece) <= COLUMNS
    lines = [line for line, _ in found]
    assert lines == sorted(lines)
    assert lines[-1] == 4  # 30 words of 11 characters, 7 of them in a line
    assert all(len({lines[first], lines[first + 1], lines[first + 2]}) == 1 for first in range(1, len(pieces), 3))


def test_the_shipped_picture_is_whole() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert PICTURE.stat().st_size < 60_000
    root = ElementTree.fromstring(picture)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    paper = next(root.iter(f"{SVG}rect"))
    assert paper.get("class") == "paper"  # else it would be dark on dark
    assert ".paper { fill: #fff" in picture
    for element in root.iter(f"{SVG}text"):
        assert float(element.attrib["x"]) + float(element.get("textLength", 0)) <= width
        assert float(element.attrib["y"]) < height
    assert texts(picture, "prompt") == [word for prompt in PROMPTS for word in prompt.split()]
    assert len(fills(picture)) == len(texts(picture, "token")) > 100
    assert {rgb(0.0), rgb(1.0)} <= set(fills(picture))
    assert "http://" not in picture.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in picture
