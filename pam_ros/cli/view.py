"""`pam view`: shows a video, a webcam or a running node on a page in the browser."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pam_ros.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    Sam2Option,
    load,
    within,
)
from pam_ros.cli.output import note, working
from pam_ros.cli.ros import ros_module
from pam_ros.errors import InputError, StateError
from pam_ros.model.descriptions import AUTO, DEMONSTRATION
from pam_ros.model.loading.options import LoadOptions
from pam_ros.signals import Stopped

DISCOVERY_S = 3.0  # after which a node that was not found is reported, on the page and here

if TYPE_CHECKING:
    from pam_ros.records import Frame
    from pam_ros.viewer.board import Board, Source


def view(
    what: Annotated[
        str | None,
        typer.Argument(
            help="video file, or webcam number or device; nothing = a running node", metavar="VIDEO|WEBCAM"
        ),
    ] = None,
    node: Annotated[
        str, typer.Option("--node", help="perception node to show if no video is given", metavar="NODE")
    ] = "/pam",
    port: Annotated[
        int,
        typer.Option(
            "--port", callback=within(1, 65535), help="port of the page on this machine", metavar="N"
        ),
    ] = 8080,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page")] = True,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
) -> None:
    """Show and prompt a video, webcam or node in the browser.

    Click an object, or drag a box around it. The page is reachable from this machine only.
    """
    try:
        from pam_ros.viewer import page
    except ImportError as error:
        raise StateError(
            f"`pam view` needs NiceGUI ({error}); in the sources run: pip install -r .setup/view.txt"
        ) from error
    from pam_ros.viewer.board import Board

    _check_port(page.HOST, port)
    board = Board()
    if what is None:
        source: Source = ros_module("view_source", "view").NodeSource(node, board)
        patience = threading.Timer(DISCOVERY_S, _say_notice, [source])
        patience.daemon = True
        patience.start()
    else:
        source = _video_source(what, board, LoadOptions(model, device, dtype, sam2, quantization))
    note(f"showing {source.title} on http://{page.HOST}:{port}; press Ctrl+C to stop")
    with suppress(Stopped):  # that is how it ends
        page.serve(board, source, port=port, open_browser=browser)


def _say_notice(source: Source) -> None:
    """Prints the notice here, too: the page may not be open yet."""
    if source.notice:
        note(source.notice)


def _check_port(host: str, port: int) -> None:
    """Raises StateError if the page cannot be served there, before a model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise StateError(
                f"the page cannot use port {port} ({error}); choose another one with --port"
            ) from None


def _video_source(what: str, board: Board, options: LoadOptions) -> Source:
    """Checks that the video can be read before the model is loaded."""
    from pam_ros import media, videos
    from pam_ros.model.warm_up import warm_up
    from pam_ros.threads import in_temporary_thread
    from pam_ros.viewer.video_source import VideoSource

    live = what.isdecimal() or what.startswith("/dev/")

    def frames() -> Iterator[Frame]:
        return media.read_webcam(what) if live else videos.read_video(Path(what), note)

    if next(frames(), None) is None:
        raise InputError(f"{what} has no frames")
    pam = load(options)
    with working("warming up"):
        in_temporary_thread(lambda: warm_up(pam))
    title = f"{'webcam ' if live else ''}{what}, {pam.info.name} on {pam.info.device}"
    notice = DEMONSTRATION.replace("`", "") if pam.info.demonstration else ""
    return VideoSource(pam, frames, board, title=title, notice=notice, live=live)
