"""Encoders: towers, temporal encoders and XCLIP. The extra `models` is needed."""

from __future__ import annotations

from ..heads.temporal import TemporalLSTM, TemporalTransformer
from .clip import ClipText, ClipVision
from .clip.weights import load_clip
from .config import (
    ClipConfig,
    GrainConfig,
    ModelConfig,
    RecipeConfig,
    TemporalConfig,
    TextConfig,
    VisionConfig,
    four_grains,
)
from .towers import FeatureTower, FrameTower, TextTower, TimmTower, WordTower, build_vocabulary
from .xclip import XCLIP

__all__ = [
    "XCLIP",
    "ClipConfig",
    "ClipText",
    "ClipVision",
    "FeatureTower",
    "FrameTower",
    "GrainConfig",
    "ModelConfig",
    "RecipeConfig",
    "TemporalConfig",
    "TemporalLSTM",
    "TemporalTransformer",
    "TextConfig",
    "TextTower",
    "TimmTower",
    "VisionConfig",
    "WordTower",
    "build_vocabulary",
    "four_grains",
    "load_clip",
]
