"""Encoders: towers, temporal encoders and XCLIP. Needs the extra `models`."""

from __future__ import annotations

from .config import GrainConfig, ModelConfig, TemporalConfig, TextConfig, VisionConfig, four_grains
from .temporal import TemporalTransformer
from .towers import FrameTower, TextTower, TimmTower, WordTower, build_vocabulary
from .xclip import XCLIP

__all__ = [
    "XCLIP",
    "FrameTower",
    "GrainConfig",
    "ModelConfig",
    "TemporalConfig",
    "TemporalTransformer",
    "TextConfig",
    "TextTower",
    "TimmTower",
    "VisionConfig",
    "WordTower",
    "build_vocabulary",
    "four_grains",
]
