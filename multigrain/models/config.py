"""Settings of an XCLIP as plain data: written in YAML, saved as JSON together with the weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import checks, recipes
from ..aggregators import Aggregator, aggregator_classes, build_aggregator
from ..grains import Grain
from ..losses import InfoNCE
from ..scorer import MultiGrain
from . import settings
from .recipe import own_recipe

_COARSE = {"sentence", "video"}
TEMPORAL_KINDS = ("none", "transformer", "lstm")


@dataclass(frozen=True)
class VisionConfig:
    """The frame tower: a timm model by name, with the arguments of timm.create_model.

    Raises:
        ValueError: a number out of range.
    """

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name, value in self.kwargs.items():
            most = checks.MOST_LAYERS if "depth" in name else 1 << 16
            if isinstance(value, int) and not 0 <= value <= most:
                got = checks.short(value)
                raise ValueError(f"vision.kwargs.{name}: expected a number from 0 to {most:,}, got {got}")


@dataclass(frozen=True)
class TextConfig:
    """The word transformer.

    Raises:
        ValueError: a value out of range.
    """

    width: int = 128
    depth: int = 2
    heads: int = 4
    max_words: int = 48

    def __post_init__(self) -> None:
        checks.fields(self, checks.POSITIVE, "width", "heads", "max_words")
        checks.fields(self, checks.LAYERS, "depth")


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's two towers, in place of those that are trained from scratch.

    Args:
        weights: a file, a folder or an open_clip name (see load_clip). None: those of `architecture` start from
            random numbers.
        architecture: an open_clip name, its settings as a dict, or "openai": see load_clip, which also says when
            it can be left out.
        vision: a timm tower in place of CLIP's own (see XCLIP.from_timm).
        max_words: W, the most tokens of a caption, its first and last included; at most CLIP's context length.
        include_bos, include_eos: count the first and the last token of a caption among the words, as X-CLIP's code
            does. CLIP's first token says nothing about the caption.
        frozen: keep both towers as they are.
        frozen_layers: keep the embeddings and so many layers of each tower as they are; 0: the embeddings alone, as
            the scripts of X-CLIP do; None = train all.
        grad_checkpointing: compute activations again in the backward pass rather than keep them.

    Raises:
        ValueError: a value out of range.
    """

    weights: str | None = None
    architecture: str | dict[str, Any] | None = None
    vision: VisionConfig | None = None
    max_words: int = 32
    include_bos: bool = True
    include_eos: bool = True
    frozen: bool = False
    frozen_layers: int | None = None
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        checks.fields(self, checks.POSITIVE, "max_words")
        if self.max_words < 2:
            raise ValueError(f"max_words: expected at least 2 (the first and the last token), got {self.max_words}")
        if self.frozen_layers is not None:
            checks.fields(self, checks.NATURAL, "frozen_layers")


@dataclass(frozen=True)
class TemporalConfig:
    """The temporal encoder: it lets the frames of a video know each other before their mean is the video vector.

    Args:
        kind: "none", "transformer" (X-CLIP's; CLIP4Clip's seqTransf) or "lstm" (CLIP4Clip's seqLSTM).
        depth: blocks of the transformer; 0 leaves it out.
        heads: of the transformer. With CLIP's towers, it has the heads and the activation of CLIP's text
            transformer, and starts from the first layers and positions of that where the widths agree.
        max_frames: N, the most frames of a video.

    Raises:
        ValueError: an unknown kind, or a value out of range.
    """

    depth: int = 1
    heads: int = 4
    max_frames: int = 12
    kind: str = "transformer"

    def __post_init__(self) -> None:
        checks.choice("temporal kind", self.kind, TEMPORAL_KINDS)
        checks.fields(self, checks.LAYERS, "depth")
        checks.fields(self, checks.POSITIVE, "heads", "max_frames")


@dataclass(frozen=True)
class GrainConfig:
    """One grain, as in a YAML file: see Grain.

    Args:
        query, candidate: "sentence" or "word"; "video" or "frame".
        aggregator: a registered name ("mean_max") or {"class_path": "multigrain.AOSM", "init_args": {...}}; None
            takes the model's, or none where both sides are one vector.
        bilinear: learn a matrix between the two sides.
        name: how scores_by_grain calls it; default "query-candidate".
    """

    query: str
    candidate: str
    aggregator: str | dict[str, Any] | None = None
    bilinear: bool = False
    name: str | None = None

    def build(self, dim: int, default: str | dict[str, Any]) -> Grain:
        """Build the Grain for features of width `dim`; `default` is the model's aggregator."""
        spec = self.aggregator
        if spec is None and not {self.query, self.candidate} <= _COARSE:
            spec = default
        return Grain(self.query, self.candidate, build_from_spec(spec), dim if self.bilinear else None, self.name)


@dataclass(frozen=True)
class RecipeConfig:
    """A published system over the towers: heads, scorer and loss of multigrain.recipes.

    Args:
        name: see multigrain.recipes.names.
        settings: of the recipe of that name; `dim` is the model's, and so is `max_frames` where it is not set.
        word_weights: give the recipe the grain word_weight: the inverse document frequency of each word among the
            training sentences, log(N / n); 0 for words outside the vocabulary. For text towers trained from scratch.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    word_weights: bool = False

    def build(self, dim: int, max_frames: int) -> recipes.Recipe:
        """Build the recipe for features of width `dim` and at most `max_frames` frames.

        Raises:
            ValueError: no recipe of that name, or settings that it does not have or that do not fit.
        """
        try:
            return recipes.build(self.name, dim, **{"max_frames": max_frames, **self.settings})
        except TypeError as error:
            raise ValueError(f"recipe {self.name}: {error}") from error


def four_grains() -> list[GrainConfig]:
    """List X-CLIP's four grains, with the model's aggregator."""
    return [GrainConfig(query, candidate) for candidate in ("video", "frame") for query in ("sentence", "word")]


def mixing_grains(max_words: int, max_frames: int) -> list[GrainConfig]:
    """List X-CLIP's four grains with the eight learned matrices of its code (not of its paper)."""

    def aosm(**tokens: int) -> dict[str, Any]:
        return {"class_path": "multigrain.AOSM", "init_args": tokens}

    return [
        GrainConfig("sentence", "video", bilinear=True),
        GrainConfig("word", "video", aosm(query_tokens=max_words)),
        GrainConfig("sentence", "frame", aosm(candidate_tokens=max_frames)),
        GrainConfig("word", "frame", aosm(query_tokens=max_words, candidate_tokens=max_frames), bilinear=True),
    ]


@dataclass(frozen=True)
class ModelConfig:
    """All settings of an XCLIP.

    Args:
        recipe: another published system than X-CLIP: it brings the heads, the scorer and the loss of a "videos" stage,
            so that `temporal` (except for max_frames), `frame_source`, `grains`, `weights` and `aggregator` are not
            read. None: X-CLIP's own recipe, which these settings describe.
        clip: CLIP's towers; `vision`, `text` and `dim` are then not read. None: towers trained from scratch.
        dim: D of all features; with CLIP, CLIP's.
        grains, weights: see MultiGrain.
        aggregator: of the grains that name none, as in GrainConfig.
        frame_source: the frames that the fine grains see: "raw", before the temporal encoder (the paper), or
            "temporal", after it.
        masked: keep padding out of the fine grains; False exists to match models trained that way.
        init_logit_scale: start of the logarithm of the logits' multiplier; CLIP's weights bring their own.
        dropout: in the temporal transformer and in a text tower trained from scratch.

    Raises:
        ValueError: masked=False where a mask is needed (a recipe, words to leave out); word weights with CLIP; a
            number out of range.
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
    clip: ClipConfig | None = None
    recipe: RecipeConfig | None = None

    def __post_init__(self) -> None:
        checks.fields(self, checks.POSITIVE, "dim")
        checks.fields(self, checks.SHARE, "dropout")
        checks.number("init_logit_scale", self.init_logit_scale, -80, 80)
        if self.recipe is not None:
            checks.require(self.masked, "masked", "True with a recipe", self.masked)
            if self.recipe.word_weights and self.clip is not None:
                raise ValueError("word_weights: expected a text tower trained from scratch, got CLIP's")
        if self.clip is not None and not self.masked and not (self.clip.include_bos and self.clip.include_eos):
            raise ValueError("masked: expected True where include_bos or include_eos is False, got False")

    def build_recipe(self, temporal: nn.Module | None = None, criterion: InfoNCE | None = None) -> recipes.Recipe:
        """Build the recipe of that name, or X-CLIP's own over these grains, to which `temporal` and `criterion` go."""
        if self.recipe is not None:
            return self.recipe.build(self.dim, self.temporal.max_frames)
        grains = (grain.build(self.dim, self.aggregator) for grain in self.grains)
        return own_recipe(MultiGrain(*grains, weights=self.weights), temporal, criterion, self.frame_source)

    def scorer(self) -> nn.Module:
        """Build the scorer of these settings alone, without its weights."""
        return self.build_recipe().scorer

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """Build settings from what dataclasses.asdict made of them.

        Raises:
            ValueError: unknown settings, or values of other types.
        """
        return settings.build(ModelConfig, values, "model")


def build_from_spec(spec: str | Mapping[str, Any] | None) -> Aggregator | None:
    """Build an aggregator from a registered name, or from {"class_path": ..., "init_args": {...}}.

    A class path is a dotted path to a subclass of Aggregator in a module that is imported, or a registered name.

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
    cls = _imported(path)
    if cls is None and "." in path:
        raise ValueError(f"aggregator: expected the path of a class that is imported, got {path!r}")
    if cls is not None and not (isinstance(cls, type) and issubclass(cls, Aggregator)):
        raise TypeError(f"aggregator: expected a subclass of multigrain.Aggregator, got {path}")
    try:
        return build_aggregator(path, **arguments) if cls is None else cls(**arguments)
    except TypeError as error:
        raise ValueError(f"aggregator {path}: {error}") from error


def import_trusted(config: ModelConfig, trust: Sequence[str]) -> None:
    """Refuse settings that name an aggregator outside multigrain, the registered ones and the packages of `trust`.

    Args:
        trust: packages, which are imported, and so are the modules in them that the settings name.

    Raises:
        ImportError: a package that cannot be imported.
        ValueError: a class of another package. It is not imported: whoever wrote the file would run code.
    """
    for package in trust:
        named = all(part.isidentifier() for part in package.split("."))
        checks.require(named, "trust", "the name of a package", package)
        importlib.import_module(package)
    known = aggregator_classes()
    for spec in (config.aggregator, *(grain.aggregator for grain in config.grains)):
        path = str(spec.get("class_path")) if isinstance(spec, Mapping) else spec or ""
        module, _, _ = path.rpartition(".")
        if any(f"{module}.".startswith(f"{package}.") for package in trust):
            importlib.import_module(module)
        elif module and not f"{module}.".startswith("multigrain.") and not any(_imported(path) is c for c in known):
            package = module.partition(".")[0]
            raise ValueError(
                f"aggregator: expected a registered name or a class of multigrain, got {path!r}; if you trust its "
                f"code, say so: trust=({package!r},), or --trust {package}"
            )


def _imported(path: str) -> object:
    """Look up a dotted path in a module that is imported already, without calling its __getattr__; None: nothing."""
    module, _, name = path.rpartition(".")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None
