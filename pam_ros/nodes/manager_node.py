"""The lifecycle node: loads the model, starts and stops the engine, frees both.

What a state creates, its mirror destroys: configure ↔ cleanup (model, engine), activate ↔ deactivate
(the engine's worker).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.timer import Timer
from std_msgs.msg import Header

from pam_ros.errors import CancelledError, ModelError
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.options import LoadOptions
from pam_ros.nodes.lifecycle_answers import answer_every_request
from pam_ros.nodes.link import CameraDispatch, EngineLink
from pam_ros.nodes.outputs.diagnostics import Health, Phase, report
from pam_ros.nodes.parameters import MANAGER, ManagerSettings, declare, manager_settings
from pam_ros.nodes.perception_node import PerceptionNode
from pam_ros.runtime.engine import Engine
from pam_ros.threads import in_temporary_thread

_SUCCESS, _FAILURE, _ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


class Progress(Protocol):
    """Called by the loader with a line of progress."""

    def __call__(self, line: str) -> None: ...


class ModelFactory(Protocol):
    """`pam_ros.model.opening.open_model` or a test's fake: a warmed-up model. Raises a ModelError."""

    def __call__(self, options: LoadOptions, *, progress: Progress | None) -> PerceptionModel: ...


Transition = Callable[["ManagerNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: Transition) -> Transition:
    """Logs the exception of a transition, which rclpy silently turns into ERROR."""

    @functools.wraps(transition)
    def logged(node: ManagerNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
            return _ERROR

    return logged


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why configure failed, and what the transition returns."""

    cause: str
    result: TransitionCallbackReturn


class ManagerNode(LifecycleNode):
    """`pam_manager`."""

    def __init__(self, load_model: ModelFactory) -> None:
        super().__init__("pam_manager")
        declare(self, MANAGER)
        self.link = EngineLink(manager_settings(self).options)
        self.cameras = tuple(self.get_parameter("cameras").value)
        self._load_model = load_model
        self._nodes: Sequence[PerceptionNode] = ()
        self._model: PerceptionModel | None = None
        self._engine: Engine | None = None
        self._region_ids: dict[str, Iterator[int]] = {}  # they go on when the model is loaded again
        self._most_regions = 0  # that the loaded model has memory for, per camera; 0 = any number
        self._wanted_regions = 0  # as set last
        self._text_problem = ""  # as logged last
        self._stopping = threading.Event()
        # True until autostart has succeeded or failed.
        self._starting: bool = self.get_parameter("autostart").value
        self._enter(Phase.UNCONFIGURED)
        self.add_post_set_parameters_callback(self._take_options)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._twins: set[str] = set()  # names of nodes here that others have, too
        answer_every_request(self)

    def serve(self, nodes: Sequence[PerceptionNode]) -> None:
        """Sets the perception nodes, one per camera; required before configure."""
        self._nodes = nodes
        # A steady clock: with simulated time and no /clock yet, timers of the node's own clock never fire.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        # On a perception node's executor, so that a transition does not stop the diagnostics.
        nodes[0].create_timer(1.0, self._publish_diagnostics, clock=clock)
        if not self._starting:
            self.get_logger().info(
                f"{self._health.phase.value}; {self._health.advice} (or start with -p autostart:=true)"
            )
        else:
            # On the manager's executor, like the lifecycle services: two transitions never run at once.
            self._autostart_timer: Timer = self.create_timer(0.1, self._autostart, clock=clock)

    def abandon(self) -> None:
        """Cancels a running configure at its next line of progress. Thread-safe."""
        self._stopping.set()

    def destroy_node(self) -> None:
        """Destroys the node immediately: rclpy's state machine would keep it in the graph for 20 s."""
        super().destroy_node()
        self._state_machine = None

    # --- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads and warms up the model, makes the engine. A FAILURE names its cause and frees everything."""
        problem = self._configure_or_say_why(manager_settings(self))
        if problem is None:
            self._enter(Phase.INACTIVE)
            return _SUCCESS
        self._free()
        self._enter(Phase.FAILED, problem.cause)
        if self._stopping.is_set():
            return problem.result
        self.get_logger().error(
            f"configure failed and no model is loaded. {problem.cause}. "
            f"The process keeps running; {self._health.advice}"
        )
        return problem.result

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts the engine: frames are buffered, requests processed."""
        if self._engine is None:
            self.get_logger().error("cannot activate before configure")
            return _ERROR
        self._engine.options = self.link.options
        self._engine.start()
        self.link.connect(self._engine)
        self._enter(Phase.ACTIVE)
        reading = ", ".join(f"{it.get_fully_qualified_name()} reads {it.image_topic}" for it in self._nodes)
        self.get_logger().info(f"active: {reading}")
        return _SUCCESS

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops the engine: cancels pending requests, forgets the regions, keeps the model."""
        self._stop_engine()
        return _SUCCESS

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the model."""
        self._free()
        self._enter(Phase.UNCONFIGURED)
        return _SUCCESS

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops and frees everything, from any state."""
        self._stop_engine()
        self._free()
        self._enter(Phase.FINALIZED)
        return _SUCCESS

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees everything after a fault in a transition, and goes back to unconfigured."""
        self._stop_engine()
        self._free()
        if self._health.phase is not Phase.FAILED:
            self._enter(Phase.FAILED, f"a transition from {state.label} failed; the log has the traceback")
        return _SUCCESS

    # --- steps of the transitions

    def _configure_or_say_why(self, settings: ManagerSettings) -> _Problem | None:
        """The caller frees what a failure leaves, once the exception that refers to it is gone."""
        self._enter(Phase.CONFIGURING, f"loading {settings.load.model}")
        try:
            self._configure(settings)
        except ModelError as error:
            return _Problem(f"{type(error).__name__}: {error}", _FAILURE)
        except CancelledError as error:
            return _Problem(str(error), _FAILURE)
        except Exception as error:
            self.get_logger().error(traceback.format_exc())
            return _Problem(f"{type(error).__name__}: {error}", _ERROR)
        return None

    def _configure(self, settings: ManagerSettings) -> None:
        load = settings.load
        self.get_logger().info(f"loading model {load.model!r} (device {load.device}, dtype {load.dtype})")
        self._model = model = in_temporary_thread(
            lambda: self._load_model(load, progress=self._show_progress)
        )
        self._engine = Engine(
            model=model,
            cameras=self.cameras,
            options=settings.options,
            listener=CameraDispatch({node.camera: node for node in self._nodes}),
            region_ids=self._region_ids,
        )
        info = model.info
        self._most_regions = info.max_regions // len(self.cameras)
        self._take_options(None)
        what = (
            f"{info.name} (demonstration: knows rendered objects only)" if info.demonstration else info.name
        )
        sure = "calibrated" if info.calibrated else "uncalibrated: raw token probabilities"
        self.get_logger().info(f"model {what} is ready: {info.dtype} on {info.device}; confidences {sure}")

    def _show_progress(self, line: str) -> None:
        if self._stopping.is_set():
            raise CancelledError("the process is shutting down")
        self._enter(Phase.CONFIGURING, line)
        self.get_logger().info(line)

    def _stop_engine(self) -> None:
        if self._engine is None:
            return
        self._enter(Phase.INACTIVE)  # first, so that new requests are answered "not active"
        self._engine.stop()
        for node in self._nodes:
            node.clear()

    def _free(self) -> None:
        self._engine = None
        self._most_regions = 0
        model, self._model = self._model, None
        if model is not None:
            try:
                model.close()
            except Exception:  # the rest must still be freed
                self.get_logger().error(f"closing the model failed:\n{traceback.format_exc()}")
        del model
        return_memory()

    def _enter(self, phase: Phase, cause: str = "") -> None:
        """Records the phase for the diagnostics and for the answer "not active"."""
        name = self.get_fully_qualified_name()
        configure, activate = f"ros2 lifecycle set {name} configure", f"ros2 lifecycle set {name} activate"
        starting = self._starting and phase in (Phase.UNCONFIGURED, Phase.CONFIGURING, Phase.INACTIVE)
        advice = {
            Phase.UNCONFIGURED: f"run: {configure}; then: {activate}",
            Phase.FAILED: f"fix the cause, then run: {configure}; then: {activate}; or restart the process",
            Phase.CONFIGURING: f"after loading, run: {activate}",
            Phase.INACTIVE: f"run: {activate}",
            Phase.ACTIVE: "",
            Phase.FINALIZED: "restart the process",
        }[phase]
        if starting:
            advice = "autostart will activate it; no action needed"
        model = self._model.info if self._model is not None else None
        self._health = Health(phase=phase, cause=cause, advice=advice, model=model)
        if phase is not Phase.ACTIVE:
            why = f" ({cause})" if cause else ""
            self.link.disconnect(f"{name} is {phase.value}{why}; {advice}", starting=starting)

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self._health.phase is Phase.UNCONFIGURED:
            self.trigger_configure()
        if self._health.phase is Phase.INACTIVE:  # or another client's configure came first
            self.trigger_activate()
        self._starting = False

    def _take_options(self, _: object) -> None:
        options, most = manager_settings(self).options, self._most_regions
        wanted = options.max_regions
        if 0 < most < wanted:
            if wanted != self._wanted_regions:
                self.get_logger().warning(
                    f"regions.max stays {most} until the next configure: the model has no memory for more"
                )
            options = replace(options, max_regions=most)
        self._wanted_regions = wanted
        self.link.options = options
        if self._engine is not None:
            self._engine.options = options

    def _publish_diagnostics(self) -> None:
        self._report_twins()
        engine = self._engine
        statistics = engine.statistics() if engine is not None and self.link.active else None
        self._report_texts(statistics.text_problem if statistics is not None else "")
        header = Header(stamp=self.get_clock().now().to_msg())
        name = self.get_fully_qualified_name()
        self._diagnostics.publish(report(name, self._health, statistics, self._nodes, header))

    def _report_twins(self) -> None:
        """Warns of other nodes with the same name as one of this process."""
        there = Counter(f"{space.rstrip('/')}/{name}" for name, space in self.get_node_names_and_namespaces())
        own = {self.get_fully_qualified_name(), *(node.get_fully_qualified_name() for node in self._nodes)}
        twins = {name for name in own if there[name] > 1}
        if new := sorted(twins - self._twins):
            self.get_logger().warning(
                f"another node is called {' and '.join(new)}: requests reach either of them, and topics mix; "
                "end one, or start it with another namespace (namespace:=… or -r __ns:=/…)"
            )
        self._twins = twins

    def _report_texts(self, problem: str) -> None:
        """Logs when text generation stops working and when it works again."""
        before, self._text_problem = self._text_problem, problem
        if problem and problem != before:
            self.get_logger().warning(f"no texts: {problem}")
        elif before and not problem and self.link.active:
            self.get_logger().info("text generation works again")


def return_memory() -> None:
    """Returns freed memory to the system and the GPU, which Python and glibc would keep."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
