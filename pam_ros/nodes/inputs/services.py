"""The services and the action of one camera: each hands over to the engine and awaits its answer.

Waiting never blocks the executor: a coroutine awaits an rclpy future that the engine's worker resolves, so
one thread serves any number of requests at the same time.
"""

from __future__ import annotations

import concurrent.futures
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import Header

from pam_ros.action import CaptionClip
from pam_ros.errors import CancelledError, PamError, without_frames
from pam_ros.msg import Status
from pam_ros.nodes.conversions import caption_message, region_message, status_of, time_message
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.requests import PromptDefaults, find_request, prompt_request, survey_header, survey_request
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import DepthImage, Language, Region
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.requests import RequestHandle, SurveyRequest, SurveyResult
from pam_ros.srv import CaptionNow, ClearRegions, Find, PerceiveAll, PerceiveRegion, RemoveRegion

T = TypeVar("T")

_SERVICE_DEPTH = 100  # the usual 10 silently loses requests that come in a burst
_MOST_REQUESTS = 1024  # concurrent, whatever the parameters say
_RESULT_TIMEOUT_S = 60  # how long an action's result can be fetched; rclpy's 15 minutes would pile them up


class _SteadyNode:
    """A node for an action server, whose results expire by its clock: simulated time may stand still.

    The stamps of goals are of that clock, too.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)

    def get_clock(self) -> Clock:
        """The steady clock."""
        return self._clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


class Services:
    """Services perceive(_all), find, remove_region, clear_regions, caption_now; action caption_clip."""

    def __init__(
        self,
        node: Node,
        *,
        camera: str,
        link: EngineLink,
        log: ThrottledLog,
        defaults: Callable[[], PromptDefaults],
        frame_id: Callable[[], str],
        surfaces: Surfaces,
    ) -> None:
        self.waiting = 0  # requests that the engine has not answered yet
        self._node = node
        self._camera = camera
        self._link = link
        self._log = log
        self._defaults = defaults
        self._frame_id = frame_id
        self._surfaces = surfaces
        self._waiter = Sink("depth for answers", _do, log.warn, capacity=_MOST_REQUESTS)
        group = ReentrantCallbackGroup()
        services = (
            (PerceiveRegion, "perceive", self._perceive),
            (PerceiveAll, "perceive_all", self._perceive_all),
            (Find, "find", self._find),
            (RemoveRegion, "remove_region", self._remove_region),
            (ClearRegions, "clear_regions", self._clear_regions),
            (CaptionNow, "caption_now", self._caption_now),
        )
        for kind, service, callback in services:
            qos = QoSProfile(depth=_SERVICE_DEPTH)
            node.create_service(kind, f"~/{service}", callback, qos_profile=qos, callback_group=group)
        self._clips: dict[bytes, RequestHandle[CaptionEvent]] = {}  # goal id → its request, while it runs
        self._feedback = Sink("~/caption_clip feedback", _publish_feedback, log.warn, capacity=_SERVICE_DEPTH)
        self._action = ActionServer(
            _SteadyNode(node),
            CaptionClip,
            "~/caption_clip",
            self._caption_clip,
            callback_group=group,
            cancel_callback=self._cancel_clip,
            goal_service_qos_profile=QoSProfile(depth=_SERVICE_DEPTH),
            result_service_qos_profile=QoSProfile(depth=_SERVICE_DEPTH),
            cancel_service_qos_profile=QoSProfile(depth=_SERVICE_DEPTH),
            result_timeout=_RESULT_TIMEOUT_S,
        )

    def destroy(self) -> None:
        """Ends the threads and frees the action server, which the node does not own."""
        for sink in (self._feedback, self._waiter):
            sink.discard()
            sink.close()
            sink.join()
        self._action.destroy()

    # --- services

    async def _perceive(
        self, request: PerceiveRegion.Request, response: PerceiveRegion.Response
    ) -> PerceiveRegion.Response:
        try:
            engine = self._link.engine
            own_image = request.image if request.image.data or request.image.width else None
            prompt = prompt_request(request.prompt, self._defaults(), own_image)
            handle = engine.perceive(self._camera, prompt)
            depth = None if own_image is not None else await self._depth_of(handle)
            region = await self._settled(handle.future)
            if own_image is not None:
                response.header = own_image.header
            else:
                (region,) = await self._measured((region,), region.last_visible_ns, depth)
                response.header = Header(
                    stamp=time_message(region.last_visible_ns), frame_id=self._frame_id()
                )
            response.region = region_message(region, response.header, with_mask=not request.without_mask)
            response.status = status_of(None)
        except Exception as error:
            response.status = self._failure("~/perceive", error)
        return response

    async def _perceive_all(
        self, request: PerceiveAll.Request, response: PerceiveAll.Response
    ) -> PerceiveAll.Response:
        try:
            await self._survey(survey_request(request, self._defaults()), request, response)
        except Exception as error:
            response.status = self._failure("~/perceive_all", error)
        return response

    async def _find(self, request: Find.Request, response: Find.Response) -> Find.Response:
        try:
            result = await self._survey(find_request(request), request, response)
            response.scores = list(result.scores)
            min_score = float(request.min_score) or self._link.options.find_min_score
            response.fitting = result.fitting(min_score)
        except Exception as error:
            response.status = self._failure("~/find", error)
        return response

    async def _survey(
        self,
        content: SurveyRequest,
        request: PerceiveAll.Request | Find.Request,
        response: PerceiveAll.Response | Find.Response,
    ) -> SurveyResult:
        """Runs a survey and fills in what both services answer."""
        handle = self._link.engine.survey(self._camera, content)
        depth = None if content.image is not None else await self._depth_of(handle)
        result = await self._settled(handle.future)
        if content.image is None:
            if handle.framed.result() != result.stamp_ns:  # one of several known regions is not in view
                depth = None
            result = replace(result, regions=await self._measured(result.regions, result.stamp_ns, depth))
        limits = list(result.warnings)
        if not result.complete:
            limits.append("the search's budget ended before everything was searched; raise all.budget_s")
        for line in limits:
            self._log.warn(line)
        response.header = survey_header(result, request.image)
        response.regions = [
            region_message(region, response.header, with_mask=not request.without_mask)
            for region in result.regions
        ]
        response.complete = result.complete
        if isinstance(response, PerceiveAll.Response):
            response.left_out = result.left_out
        response.status = status_of(None)
        response.status.message = "; ".join(limits)
        return result

    def _remove_region(
        self, request: RemoveRegion.Request, response: RemoveRegion.Response
    ) -> RemoveRegion.Response:
        try:
            self._link.engine.remove_region(self._camera, request.region_id)
            response.status = status_of(None)
        except Exception as error:
            response.status = self._failure("~/remove_region", error)
        return response

    def _clear_regions(
        self, request: ClearRegions.Request, response: ClearRegions.Response
    ) -> ClearRegions.Response:
        try:
            response.removed = self._link.engine.clear_regions(self._camera)
            response.status = status_of(None)
        except Exception as error:
            response.status = self._failure("~/clear_regions", error)
        return response

    async def _caption_now(
        self, request: CaptionNow.Request, response: CaptionNow.Response
    ) -> CaptionNow.Response:
        try:
            engine = self._link.engine
            language = self._caption_language(request.language)
            handle = engine.caption_now(self._camera, request.region_id, language)
            event = await self._settled(handle.future)
            response.caption = caption_message(event)
            response.status = status_of(None)
        except Exception as error:
            response.status = self._failure("~/caption_now", error)
        return response

    # --- the action

    async def _caption_clip(self, goal: ServerGoalHandle) -> CaptionClip.Result:
        result = CaptionClip.Result()
        goal_id = bytes(goal.goal_id.uuid)
        try:
            handle = self._start_clip(goal)
            self._clips[goal_id] = handle
            if goal.is_cancel_requested:  # before the handle was registered
                handle.cancel()
            event = await self._settled(handle.future)
            result.caption = caption_message(event)
            result.status = Status(code=Status.OK, message=event.cut_short)
        except Exception as error:
            result.status = self._failure("~/caption_clip", error)
        self._clips.pop(goal_id, None)
        if result.status.code == Status.OK:
            goal.succeed()
        elif result.status.code == Status.CANCELLED and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return result

    def _start_clip(self, goal: ServerGoalHandle) -> RequestHandle[CaptionEvent]:
        def on_progress(recorded_s: float, text: str) -> None:  # on the engine's thread
            self._feedback.offer((goal, recorded_s, text), key=bytes(goal.goal_id.uuid))

        return self._link.engine.caption_clip(
            self._camera,
            prompt_request(goal.request.prompt, self._defaults()),
            float(goal.request.duration_s),
            self._caption_language(goal.request.language),
            on_progress,
        )

    def _cancel_clip(self, goal: ServerGoalHandle) -> CancelResponse:
        handle = self._clips.get(bytes(goal.goal_id.uuid))
        if handle is not None:
            handle.cancel()
        return CancelResponse.ACCEPT

    # --- helpers

    async def _settled(self, future: concurrent.futures.Future[T]) -> T:
        """The future's value, or its error raised."""
        executor = self._node.executor
        waiter = Future(executor=executor)

        def resume(_: object) -> None:
            waiter.set_result(None)
            executor.wake()  # Jazzy looks at waiting coroutines only when something wakes it

        self.waiting += 1
        future.add_done_callback(resume)
        await waiter
        self.waiting -= 1
        return future.result()

    async def _depth_of(self, handle: RequestHandle[T]) -> DepthImage | None:
        """The depth of the frame that the answer will be about, fetched before it is dropped."""
        stamp_ns = await self._settled(handle.framed)
        return None if stamp_ns is None else await self._on_thread(partial(self._surfaces.depth_at, stamp_ns))

    async def _measured(
        self, regions: tuple[Region, ...], stamp_ns: int, depth: DepthImage | None
    ) -> tuple[Region, ...]:
        """The regions of that frame with their surfaces; `depth` is looked up if it is of another frame."""
        return await self._on_thread(partial(self._surfaces.of_regions, regions, stamp_ns, depth))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """Does what may wait for depth, on the thread that is there for it."""
        handle = RequestHandle[T]()
        self._waiter.offer(partial(_resolve, handle, work), key=handle)
        return await self._settled(handle.future)

    def _caption_language(self, code: str) -> Language:
        return Language.parse(code) if code else self._link.options.caption_language

    def _failure(self, name: str, error: Exception) -> Status:
        """The status to answer with. Logs a bad request as a warning, a fault of this package as an error."""
        status = status_of(error)
        if status.code == Status.INTERNAL:
            details = "" if isinstance(error, PamError) else "\n" + "".join(traceback.format_exception(error))
            self._log.error(f"{name} failed: {status.message}{details}")
        elif status.code == Status.NOT_ACTIVE and self._link.starting:
            self._log.inform_once(f"{name} refused until autostart has loaded the model")
        elif not isinstance(error, CancelledError):
            self._log.warn(f"{name} refused: {status.message}")
        without_frames(error)  # the request's future keeps it
        return status


def _do(work: Callable[[], None]) -> None:
    work()


def _resolve(handle: RequestHandle[T], work: Callable[[], T]) -> None:
    """Settles the handle, whatever happens: its caller waits."""
    try:
        handle.resolve(work())
    except PamError as error:
        handle.fail(error)
    except Exception as error:
        handle.future.set_exception(error)


def _publish_feedback(progress: tuple[ServerGoalHandle, float, str]) -> None:
    goal, recorded_s, text = progress
    goal.publish_feedback(CaptionClip.Feedback(recorded_s=float(recorded_s), partial_text=text))
