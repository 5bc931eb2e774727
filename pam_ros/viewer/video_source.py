"""Plays a video file or a webcam through the engine, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

from pam_ros.errors import PamError
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Frame, Language, Region
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.pace import Pace
from pam_ros.runtime.requests import PromptRequest
from pam_ros.viewer.board import Board

CAMERA = "view"
_GAP_S = 0.1  # between the last frame of a video and the first one when it starts again
_WAKE_S = 0.2


class VideoSource:
    """A `Source` with its own engine. A video waits on its first frame, so that it can be prompted there."""

    def __init__(
        self,
        model: PerceptionModel,
        frames: Callable[[], Iterator[Frame]],
        board: Board,
        *,
        title: str,
        notice: str = "",
        live: bool,
        options: EngineOptions | None = None,
    ) -> None:
        """`frames` opens the video at its beginning; `live` frames come at their own pace and never wait."""
        self.title, self._notice = title, notice
        self._model, self._frames, self._board, self._live = model, frames, board, live
        self._playing = threading.Event()
        if live:
            self._playing.set()
        self._closed = threading.Event()
        self._engine = Engine(
            model=model,
            cameras=[CAMERA],
            options=options or EngineOptions(lost_timeout_s=60.0),
            listener=self,
        )
        self._engine.start()
        # A video waits for the model, so that captions do not depend on the machine; a webcam does not.
        self._pace = Pace(follow=not live, max_lag_s=self._engine.options.caption_period_s / 2)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._thread.start()

    @property
    def notice(self) -> str:
        """See Source."""
        return self._notice

    @property
    def pace(self) -> str:
        """See Source."""
        return self._pace.report()

    @property
    def playing(self) -> bool | None:
        """See Source."""
        return None if self._live else self._playing.is_set()

    def play_or_pause(self) -> None:
        """See Source."""
        if self._live or not self._playing.is_set():
            self._playing.set()
        else:
            self._playing.clear()

    def perceive(self, request: PromptRequest) -> Future[Region]:
        """See Source."""
        try:
            return self._engine.perceive(CAMERA, request).future
        except PamError as error:
            future: Future[Region] = Future()
            future.set_exception(error)
            return future

    def remove(self, region_id: int) -> None:
        """See Source."""
        with suppress(PamError):  # it is gone already
            if region_id:
                self._engine.remove_region(CAMERA, region_id)
            else:
                self._engine.clear_regions(CAMERA)

    def stream_captions(self, enabled: bool, language: Language) -> Future[None]:
        """See Source."""
        self._engine.options = replace(self._engine.options, streaming=enabled, caption_language=language)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        """See Source; the model is closed too."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._playing.set()
        self._thread.join(10.0)
        self._engine.stop()
        self._model.close()

    # --- the player

    def _run(self) -> None:
        """Plays to the end, again and again; a paused video keeps showing its frame."""
        base_ns = time.time_ns()
        while not self._closed.is_set():
            last_ns = 0
            self._pace.begin(base_ns)
            try:
                for frame in self._frames():
                    self._wait(frame.stamp_ns)
                    if self._closed.is_set():
                        return
                    last_ns = frame.stamp_ns
                    self._submit(replace(frame, camera=CAMERA, stamp_ns=base_ns + last_ns))
                    if not self._playing.is_set():
                        self._playing.wait()
                        self._pace.begin(base_ns, last_ns)
            except PamError as error:  # an unreadable file, or a webcam that was unplugged
                self._notice = str(error)
            if self._live:
                return
            self._playing.clear()
            self._playing.wait()
            base_ns += last_ns + int(_GAP_S * 1e9)

    def _wait(self, time_ns: int) -> None:
        """Waits until a frame at this time is due and the model has processed the previous one."""
        while not self._live and (left_s := self._pace.wait_s(time_ns)) > 0 and not self._closed.is_set():
            self._closed.wait(min(left_s, _WAKE_S))

    def _submit(self, frame: Frame) -> None:
        self._pace.sent(frame.stamp_ns)
        self._engine.submit_frame(frame)

    # --- results, on the engine's thread

    def on_frame(self, result: FrameResult) -> None:
        """See Listener."""
        self._pace.saw(result.stamp_ns, (region.region_id for region in result.regions))
        self._board.show_frame(result.image, result.regions, result.stamp_ns)

    def on_text(self, event: TextEvent) -> None:
        """See Listener."""
        self._board.show_text(event)

    def on_caption(self, event: CaptionEvent) -> None:
        """See Listener."""
        self._pace.caption((event.region_id, event.sequence), event.clip_end_ns, final=event.final)
        clip_ns = (event.clip_start_ns, event.clip_end_ns)
        self._board.show_caption(event.region_id, event.shown, clip_ns, final=event.final)

    def on_warning(self, camera: str, message: str) -> None:
        """See Listener. It may be about a caption."""
        self._pace.caption_failed()
        self._notice = message
