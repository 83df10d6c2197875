"""Videos as frames for a tower: which frames are taken, and how they are read. Needs the extra ``data``."""

from .container import VideoError
from .read import BACKENDS, STRATEGIES, Sampling, batch, read_video, sample

__all__ = ["BACKENDS", "STRATEGIES", "Sampling", "VideoError", "batch", "read_video", "sample"]
