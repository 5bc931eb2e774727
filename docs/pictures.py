"""Makes the README's pictures from the running product: `.setup/run.sh python docs/pictures.py`.

`docs/images/demo.gif` is the overlay of `pam demo`, with the prompt's click drawn on its first frame.
`docs/images/view.png` is the page of `pam view`, operated in Chromium.
`docs/images/rviz.jpg` is not made here: RViz 2 with config/pam.rviz, on `image_sample(21, "test", 640, 480)`
of the simulator with its depth.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
CLIP = ROOT / "config" / "demo" / "clip.mp4"
SIZE = (480, 360)
CLICK = (390, 250)  # the kettle, pixels of the clip
MUG, TOASTER_BOX = (100, 285), (455, 145, 622, 268)
STEP = 3  # of the frames that play, every third
STEP_MS, GROWTH_MS, CLICK_MS, READ_MS = 200, 120, 900, 1600
BAND_PX = 60  # the overlay's band of captions, from below
COLOURS = 256
NOISE = 14  # of the video codec, levels


def demo_gif(folder: Path) -> Path:
    """Plays the demo into `folder`; writes the GIF: click, mask, label, captions as they grow."""
    subprocess.run(
        [sys.executable, "-m", "pam_ros.cli.main", "demo"]
        + ["--click", ",".join(map(str, CLICK)), "--out", str(folder)],
        check=True,
        cwd=ROOT,
    )
    with av.open(str(folder / "overlay.mp4")) as film:
        frames = [(frame.time, frame.to_image()) for frame in film.decode(video=0)]
    shown = [(with_pointer(frames[0][1], pressed=pressed), CLICK_MS) for pressed in (False, True)]
    # The camera holds its first frame until the prompt is answered; there, frames differ in their texts.
    playing = next(i for i in range(1, len(frames)) if frames[i][0] - frames[i - 1][0] > 0.3)
    last: Image.Image | None = None
    for _, picture in frames[1:playing]:
        if is_marked(picture, frames[0][1]) and (last is None or continues(last, picture)):
            shown.append((picture, GROWTH_MS))
            last = picture
    shown.append((frames[playing - 1][1], READ_MS))
    count = 0
    for (before_s, _), (time_s, picture) in zip(frames[playing:], frames[playing + 1 :], strict=False):
        grown = time_s - before_s < 0.05
        count += not grown
        if grown or count % STEP == 0:
            shown.append((picture, GROWTH_MS if grown else STEP_MS))
    shown.append((frames[-1][1], READ_MS))
    return write_gif([(picture.resize(SIZE, Image.Resampling.LANCZOS), ms) for picture, ms in shown])


def write_gif(shown: list[tuple[Image.Image, int]]) -> Path:
    """One palette, no dithering, and no noise where nothing moves: only what changes takes space."""
    still = pixels(shown[0][0])
    pictures = []
    for picture, _ in shown:
        now = pixels(picture)
        still = np.where(np.abs(now - still).max(axis=-1, keepdims=True) > NOISE, now, still)
        pictures.append(Image.fromarray(still.astype(np.uint8)))
    # Half of the palette for the surroundings of the object, which are a small part of the picture.
    x, y = (at * SIZE[0] // 640 for at in CLICK)
    corners = (x - 80, y - 100, x + 80, y + 60)
    samples = [pictures[i * (len(pictures) - 1) // 5] for i in range(6)]
    sample = Image.new("RGB", (SIZE[0] * 2, SIZE[1] * 6))
    for i, picture in enumerate(samples):
        sample.paste(picture, (0, i * SIZE[1]))
        sample.paste(picture.crop(corners).resize(SIZE), (SIZE[0], i * SIZE[1]))
    palette = sample.quantize(COLOURS, kmeans=2)
    first, *others = [it.quantize(palette=palette, dither=Image.Dither.NONE) for it in pictures]
    path = IMAGES / "demo.gif"
    first.save(
        path, save_all=True, append_images=others, duration=[ms for _, ms in shown], loop=0, optimize=True
    )
    return path


def with_pointer(picture: Image.Image, *, pressed: bool) -> Image.Image:
    """The picture with a mouse pointer at the click; pressed, with a ring around it."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    x, y = CLICK
    if pressed:
        draw.ellipse((x - 22, y - 22, x + 22, y + 22), outline="white", width=5)
    arrow = [(0, 0), (0, 34), (8, 27), (13, 39), (19, 36), (14, 25), (25, 24)]
    draw.polygon([(x + dx, y + dy) for dx, dy in arrow], fill="white", outline="black", width=2)
    return picture


def is_marked(picture: Image.Image, bare: Image.Image) -> bool:
    """True if a mask is drawn."""
    x, y = CLICK
    difference = np.abs(pixels(picture) - pixels(bare))[y - 20 : y + 20, x - 20 : x + 20]
    return bool(difference.mean() > 20)


def continues(before: Image.Image, after: Image.Image) -> bool:
    """True if the letters in the band of `before` are still there: the same text, or one that grew."""
    letters, now = (pixels(it)[-BAND_PX:].min(axis=-1) > 180 for it in (before, after))
    return letters.sum() == 0 or bool((letters & now).sum() > 0.8 * letters.sum())


def pixels(picture: Image.Image) -> NDArray[np.float32]:
    """(H, W, 3), 0..255."""
    return np.asarray(picture, np.float32)


def view_picture() -> Path:
    """Starts `pam view`, prompts objects by clicks and a box in Chromium, and takes a picture of the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    # From the clip's folder, as the page shows the path that was given.
    command = ["view", CLIP.name, "--no-browser", "--port", str(port), "--model", "pam-tiny"]
    view = subprocess.Popen([sys.executable, "-m", "pam_ros.cli.main", *command], cwd=CLIP.parent)
    try:
        until_s = time.monotonic() + 120.0
        while not answers(address):
            if view.poll() is not None or time.monotonic() > until_s:
                raise SystemExit("`pam view` did not start")
            time.sleep(0.5)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1180, "height": 850})
            page.goto(address)
            path = prompt_objects(page)
            browser.close()
        return path
    finally:
        view.terminate()
        view.wait(20.0)


def answers(address: str) -> bool:
    """True if the page can be opened."""
    try:
        urllib.request.urlopen(address, timeout=2.0).close()
    except OSError:
        return False
    return True


def prompt_objects(page: Page) -> Path:
    """Clicks and drags on the page, waits for the texts and saves its picture."""
    page.wait_for_function("document.querySelector('.pam-picture img').naturalWidth == 640")
    area = page.locator(".pam-picture img").bounding_box()
    assert area is not None
    for corners in (CLICK, TOASTER_BOX, MUG):
        places = [
            (area["x"] + x * area["width"] / 640, area["y"] + y * area["height"] / 480)
            for x, y in zip(corners[::2], corners[1::2], strict=True)
        ]
        page.mouse.move(*places[0])
        page.mouse.down()
        if len(places) > 1:
            page.mouse.move((places[0][0] + places[1][0]) / 2, (places[0][1] + places[1][1]) / 2)
            page.mouse.move(*places[1])
        page.mouse.up()
        page.wait_for_timeout(4000)
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.pam-text')];"
        " return all.length >= 6 && !all.some(it => it.innerText.endsWith('▍')); }",
        timeout=120_000,
    )
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)
    path = IMAGES / "view.png"
    page.screenshot(path=path)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=200).save(path, optimize=True)
    return path


if __name__ == "__main__":
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    IMAGES.mkdir(exist_ok=True)
    for path in (demo_gif(ROOT / "out" / "pictures"), view_picture()):
        sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB\n")
