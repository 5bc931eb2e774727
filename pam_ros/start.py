"""Starts an executable: until its modules are imported, Ctrl-C ends the process without a traceback."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import NoReturn


def start(module: str) -> NoReturn:
    """Imports the module, calls its `main`, and exits with what that returns."""
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, by nohup
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    main = importlib.import_module(module).main
    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())


def pam() -> NoReturn:
    """The command `pam`, as pip installs it."""
    start("pam_ros.cli.main")
