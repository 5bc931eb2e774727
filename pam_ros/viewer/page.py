"""The page of `pam view`, built with NiceGUI: an image to click and drag on, and a card for each region."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from nicegui import app, events, ui

from pam_ros.errors import PamError
from pam_ros.records import IMAGE_TASKS, Language, Prompt, Region, Task
from pam_ros.runtime.overlay import region_colour
from pam_ros.runtime.requests import PromptRequest
from pam_ros.viewer.board import Board, ShownRegion, Source

HOST = "127.0.0.1"  # the page has no password: nobody else may reach it
REFRESH_S = 0.1
DRAG_PX = 5.0  # a shorter drag is a click
_LEFT, _RIGHT = 0, 2
_HELP = (
    "Click an object or drag a box around it. A click on a mask refines it; a right click or Shift+click "
    "marks what does not belong to it. To add what lies outside a mask, select its card first."
)


def serve(board: Board, source: Source, *, port: int, open_browser: bool) -> None:
    """Serves the page on this machine only, until SIGINT; closes the source."""

    @app.get("/picture/{serial}")
    def picture(serial: int) -> Response:
        return Response(board.jpeg(), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @ui.page("/")
    def index() -> None:
        Page(board, source).build()

    app.on_shutdown(source.close)
    ui.run(host=HOST, port=port, title="pam view", reload=False, show=open_browser, show_welcome_message=True)


@dataclass
class _Card:
    """The elements of one region's card."""

    card: ui.card
    title: ui.label
    texts: ui.column
    shown: list[tuple[str, str, bool]] = field(default_factory=list)  # name, text, still growing


class Page:
    """One browser tab."""

    def __init__(self, board: Board, source: Source) -> None:
        self._board, self._source = board, source
        self._serial = -1
        self._selected = 0  # id of the region that clicks refine; 0 = they make a new one
        self._drag: tuple[float, float] | None = None  # where it began
        self._negative = False
        self._waiting: list[str] = []  # SVG of prompts that are not answered yet
        self._cards: dict[int, _Card] = {}

    def build(self) -> None:
        """Makes the elements and starts to refresh them."""
        ui.add_css("body { background: #f4f5f7 } .pam-picture { cursor: crosshair; user-select: none }")
        with ui.row().classes("w-full items-center q-px-md q-pt-sm no-wrap"):
            ui.label("pam view").classes("text-h6")
            ui.label(self._source.title).classes("text-grey-8")
            self._pace = ui.label().classes("text-grey-8")
        self._notice = ui.label().classes("q-mx-md q-px-sm rounded-borders bg-amber-2")
        with ui.row().classes("w-full no-wrap items-start q-px-md"):
            with ui.column().style("flex: 3; min-width: 0"):
                self._build_picture()
                self._build_controls()
                ui.label(_HELP).classes("text-caption text-grey-8")
            with ui.column().style("flex: 2; min-width: 280px") as self._column:
                self._empty = ui.label("No regions yet: click an object.").classes("text-grey-8")
        ui.timer(REFRESH_S, self._refresh)

    def _build_picture(self) -> None:
        self._image = ui.interactive_image(
            on_mouse=self._on_mouse, events=["mousedown", "mousemove", "mouseup"], sanitize=False
        )
        self._image.classes("pam-picture w-full")
        self._image.on("contextmenu.prevent", lambda: None)

    def _build_controls(self) -> None:
        with ui.row().classes("items-center"):
            self._play = ui.button("Play", on_click=self._source.play_or_pause)
            self._play.set_visibility(self._source.playing is not None)
            ui.button("Remove all", on_click=lambda: self._source.remove(0)).props("flat")
            self._stream = ui.switch("Rolling captions", on_change=self._set_captions)
        with ui.row().classes("items-center"):
            names = {Language.EN: "English", Language.ZH: "中文"}
            self._language = ui.select(
                names, value=Language.EN, label="Language", on_change=self._set_captions
            ).style("min-width: 110px")
            tasks = {task: task.value.capitalize() for task in IMAGE_TASKS}
            self._tasks = ui.select(tasks, value=[Task.LABEL, Task.EXPLAIN], label="Texts", multiple=True)
            self._tasks.props("use-chips").style("min-width: 220px")

    # --- prompts

    async def _on_mouse(self, event: events.MouseEventArguments) -> None:
        place = (event.image_x, event.image_y)
        if event.type == "mousedown" and event.button in (_LEFT, _RIGHT):
            self._drag, self._negative = place, event.button == _RIGHT or event.shift
        elif event.type == "mousemove" and self._drag is not None and not self._negative:
            drawn = [_rectangle(self._drag, place)] if _is_drag(self._drag, place) else []
            self._image.content = "".join([*self._waiting, *drawn])
        elif event.type == "mouseup" and self._drag is not None:
            begin, self._drag = self._drag, None
            if not self._negative and _is_drag(begin, place):
                corners = [min(begin[0], place[0]), min(begin[1], place[1])]
                corners += [max(begin[0], place[0]), max(begin[1], place[1])]
                prompt = Prompt.from_clicks(box_xyxy=corners)
                await self._perceive(prompt, self._selected, _rectangle(begin, place))
            else:
                await self._click(place, positive=not self._negative)

    async def _click(self, place: tuple[float, float], *, positive: bool) -> None:
        """Refines the selected region or the one that is hit; elsewhere a positive click makes one."""
        region_id = self._selected or _region_at(self._board.regions(), place)
        if not (positive or region_id):
            ui.notify("Click a mask, or select a region's card first.", type="warning")
            return
        mark = _dot(place, "#43a047" if positive else "#e53935")
        await self._perceive(Prompt.from_clicks([place], [int(positive)]), region_id, mark)

    async def _perceive(self, prompt: Prompt, region_id: int, mark: str) -> None:
        """Asks for a region; `mark` (SVG) shows the prompt until the answer."""
        self._waiting.append(mark)
        self._image.content = "".join(self._waiting)
        request = PromptRequest(
            prompt,
            tasks=tuple(self._tasks.value),
            languages=(self._language.value,),
            region_id=region_id,
            stamp_ns=self._board.stamp_ns or None,
        )
        await _answer(self._source.perceive(request))
        self._waiting.remove(mark)
        self._image.content = "".join(self._waiting)

    async def _set_captions(self) -> None:
        await _answer(self._source.stream_captions(self._stream.value, self._language.value))

    # --- what changes

    def _refresh(self) -> None:
        serial = self._board.serial
        if serial and serial != self._serial:
            self._serial = serial
            self._image.set_source(f"/picture/{serial}")
        self._pace.set_text(self._source.pace)
        self._notice.set_text(self._source.notice)
        self._notice.set_visibility(bool(self._source.notice))
        self._play.set_text("Pause" if self._source.playing else "Play")
        regions = self._board.regions()
        for gone in self._cards.keys() - {it.region.region_id for it in regions}:
            self._cards.pop(gone).card.delete()
            self._selected = 0 if self._selected == gone else self._selected
        self._empty.set_visibility(not regions)
        for shown in regions:
            self._refresh_card(shown)

    def _refresh_card(self, shown: ShownRegion) -> None:
        region_id = shown.region.region_id
        card = self._cards.get(region_id) or self._new_card(region_id)
        heading = f"#{region_id} {shown.region.name}".strip()
        card.title.set_text(f"{heading} ({shown.region.state.name.lower()})")
        chosen = "2px solid #1976d2" if region_id == self._selected else "2px solid transparent"
        card.card.style(f"outline: {chosen}")
        texts = shown.texts()
        if texts != card.shown:
            card.shown = texts
            card.texts.clear()
            with card.texts:
                for name, text, growing in texts:
                    ui.label(name).classes("text-caption text-grey-7")
                    ui.label(text + (" ▍" if growing else "")).classes("pam-text").style("margin-top: -14px")

    def _new_card(self, region_id: int) -> _Card:
        red, green, blue = region_colour(region_id)
        with self._column, ui.card().classes("w-full cursor-pointer") as element:
            element.style(f"border-left: 8px solid rgb({red} {green} {blue})")
            element.on("click", lambda: self._select(region_id))
            with ui.row().classes("w-full items-center justify-between no-wrap"):
                title = ui.label().classes("text-subtitle1")
                remove = ui.button(icon="close").props("flat dense round").tooltip("Remove this region")
                remove.on("click.stop", lambda: self._source.remove(region_id))
            texts = ui.column().classes("w-full gap-3")
        self._cards[region_id] = _Card(element, title, texts)
        return self._cards[region_id]

    def _select(self, region_id: int) -> None:
        self._selected = 0 if self._selected == region_id else region_id


def _region_at(regions: Iterable[ShownRegion], place: tuple[float, float]) -> int:
    """Id of the smallest region whose mask has this pixel; 0 if there is none."""
    hit = [it.region for it in regions if _covers(it.region, place)]
    return min(hit, key=lambda region: int(region.mask.sum())).region_id if hit else 0


def _covers(region: Region, place: tuple[float, float]) -> bool:
    """Whether the mask has this pixel."""
    x, y = int(place[0] - region.box_xyxy[0]), int(place[1] - region.box_xyxy[1])
    height, width = region.mask.shape
    return 0 <= x < width and 0 <= y < height and bool(region.mask[y, x])


def _is_drag(begin: tuple[float, float], end: tuple[float, float]) -> bool:
    return min(abs(end[0] - begin[0]), abs(end[1] - begin[1])) >= DRAG_PX


def _rectangle(begin: tuple[float, float], end: tuple[float, float]) -> str:
    """SVG of the box that is being dragged."""
    x, y = min(begin[0], end[0]), min(begin[1], end[1])
    width, height = abs(end[0] - begin[0]), abs(end[1] - begin[1])
    style = 'fill="#1976d233" stroke="#ffffff" stroke-width="2" stroke-dasharray="6 4"'
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {style} />'


def _dot(place: tuple[float, float], colour: str) -> str:
    """SVG of a click that waits for its answer."""
    style = f'fill="{colour}" stroke="#ffffff" stroke-width="2"'
    return f'<circle class="pam-waiting" cx="{place[0]}" cy="{place[1]}" r="6" {style} />'


async def _answer(answer: Future[Any]) -> None:
    """Waits for an answer; an error becomes a notification."""
    try:
        await asyncio.wrap_future(answer)
    except PamError as error:
        ui.notify(str(error), type="negative", timeout=8000, multi_line=True)
