"""Heat maps as HTML pages."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from otter_gguf.cli._colour import HIGH, LOW
from otter_gguf.cli._html import Candidate, heat_map

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Reads a page; tags must be closed in their order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_text = 0
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.in_text += self.in_text > 0 or ("class", "text") in attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.in_text -= self.in_text > 0

    def handle_data(self, data: str) -> None:
        if self.in_text:
            self.text += data

    @property
    def tokens(self) -> list[dict[str, str | None]]:
        """Attributes of the tokens."""
        return [attributes for tag, attributes in self.tags if tag == "span" and "title" in attributes]


def place(reward: float) -> float:
    return min(max((reward + 1) / 2, 0.0), 1.0)


def page(pieces: list[str], rewards: list[float] | None = None, **options: object) -> Page:
    rewards = [0.0] * len(pieces) if rewards is None else rewards
    return Page(heat_map("title", pieces, rewards, place, **options))  # type: ignore[arg-type]


def test_text_and_rewards_are_there() -> None:
    found = page([" Mia", " helped", "\n\nTom"], [-1.0, 0.25, 1.0], prompt="Once,")
    assert found.text == "Once, Mia helped\n\nTom"
    assert [token["title"] for token in found.tokens] == ["reward -1", "reward 0.25", "reward 1"]
    low, _, high = (token["style"] or "" for token in found.tokens)
    assert "rgb({} {} {} / .5)".format(*LOW) in low
    assert "rgb({} {} {} / .5)".format(*HIGH) in high


@pytest.mark.parametrize(
    "piece",
    [
        "<script>alert(1)</script>",
        "</div></body>",
        "\" onmouseover='alert(1)'",
        "&lt;&amp;&#60;",
        "<!--",
        "]]>",
        "</style><b>",
    ],
)
def test_what_looks_like_html_stays_text(piece: str) -> None:
    plain = page(["x"], prompt="x", label="x", ends=("x", "x"), candidates=[[Candidate("x")]])
    found = Page(
        heat_map(
            piece,
            [piece],
            [0.0],
            place,
            prompt=piece,
            label=piece,
            ends=(piece, piece),
            candidates=[[Candidate(piece)]],
        )
    )
    assert found.text == piece * 2
    assert [(tag, sorted(attributes)) for tag, attributes in found.tags] == [
        (tag, sorted(attributes)) for tag, attributes in plain.tags
    ]
    assert (found.tokens[0]["title"] or "").startswith(f"{piece} 0\n")


def test_control_characters_are_made_visible() -> None:
    source = heat_map(
        "t\x1b", ["a\x00\x1b[31m", "\u202eb", "\ud800"], [0.0] * 3, place, candidates=[[], [Candidate("\x07")], []]
    )
    assert not any(bad in source for bad in "\x00\x07\x1b\u202e\ud800")
    assert Page(source).text == "a\\x00\\x1b[31m\\u202eb\\ud800"
    source.encode("utf-8")


def test_a_page_needs_nothing_from_elsewhere() -> None:
    source = heat_map("title", ["a"], [0.0], place)
    tags = {tag for tag, _ in Page(source).tags}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    for word in ("http://", "https://", "@import", "url("):
        assert word not in source
    assert "default-src 'none'" in source
    assert "prefers-color-scheme: dark" in source


def test_candidates_are_in_the_tooltip() -> None:
    candidates = [[Candidate(" kind", 0.5, 2.25, True), Candidate("\n", None, 1.0)], []]
    first, second = page([" kind", "."], candidates=candidates).tokens
    assert (first["title"] or "").splitlines() == ["reward 0", "▸ ' kind' reward 0.5 score 2.25", "  '\\n' score 1"]
    assert second["title"] == "reward 0"


def test_an_unknown_reward_has_no_colour() -> None:
    known, unknown = page(["a", "b"], [0.0, math.nan]).tokens
    assert "style" in known
    assert "style" not in unknown
    assert unknown["title"] == "reward unknown"


def test_the_legend_names_label_and_ends() -> None:
    source = heat_map("title", [], [], place, label="kindness", ends=("unkind", "kind"))
    legend = source.split('class="legend">')[1].split("</p>")[0]
    assert legend.startswith("kindness: unkind")
    assert legend.endswith("kind")


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        heat_map("title", ["a", "b"], [0.0], place)
    with pytest.raises(ValueError, match="zip"):
        heat_map("title", ["a", "b"], [0.0, 0.0], place, candidates=[[]])
