"""The command line, a client of the rest; see `multigrain --help`. Needs the extra ``cli``."""

from .main import main

__all__ = ["main"]
