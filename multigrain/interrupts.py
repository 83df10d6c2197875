"""Handle Ctrl-C while the command line is still importing: one line and exit code 130, as after the imports."""

from __future__ import annotations

import os
import sys
from types import TracebackType


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("multigrain: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


# Only for `multigrain ...` and `python -u -m multigrain.cli ...`; a program that imports the package is left alone.
if {"multigrain", "multigrain.exe", "multigrain.cli"} & {os.path.basename(name) for name in sys.orig_argv[1:4]}:
    sys.excepthook = _say
