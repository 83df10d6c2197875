"""CLIP's two towers, and the kinds of files that its weights come in."""

from .towers import MEAN, STD, ClipText, ClipVision, freeze_layers

__all__ = ["MEAN", "STD", "ClipText", "ClipVision", "freeze_layers"]
