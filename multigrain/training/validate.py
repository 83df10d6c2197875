"""Validation of settings, before anything is computed."""

from __future__ import annotations

import torch

from ..data.pairs import Data
from ..distributed import world
from ..evaluation.scores import check_reranker
from ..heads.temporal import TemporalTransformer
from ..models import XCLIP
from .config import ClipsConfig, StageConfig, TrainConfig


def check(config: TrainConfig) -> None:
    """Check that settings fit each other, without loading the pairs, which may take minutes to generate.

    A model over CLIP is not built for this, since its weights may take as long to read.

    Raises:
        ValueError: they do not; the message names what was expected and what came.
    """
    device(config.device)
    for stage in config.stages:
        check_batch(stage, stage.batch_size)
    if config.model.clip is None:
        model = XCLIP.from_config(config.model, ["word"])
        check_model(config, model)
        config.data.check(model)


def check_batch(stage: StageConfig, size: int) -> None:
    """Check that a batch of so many pairs has one for each rank.

    Raises:
        ValueError: it has not.
    """
    if size < (ranks := world()[1]):
        raise ValueError(
            f"batch_size: expected at least one pair for each of {ranks} ranks, got batches of {size} in "
            f"stage {stage.name!r}"
        )


def check_pairs(config: TrainConfig, data: Data) -> None:
    """Check that there are pairs for every stage.

    Raises:
        ValueError: there are none.
    """
    for stage in config.stages:
        pairs = data.single if stage.task == "frames" else data.train
        if not pairs.sentences:
            raise ValueError(f"data: expected pairs to train on in stage {stage.name!r}, got none")


def check_model(config: TrainConfig, model: XCLIP) -> None:
    """Check that a model takes the frames and can be trained as the settings say, in late stages too.

    Raises:
        ValueError: it cannot.
    """
    limits = [module.max_frames for module in model.modules() if isinstance(module, TemporalTransformer)]
    limits += [] if model.temporal is None else [model.max_frames]
    for stage in config.stages:
        if stage.task == "videos" and limits and stage.max_frames > (limit := min(limits)):
            raise ValueError(
                f"max_frames: expected at most {limit} (model.temporal.max_frames, or the recipe's own), "
                f"got {stage.max_frames} in stage {stage.name!r}"
            )
    if isinstance(config.data, ClipsConfig):  # of the default one, the caller may bring other data
        config.data.check(model)
    if config.validation_pairs > 0:
        check_reranker(model.recipe)


def device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or there is none here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # "meta" has no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected auto, cpu or a CUDA device that is here, got {name!r}: {reason}") from error
    return found
