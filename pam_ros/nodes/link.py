"""Connects manager and perception nodes: requests to the active engine, results to their camera's node."""

from __future__ import annotations

from collections.abc import Mapping

from pam_ros.errors import NotActiveError
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent, FrameResult, Listener, TextEvent
from pam_ros.runtime.options import EngineOptions


class EngineLink:
    """The manager connects and disconnects it, the perception nodes send requests. Thread-safe."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options  # as the manager's parameters say, active or not
        self._engine: Engine | None = None
        self._reason = "the manager is starting"
        self.starting = False  # not active yet, but autostart will make it so

    def connect(self, engine: Engine) -> None:
        """Sends requests to this engine from now on."""
        self._engine = engine

    def disconnect(self, reason: str, *, starting: bool) -> None:
        """Answers requests with "not active" from now on; `reason` says why and what to do."""
        self._reason = reason
        self.starting = starting
        self._engine = None

    @property
    def active(self) -> bool:
        """Whether requests reach an engine."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The active engine. Raises NotActiveError saying why there is none and how to get one."""
        engine = self._engine
        if engine is None:
            raise NotActiveError(f"not active: {self._reason}")
        return engine


class CameraDispatch:
    """The engine's one listener: passes every result to the node of its camera."""

    def __init__(self, listeners: Mapping[str, Listener]) -> None:
        self._listeners = listeners

    def on_frame(self, result: FrameResult) -> None:
        """The masks of one frame."""
        self._listeners[result.camera].on_frame(result)

    def on_text(self, event: TextEvent) -> None:
        """A text of one region grew or ended."""
        self._listeners[event.camera].on_text(event)

    def on_caption(self, event: CaptionEvent) -> None:
        """A rolling caption grew or ended."""
        self._listeners[event.camera].on_caption(event)

    def on_warning(self, camera: str, message: str) -> None:
        """A problem that concerns no waiting caller."""
        self._listeners[camera].on_warning(camera, message)
