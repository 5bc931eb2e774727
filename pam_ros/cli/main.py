"""The command `pam`: collects the command groups, prints errors in one line."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from pam_ros.cli import bench, doctor, evaluate, licences, models, perceive, ros, text_server, view
from pam_ros.cli.output import be_quiet, be_verbose, console, finish_output, guard_streams, note
from pam_ros.cli.scenes import scenes_app
from pam_ros.errors import TRAINING_EXTRA, OutputError, PamError
from pam_ros.share import version
from pam_ros.signals import Stopped, exit_code, leave, raising_on_signals

ERROR = 2
EXIT_CODES = {  # as docs/command_line.md lists them
    0: "done",
    1: "done, and the answer is no: nothing was found or fits, a limit is exceeded, a check failed",
    ERROR: "an error, reported in one line",
    exit_code(signal.SIGINT): "stopped by SIGINT (Ctrl-C)",
    exit_code(signal.SIGTERM): "stopped by SIGTERM",
}
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Perceive Anything Model: segment, describe and caption regions of images and videos. "
    "The bundled pam-tiny is a demonstration model: it knows rendered objects only.",
    rich_markup_mode=None,
)
for command in (
    perceive.perceive,
    perceive.find,
    perceive.caption,
    view.view,
    models.models,
    models.fetch,
    models.parity,
    text_server.export_language,
    text_server.text_server,
    doctor.doctor,
    licences.licences,
    evaluate.evaluate,
    bench.bench,
    bench.bench_curves,
    ros.bag,
    ros.demo,
    ros.soak,
    ros.bench_node,
):
    app.command()(command)
app.command("licenses", hidden=True)(licences.licences)
app.add_typer(scenes_app, name="scenes")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pam_ros {version()}")
        raise typer.Exit


@app.callback()
def common_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="show only results and errors")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show the log, and tracebacks")] = False,
) -> None:
    """Options before the command; exit codes and output: docs/command_line.md."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose cannot be combined")
    if quiet:
        be_quiet()
    if verbose:
        be_verbose()


def main() -> None:
    """Entry point. Errors of this package, and a signal, end it with one line; see EXIT_CODES."""
    guard_streams()
    with raising_on_signals():
        try:
            try:
                app()
            finally:
                finish_output()
        except Stopped as stopped:
            note(f"stopped by {stopped}: {stopped.partial}")
            leave(exit_code(stopped.number))
        except PamError as error:
            _end(error)
        except ModuleNotFoundError as error:
            if TRAINING_EXTRA not in str(error):
                raise
            _end(error)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            _end(
                OutputError(
                    f"cannot write {error.filename or 'the results'}: {error.strerror}; free some space"
                )
            )


def _end(error: Exception) -> NoReturn:
    """Prints an error in one line, also with --quiet."""
    console.quiet = False
    if logging.getLogger("pam_ros").isEnabledFor(logging.DEBUG):
        note("".join(traceback.format_exception(error)))
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(ERROR)


if __name__ == "__main__":
    main()
