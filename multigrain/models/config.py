"""What an XCLIP is made of, as plain data: written in YAML, saved as JSON beside the weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..aggregators import Aggregator, build_aggregator
from ..grains import Grain
from ..scorer import MultiGrain

_COARSE = {"sentence", "video"}


@dataclass(frozen=True)
class VisionConfig:
    """The frame tower: a timm model by name, with the arguments of timm.create_model."""

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class TextConfig:
    """The word transformer."""

    width: int = 128
    depth: int = 2
    heads: int = 4
    max_words: int = 48


@dataclass(frozen=True)
class TemporalConfig:
    """The temporal transformer; depth 0 leaves it out (the video vector is the mean of the frames)."""

    depth: int = 1
    heads: int = 4
    max_frames: int = 12


@dataclass(frozen=True)
class GrainConfig:
    """One grain.

    `aggregator` is a registered name ("mean_max") or {"class_path": "multigrain.AOSM", "init_args": {...}}; None
    takes the model's, or none where both sides are one vector.
    """

    query: str
    candidate: str
    aggregator: str | dict[str, Any] | None = None
    bilinear: bool = False
    name: str | None = None

    def build(self, dim: int, default: str | dict[str, Any]) -> Grain:
        """The Grain, for features of width `dim`; `default` is the model's aggregator."""
        spec = self.aggregator
        if spec is None and not {self.query, self.candidate} <= _COARSE:
            spec = default
        return Grain(self.query, self.candidate, build_from_spec(spec), dim if self.bilinear else None, self.name)


def four_grains() -> list[GrainConfig]:
    """X-CLIP's four grains, with the model's aggregator."""
    return [GrainConfig(query, candidate) for candidate in ("video", "frame") for query in ("sentence", "word")]


@dataclass(frozen=True)
class ModelConfig:
    """All settings of an XCLIP with towers trained from scratch.

    Args:
        dim: D of all features.
        grains, weights: see MultiGrain.
        aggregator: of the grains that name none, as in GrainConfig.
        frame_source: the frames that the fine grains see: "raw", before the temporal encoder (the paper), or
            "temporal", after it.
        masked: keep padding out of the fine grains; False exists to match models trained that way.
        init_logit_scale: start of the logarithm of the logits' multiplier.
        dropout: in the text and the temporal transformer.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    dim: int = 128
    grains: list[GrainConfig] = field(default_factory=four_grains)
    aggregator: str | dict[str, Any] = "aosm"
    weights: str | list[float] = "mean"
    frame_source: str = "raw"
    masked: bool = True
    init_logit_scale: float = 3.0
    dropout: float = 0.1

    def scorer(self) -> MultiGrain:
        """The MultiGrain of these grains."""
        return MultiGrain(*(grain.build(self.dim, self.aggregator) for grain in self.grains), weights=self.weights)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of dataclasses.asdict.

        Raises:
            TypeError: unknown settings.
        """
        nested: dict[str, Any] = {
            "vision": VisionConfig(**values["vision"]),
            "text": TextConfig(**values["text"]),
            "temporal": TemporalConfig(**values["temporal"]),
            "grains": [GrainConfig(**grain) for grain in values["grains"]],
        }
        return ModelConfig(**{**values, **nested})


def build_from_spec(spec: str | Mapping[str, Any] | None) -> Aggregator | None:
    """An aggregator from a registered name, or from {"class_path": ..., "init_args": {...}}.

    A class path is a dotted path to a subclass of Aggregator in an installed module, or a registered name.

    Raises:
        ValueError: nothing of that name, or arguments that it does not take.
        TypeError: the path leads to something else than an Aggregator.
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if unknown := set(spec) - {"class_path", "init_args"}:
        raise ValueError(f"aggregator: expected class_path and init_args, got {', '.join(sorted(unknown))}")
    path, arguments = str(spec["class_path"]), dict(spec.get("init_args") or {})
    try:
        if "." not in path:
            return build_aggregator(path, **arguments)
        module, name = path.rsplit(".", 1)
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"aggregator: expected the path of a class, got {path!r}: {error}") from error
    except TypeError as error:
        raise ValueError(f"aggregator {path}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Aggregator)):
        raise TypeError(f"aggregator: expected a subclass of multigrain.Aggregator, got {path}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"aggregator {path}: {error}") from error
