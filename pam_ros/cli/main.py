"""The command `pam`: collects the command groups, prints errors in one line."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.markup import escape

from pam_ros.cli import bench, doctor, evaluate, models, perceive, ros, text_server, view
from pam_ros.cli.common import console, note
from pam_ros.cli.scenes import scenes_app
from pam_ros.errors import TRAINING_EXTRA, PamError
from pam_ros.signals import Stopped, exit_code, raise_on_signals

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Perceive Anything Model: segment, describe and caption regions of images and videos.",
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
    evaluate.evaluate,
    bench.bench,
    bench.bench_curves,
    ros.bag,
    ros.demo,
    ros.soak,
    ros.bench_node,
):
    app.command()(command)
app.add_typer(scenes_app, name="scenes")


def main() -> None:
    """Entry point. Errors of this package, and a signal, end it with one line; see EXIT_CODES."""
    raise_on_signals()
    try:
        app()
    except Stopped as stopped:
        note(f"stopped by {stopped}: {stopped.partial}")
        sys.exit(exit_code(stopped.number))
    except PamError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        if TRAINING_EXTRA not in str(error):
            raise
        _end(str(error))


def _end(why: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(why)}", highlight=False, soft_wrap=not console.is_terminal)
    sys.exit(2)


if __name__ == "__main__":
    main()
