"""The page in a real browser: type, generate, look, download, mistakes, keys, contrast, phone width."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server import Running, running
from test_serve_clients import Reader

from roentgen import generate as sample
from roentgen.images import read_provenance
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.keys import VARIABLE, load_keys

api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
PROMPT = "left pleural effusion"
KEY = "a-key-of-the-environment"
# Ratio of luminances (WCAG 2) of each element that has text of its own, under the nearest ground that is painted.
CONTRASTS = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const part = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!(own || node.placeholder) || !node.checkVisibility() || node.closest("noscript")) continue;
    const style = getComputedStyle(node, node.placeholder ? "::placeholder" : null);
    const [a, b] = [light(rgb(style.color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def catalogue(tiny_model: Any) -> Catalogue:
    return Catalogue({"tiny": tiny_model}, {"reader": Reader()})


@pytest.fixture(scope="module")
def server(catalogue: Catalogue) -> Iterator[Running]:
    with running(catalogue) as one:
        yield one


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened; whatever it says on the console as an error, or asks of another server, fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    page = context.new_page()
    url = server.url
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "blob:", "data:")) else wrong.append(request.url),
    )
    page.goto(url)
    api.expect(page.locator("#model option")).to_have_count(1)
    yield page
    context.close()
    # Chromium itself reports every reply of 400 there.
    assert [text for text in wrong if "the server responded with a status of 4" not in text] == []


def wait_until(page: Any, expression: str, *arguments: Any, seconds: float = 60) -> None:
    """Until it holds. Playwright's own wait evaluates text, which the page's security policy rightly forbids."""
    until = time.monotonic() + seconds
    while not page.evaluate(expression, *arguments):
        assert time.monotonic() < until, expression
        page.wait_for_timeout(50)


def made(page: Any, count: int) -> None:
    """Wait until so many pictures are there, and loaded."""
    api.expect(page.locator(".card img")).to_have_count(count, timeout=60_000)
    wait_until(page, "() => [...document.querySelectorAll('.card img')].every((one) => one.naturalWidth > 0)")


def generate(page: Any, prompt: str, count: int = 1, seed: int = 3) -> None:
    page.fill("#count", str(count))
    page.fill("#seed", str(seed))
    page.fill("#prompt", prompt)
    page.keyboard.press("Escape")
    page.press("#prompt", "Enter")


def test_type_choose_generate(page: Any) -> None:
    page.locator("#prompt").press_sequentially("left pleural eff")
    api.expect(page.locator("#suggestions li").first).to_have_text(PROMPT)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    api.expect(page.locator("#prompt")).to_have_value(PROMPT)
    api.expect(page.locator("#suggestions")).to_be_hidden()
    page.keyboard.press("Enter")
    made(page, 2)
    api.expect(page.locator("#status")).to_contain_text("2 images")
    for card in page.locator(".card").all():
        api.expect(card).to_contain_text("Synthetic, research only")
    generate(page, "no acute process")
    made(page, 3)  # the first two stay as history
    page.locator(".group").nth(1).get_by_role("button", name="Use again").click()
    api.expect(page.locator("#prompt")).to_have_value(PROMPT)


def test_look_closely(page: Any) -> None:
    generate(page, PROMPT)
    made(page, 1)
    page.locator(".card button").click()
    api.expect(page.locator("#viewer")).to_be_visible()
    api.expect(page.locator("#provenance")).to_contain_text("tiny")
    api.expect(page.locator("#viewer figcaption")).to_contain_text("Synthetic, research only")
    look = "() => document.getElementById('canvas').toDataURL()"
    wait_until(page, "() => document.getElementById('canvas').width >= 256")
    seen = [page.evaluate(look)]

    def changed() -> None:
        wait_until(page, f"(before) => ({look})() !== before", seen[-1])
        seen.append(page.evaluate(look))

    page.locator("#window").fill("80")
    changed()
    page.locator("#canvas").focus()
    page.keyboard.press("+")
    changed()
    page.keyboard.press("ArrowLeft")
    changed()
    page.keyboard.press("0")
    changed()
    assert seen[-1] == seen[0]
    for way in ("looked", "differs"):  # each word lights its pixels, and goes out again
        page.select_option("#lighting", way)
        for _ in range(2):
            page.get_by_role("button", name="left", exact=True).click()
            changed()
    assert len(set(seen[-4:])) == 3
    page.check("#boxes")
    api.expect(page.locator("#findings li")).to_have_text("left Effusion (75 %)")
    changed()
    page.uncheck("#boxes")
    changed()
    assert seen[-1] == seen[0]
    page.keyboard.press("Escape")
    api.expect(page.locator("#viewer")).to_be_hidden()


def test_edit_an_image(page: Any) -> None:
    generate(page, PROMPT)
    made(page, 1)
    page.locator(".card button").click()
    page.fill("#edit-text", "no acute process")
    page.select_option("#lung", "left")
    page.click("#edit")
    made(page, 2)
    page.locator(".card button").first.click()
    api.expect(page.locator("#provenance")).to_contain_text("edited")
    api.expect(page.locator("#words-box")).to_be_hidden()
    page.fill("#edit-text", "")
    page.fill("#edit-remove", "cardiomegaly")
    page.click("#edit")
    made(page, 3)
    api.expect(page.locator(".group h3").first).to_contain_text("no cardiomegaly")


def grey_levels(page: Any, selector: str) -> np.ndarray:
    """What the browser has painted there, uint8 (H, W)."""
    return np.array(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("L"))


def test_a_card_is_never_black(page: Any, tiny_model: Any) -> None:
    """Neither while its picture is on the way nor when it has just come, of an edit as of an image."""
    waits: list[bool] = []

    def slowly(route: Any) -> None:
        page.wait_for_timeout(600)
        waits.append(page.locator(".waiting").count() == 1 and grey_levels(page, ".card >> nth=0").mean() > 20)
        route.continue_()

    page.route("**/v1/images/files/*.png", slowly)
    generate(page, PROMPT)
    api.expect(page.locator(".card img")).to_have_count(1, timeout=60_000)
    wanted = next(sample(tiny_model, PROMPT, seed=3)).image.mean()
    for count in (1, 2):
        api.expect(page.locator(".card img")).to_have_count(count, timeout=60_000)
        assert abs(grey_levels(page, ".card img >> nth=0").mean() - wanted) < 25
        if count == 1:
            page.locator(".card button").click()
            page.click("#edit")
    assert waits == [True, True]


def test_history_survives_a_reload_until_it_is_cleared(page: Any, server: Running, tmp_path: Path) -> None:
    page.check("#compare")
    page.fill("#prompt2", "no acute process")
    page.fill("#guidance", "3.5")
    generate(page, PROMPT, count=2)
    made(page, 4)
    api.expect(page.locator("#go")).to_be_enabled()
    page.uncheck("#compare")
    generate(page, "pneumonia", seed=9)
    made(page, 5)
    api.expect(page.locator("#status")).to_contain_text("1 image.")
    seen = page.evaluate(PIXELS)
    page.reload()
    made(page, 5)
    assert page.evaluate(PIXELS) == seen and len(set(seen)) == 5
    group = page.locator(".group").nth(1)
    api.expect(group.locator("h3")).to_contain_text(f"{PROMPT}  |  no acute process")
    group.get_by_role("button", name="Use again").click()
    for field, value in {"prompt2": "no acute process", "guidance": "3.5", "seed": "3", "count": "2"}.items():
        api.expect(page.locator(f"#{field}")).to_have_value(value)
    server.service.gallery.clear()  # its pictures are kept by the browser, not by the server
    page.reload()
    made(page, 5)
    page.locator(".card button").first.click()
    api.expect(page.locator("#provenance")).to_contain_text("tiny")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download PNG").click()
    waiting.value.save_as(tmp_path / "kept.png")
    assert read_provenance(tmp_path / "kept.png")["prompt"] == "pneumonia"
    page.get_by_role("link", name="Download DICOM").click()
    api.expect(page.locator("#viewer-message")).to_contain_text("forgotten")
    page.click("#edit")  # the browser sends it back to be edited
    made(page, 6)
    api.expect(page.locator("#go")).to_be_enabled()
    page.locator(".group").nth(2).get_by_role("button", name="Remove").click()
    api.expect(page.locator(".card")).to_have_count(2)
    page.reload()
    made(page, 2)
    page.click("#clear")
    api.expect(page.locator(".card")).to_have_count(0)
    page.reload()
    api.expect(page.locator("#empty")).to_be_visible()
    api.expect(page.locator("#history")).to_be_hidden()
    assert page.locator(".group").count() == 0


PIXELS = """() => [...document.querySelectorAll(".card img")].map((image) => {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const area = Object.assign(document.createElement("canvas"), { width, height });
  area.getContext("2d").drawImage(image, 0, 0);
  return area.toDataURL();
})"""
# Three groups of two pictures where there is room for three pictures; gives how many are left of each.
ROOM = """async () => {
  const { all, keep } = await import("/page/history.js");
  const picture = new Blob([new Uint8Array(1000)]);
  for (const prompt of ["a", "b", "c"]) {
    const images = [0, 1].map((place) => ({ event: { seed: place }, prompt, place, picture }));
    await keep({ prompts: [prompt], about: { seed: 0 }, count: 2, images }, 3500);
  }
  return (await all()).map(({ prompts, images }) => [prompts[0], images.filter((one) => one.picture).length]);
}"""


def test_history_beyond_its_room_loses_the_oldest_pictures(page: Any) -> None:
    assert page.evaluate(ROOM) == [["a", 0], ["b", 0], ["c", 2]]
    page.reload()
    api.expect(page.locator(".group")).to_have_count(3)
    api.expect(page.locator(".group").nth(2)).to_contain_text("Not kept")


def test_browser_that_stores_nothing(page: Any) -> None:
    blocked = "{ get() { throw new DOMException('blocked', 'SecurityError'); } }"
    page.add_init_script(f"Object.defineProperty(window, 'indexedDB', {blocked})")
    page.reload()
    generate(page, PROMPT)
    made(page, 1)
    api.expect(page.locator("#kept")).to_contain_text("as long as this tab")
    api.expect(page.locator("#status")).to_contain_text("1 image.")


@pytest.mark.parametrize(("link", "ending"), [("Download PNG", ".png"), ("Download DICOM", ".dcm")])
def test_downloads_are_marked(page: Any, tmp_path: Path, link: str, ending: str) -> None:
    generate(page, PROMPT, seed=5)
    made(page, 1)
    page.locator(".card button").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name=link).click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.suffix == ending and read_provenance(file)["prompt"] == PROMPT


def test_two_prompts_at_one_seed(page: Any) -> None:
    page.check("#compare")
    page.fill("#prompt2", "no acute process")
    generate(page, PROMPT, count=2)
    made(page, 4)
    seeds = [re.findall(r"seed (\d+)", text)[0] for text in page.locator(".card figcaption").all_inner_texts()]
    assert seeds == ["3", "3", "4", "4"]


def test_a_mistake_is_said_and_stop_stops(page: Any) -> None:
    generate(page, "123")
    api.expect(page.locator("#message")).to_contain_text("prompt")
    assert page.locator(".group").count() == 0
    page.fill("#steps", "900")
    generate(page, PROMPT, count=8)
    page.locator("#stop").click()
    api.expect(page.locator("#status")).to_have_text("Stopped.")
    api.expect(page.locator("#go")).to_be_enabled()


def test_key_is_asked_for(browser: Any, catalogue: Catalogue) -> None:
    with running(catalogue, keys=load_keys(None, {VARIABLE: KEY})) as server:
        page = browser.new_page()
        page.goto(server.url)
        api.expect(page.locator("#message")).to_contain_text("key")
        page.fill("#key", "wrong")
        page.press("#key", "Tab")
        api.expect(page.locator("#message")).to_contain_text("not known")
        page.fill("#key", KEY)
        page.press("#key", "Tab")
        api.expect(page.locator("#model option")).to_have_count(1)
        generate(page, PROMPT)
        made(page, 1)
        page.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1200, 360])
def test_contrast_and_width(page: Any, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 740})
    page.check("#compare")
    page.fill("#prompt2", "no acute process")
    generate(page, PROMPT)
    made(page, 2)
    fits = "() => document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(CONTRASTS) == [] and page.evaluate(fits)
    page.locator(".card button").first.click()
    page.check("#boxes")
    api.expect(page.locator("#findings li")).to_have_count(1)
    assert page.evaluate(CONTRASTS) == [] and page.evaluate(fits)
    inside = page.locator("#viewer").evaluate("(one) => one.scrollWidth <= one.clientWidth")
    assert inside
    page.locator("#png").scroll_into_view_if_needed()
    for name in ("#canvas", "#close"):  # what the tools do is seen in the image
        api.expect(page.locator(name)).to_be_in_viewport(ratio=0.95)
