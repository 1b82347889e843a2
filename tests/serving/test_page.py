"""The page at / in a browser: needs Playwright and a Chromium (apt install chromium), and skips without them.

``OTTER_AXE`` names the file axe.min.js of axe-core, whose rules are then applied, ``OTTER_SCREENSHOTS`` a folder for
pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from otter_gguf import Otter
from otter_gguf.cli._colour import HIGH, LOW, MIDDLE, RewardScale, colour_at
from otter_gguf.demo import demo_files
from otter_gguf.serving.app import PAGE
from tests.completions import chat_pair
from tests.guidance.reference import open_exact
from tests.serving.served import Client, serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def demo() -> Iterator[Client]:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=2048, n_seq_max=32, n_threads=1) as llm, serving(llm) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def until(page: Any, expression: str) -> None:
    """Wait for it; the page's own policy forbids Playwright's way."""
    end = time.monotonic() + 60
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def test_the_page_is_small_and_asks_nobody_else(demo: Client) -> None:
    sizes = [len((PAGE / name).read_bytes()) for name in ("index.html", "page.css", "page.js")]
    assert sum(sizes) < 60_000
    page = demo.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for name in ("index.html", "page.css", "page.js"):
        text = (PAGE / name).read_text(encoding="utf-8")
        assert not re.findall(r"https?://", text)
    assert "style=" not in page.data.decode()


def test_its_colours_are_those_of_the_terminal() -> None:
    text = (PAGE / "page.js").read_text(encoding="utf-8")
    for name, colour in {"LOW": LOW, "MIDDLE": MIDDLE, "HIGH": HIGH}.items():
        assert f"{name} = [{', '.join(map(str, colour))}]" in text


def test_two_texts_from_one_seed(demo: Client, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems, asked = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(demo.url)
    until(page, "document.querySelector('#rule').value === 'args'")
    page.fill("#tokens", "24")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    until(page, "!document.querySelector('#go').disabled && document.querySelectorAll('#guided [data-token]').length")

    body: dict[str, Any] = {"prompt": "The old man", "seed": 1, "max_tokens": 24, "temperature": 0.8}
    weight = float(page.input_value("#weight"))
    insertion = demo.service.model.llm.insertion
    assert insertion is not None
    for column, otter in (("plain", {}), ("guided", {"guidance": {"rule": "args", "weight": weight}})):
        choice = demo.complete(**body, otter={**otter, "prompt_rewards": True})["choices"][0]
        spans = page.locator(f"#{column} [data-token]")
        shown = "".join(spans.all_text_contents())
        if shown != choice["text"]:  # the two share batches, and rounding may turn a choice
            continue
        origin = choice["prompt_rewards"]["token_rewards"][-1][0]
        scale = RewardScale(insertion, 0, origin)
        for index, row in enumerate(choice["rewards"]["token_rewards"]):
            found = spans.nth(index).evaluate("span => getComputedStyle(span).backgroundColor")
            numbers = [float(number) for number in re.findall(r"[\d.]+", found)]
            assert max(abs(a - b) for a, b in zip(numbers, colour_at(scale.place(row[0])), strict=False)) <= 3
    assert page.locator("#guided svg polyline").get_attribute("points")

    page.locator("#guided [data-token]").first.hover()
    assert page.locator("#token tr").count() == 11
    assert page.locator("#token tr.chosen").count() == 1
    page.locator("#plain .text").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.token") == "0"
    assert "plain 1" in (page.locator("#token").text_content() or "")

    with page.expect_download() as download:
        page.click("#export")
    saved = Path(download.value.path()).read_text(encoding="utf-8")
    assert saved.count("<span title=") == page.locator("[data-token]").count()
    assert not problems
    assert {url.split("/")[2] for url in asked if not url.startswith(("blob:", "data:"))} == {f"127.0.0.1:{demo.port}"}
    _look(page)
    page.close()


def test_a_conversation_goes_on(browser: Any) -> None:
    with open_exact(chat_pair(), n_ctx=2048) as llm, serving(llm) as client:
        page = browser.new_page()
        page.goto(client.url)
        until(
            page, "document.querySelector('#rule').value === 'args' && document.querySelector('#mode').value === 'chat'"
        )
        page.fill("#tokens", "6")
        for turn, words in enumerate(("hi", "and then?"), 1):
            page.fill("#prompt", words)
            page.click("#go")
            prompts = "document.querySelectorAll('#plain .prompt').length"
            until(page, f"!document.querySelector('#go').disabled && {prompts} === {turn}")
            assert page.locator("#error").text_content() == ""
        shown = page.locator("#plain .text").text_content() or ""
        assert shown.startswith("youhimodel")
        assert "youand then?model" in shown
        page.click("#clear")
        assert page.locator("#plain .text").text_content() == ""
        page.close()


def test_stop_stops(demo: Client, browser: Any) -> None:
    page = browser.new_page()
    page.goto(demo.url)
    until(page, "document.querySelector('#rule').value === 'args'")
    page.fill("#tokens", "1500")
    page.click("#go")
    until(page, "document.querySelectorAll('#plain [data-token]').length > 3")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#go').disabled")
    assert page.locator("#error").text_content() == ""
    page.wait_for_timeout(500)
    assert not demo.service.under_way
    page.close()


def test_errors_are_shown(demo: Client, browser: Any) -> None:
    page = browser.new_page()
    page.goto(demo.url)
    until(page, "document.querySelector('#rule').value === 'args'")
    page.fill("#prompt", "a " * 5000)
    page.click("#go")
    until(page, "document.querySelector('#error').textContent")
    page.close()


def _look(page: Any) -> None:
    """axe-core and pictures, where they are asked for."""
    if axe := os.environ.get("OTTER_AXE"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(Path(axe).read_text(encoding="utf-8"))
            found = page.evaluate("axe.run()")["violations"]
            assert [
                (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
            ] == []
    if folder := os.environ.get("OTTER_SCREENSHOTS"):
        for scheme in ("light", "dark"):
            for width in (360, 1280):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                page.screenshot(path=f"{folder}/{scheme}-{width}.png", full_page=True)
