"""Starts an executable: quickly, and until its modules are imported, Ctrl-C ends it without a traceback."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from typing import NoReturn


def start(module: str) -> NoReturn:
    """Imports the module, calls its `main`, and exits with what that returns."""
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, by nohup
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # a fifth of the time of importing; nothing of it is garbage
    main = importlib.import_module(module).main
    gc.freeze()
    gc.enable()
    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())


def pam() -> NoReturn:
    """The command `pam`, as pip installs it."""
    start("pam_ros.cli.main")
