"""The page of `pam view` in a real browser without a window; skipped if Chromium or Playwright is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
pytest.importorskip("nicegui", reason="needs NiceGUI")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt install chromium"),
    pytest.mark.timeout(300),
]
TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a page with a model without weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("view") / "log"
    script = Path(__file__).with_name("fake_view.py")
    # NiceGUI takes the variable as a sign that its own test plugin runs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, script, str(port)], stdout=output, stderr=output, env=environment
        )
    try:
        until_s = time.monotonic() + 60.0
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5.0).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until_s, log.read_text()
                time.sleep(0.2)
        yield port
        process.terminate()
        process.wait(20.0)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()


@pytest.fixture
def page(server: int) -> Iterator[Any]:
    """A page without regions."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(TIMEOUT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(f"http://127.0.0.1:{server}/")
        page.wait_for_function("document.querySelector('.pam-picture img').naturalWidth == 320")
        page.get_by_role("button", name="Remove all").click()
        yield page
        assert not [it for it in problems if "/picture/" not in it], problems  # the end may cut one off
        browser.close()


class Picture:
    """The picture on the page, in its own pixels."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._box = page.locator(".pam-picture img").bounding_box()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel is on the page."""
        return (
            self._box["x"] + (x + 0.5) * self._box["width"] / 320,
            self._box["y"] + (y + 0.5) * self._box["height"] / 240,
        )

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self._page.mouse
        mouse.move(*self.place(*begin))
        mouse.down()
        mouse.move(*self.place((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2))
        mouse.move(*self.place(*end))
        self._page.wait_for_selector(".pam-picture rect", state="attached")
        mouse.up()

    def colour(self, x: int, y: int) -> list[int]:
        """RGB of a pixel, as the browser decoded it."""
        return self._page.evaluate(
            """([x, y]) => {
                const image = document.querySelector('.pam-picture img');
                const canvas = Object.assign(document.createElement('canvas'), {width: 320, height: 240});
                canvas.getContext('2d').drawImage(image, 0, 0);
                return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3);
            }""",
            [x, y],
        )

    def wait_for_tint(self, x: int, y: int, tinted: bool) -> None:
        until_s = time.monotonic() + 30.0
        while (max(self.colour(x, y)) - min(self.colour(x, y)) > 20) != tinted:
            assert time.monotonic() < until_s, f"pixel ({x}, {y}) is {self.colour(x, y)}"
            time.sleep(0.1)


def texts(page: Any) -> list[str]:
    return page.locator(".pam-text").all_inner_texts()


def test_a_drag_makes_a_region_with_mask_and_growing_texts(page: Any) -> None:
    picture = Picture(page)
    picture.drag((100, 60), (200, 140))
    page.wait_for_selector("text=tracked")
    picture.wait_for_tint(150, 100, True)
    assert max(picture.colour(20, 200)) - min(picture.colour(20, 200)) <= 20
    page.wait_for_function(
        "[...document.querySelectorAll('.pam-text')].some(it => it.innerText.endsWith('▍'))"
    )
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.pam-text')];"
        " return all.length == 2 && !all.some(it => it.innerText.endsWith('▍')); }"
    )
    assert all("en" in text for text in texts(page))


def test_clicks_make_refine_and_remove_regions(page: Any) -> None:
    picture = Picture(page)
    page.mouse.click(*picture.place(60, 60))
    page.mouse.click(*picture.place(260, 180))
    page.wait_for_function("document.querySelectorAll('.q-card').length == 2")
    picture.wait_for_tint(60, 60, True)
    picture.wait_for_tint(260, 180, True)
    # A click on a mask refines it, as any click does while a card is selected.
    page.mouse.click(*picture.place(61, 61))
    page.mouse.click(*picture.place(259, 180), button="right")
    page.mouse.click(*picture.place(10, 230), button="right")
    page.wait_for_selector("text=select a region's card first")
    page.locator(".q-card").first.click()
    page.mouse.click(*picture.place(70, 63))
    page.wait_for_selector(".pam-waiting", state="detached")
    assert page.locator(".q-card").count() == 2
    page.locator(".q-card").first.get_by_role("button").click()
    page.wait_for_function("document.querySelectorAll('.q-card').length == 1")


def test_a_playing_video_shows_rolling_captions_as_they_grow(page: Any) -> None:
    picture = Picture(page)
    picture.drag((100, 60), (200, 140))
    page.wait_for_selector("text=tracked")
    page.get_by_text("Rolling captions").click()
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.wait_for_selector("text=Caption, 0.0-5.0 s")
    page.get_by_role("button", name="Play").wait_for()  # at its end
    page.get_by_text("Rolling captions").click()


def test_only_this_machine_reaches_the_page(server: int) -> None:
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("needs Linux")
    rows = [line.split() for line in listening.read_text().splitlines()[1:]]
    addresses = {
        row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == server
    }
    assert addresses == {"0100007F"}, "127.0.0.1 in little-endian hexadecimal"
