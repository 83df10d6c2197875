"""The ablations of X-CLIP's paper, on the pairs of `multigrain demo`."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

from multigrain.models import GrainConfig, ModelConfig
from multigrain.training import TrainConfig

from ..harness.pretrained import Setup
from ..harness.study import Study
from . import ablation_page

GRAINS = {
    "VS": GrainConfig("sentence", "video"),
    "SF": GrainConfig("sentence", "frame"),
    "VW": GrainConfig("word", "video"),
    "FW": GrainConfig("word", "frame"),
}
ALL = "VS+SF+VW+FW"


def variants(base: TrainConfig) -> dict[str, TrainConfig]:
    """Make the config of each set of grains, and of four grains with one thing changed."""
    return {name: replace(base, model=model) for name, model in models(base.model).items()}


def models(base: ModelConfig) -> dict[str, ModelConfig]:
    """The models of the variants."""
    four = replace(base, grains=list(GRAINS.values()))
    # The whole and its extremes first: what an interrupted study has then can be read already.
    sets = sorted((s for n in range(1, 5) for s in combinations(GRAINS, n)), key=lambda s: (len(s) < 4, len(s) > 1))
    found = {"+".join(names): replace(base, grains=[GRAINS[name] for name in names]) for names in sets}
    for name in ("mean_mean", "max_max", "mean_max", "max_mean"):
        found[name] = replace(four, aggregator=name)
    for temperature in (1.0, 0.01, 0.001):
        found[f"tau {temperature:g}"] = replace(four, aggregator=_aosm(temperature))
    found["no temporal encoder"] = replace(four, temporal=replace(base.temporal, kind="none"))
    found["raw frames"] = replace(four, frame_source="raw")
    found["unmasked"] = replace(four, masked=False)
    return found


def _aosm(temperature: float) -> dict[str, Any]:
    return {"class_path": "multigrain.AOSM", "init_args": {"temperature": temperature}}


STUDY = Study(
    name="ablation",
    title="The ablations of X-CLIP's paper on the demo's pairs",
    variants=variants,
    page="ablation.md",
    render=ablation_page.render,
    quick=(ALL, "VS", "mean_mean", "unmasked"),
    setup=Setup(seeds=(0, 1, 2, 3, 4)),  # with three, most intervals are too wide to tell variants apart
)
