"""Videos as frames for a tower: the choice of frames, and their reading. The extra ``data`` is needed."""

from .container import VideoError
from .read import BACKENDS, STRATEGIES, Sampling, batch, read_video, sample

__all__ = ["BACKENDS", "STRATEGIES", "Sampling", "VideoError", "batch", "read_video", "sample"]
