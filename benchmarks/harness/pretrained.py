"""Towers that are pretrained once for each seed, and models that start from them above the frozen frame tower.

What the variants of a study share is computed once: the first stage of `multigrain demo`, and the features of all
frames. A variant then trains its second stage without reading a frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import multigrain as mg
from multigrain import files, training
from multigrain.evaluation.encoding import encode_texts
from multigrain.models import XCLIP, ModelConfig
from multigrain.models.protocol import evaluating
from multigrain.training.data import batches
from multigrain.training.momentum import momentum_of
from multigrain.training.objectives import frame_features, frozen_objective
from multigrain.training.optimizer import learning_rate, make_optimizer

SHARED = ("vision.", "text.", "criterion.")  # what a model takes over from the first stage
BLOCK = 100  # sentences or videos encoded at a time


@dataclass(frozen=True)
class Setup:
    """Settings that the runs of a study share; all others are those of `multigrain demo`.

    Args:
        pairs, single, val, test: sizes of the data, see multigrain.data.babyai.load; `val` is not used.
        tower_epochs, epochs: of the two stages.
        seeds: of the initialisation and of the order of the batches. The data are the same for all.
        cache: folder of the generated pairs.
    """

    pairs: int = 9500
    single: int = 8000
    val: int = 1000
    test: int = 1000
    tower_epochs: int = 5
    epochs: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    cache: str = "runs/data"

    def config(self, seed: int = 0) -> training.TrainConfig:
        """Both stages."""
        demo = training.load_config("demo")
        sizes = {name: getattr(self, name) for name in ("cache", "pairs", "single", "val", "test")}
        towers, grains = demo.stages
        stages = [replace(towers, epochs=self.tower_epochs), replace(grains, epochs=self.epochs)]
        return replace(demo, data=replace(demo.data, **sizes), stages=stages, seed=seed)


@dataclass(frozen=True)
class Split:
    """Pairs whose frames are features: what the losses need of multigrain.training.Pairs, and features and masks."""

    sentences: list[str]
    ids: Tensor
    features: Tensor
    """[N, F, D], zero where padded"""
    masks: Tensor
    """[N, F]"""


@dataclass(frozen=True)
class Pretrained:
    """The towers of one seed, and both splits as its frame tower sees them; `blank` is what it makes of padding."""

    weights: dict[str, Tensor]
    vocabulary: list[str]
    blank: Tensor
    train: Split
    test: Split

    @staticmethod
    def load(path: Path) -> Pretrained:
        """Read the file that `pretrain` wrote."""
        values: dict[str, Any] = torch.load(path, weights_only=True)
        return Pretrained(**{**values, "train": Split(**values["train"]), "test": Split(**values["test"])})


def towers_file(folder: Path, seed: int) -> Path:
    """The file that `pretrain` writes."""
    return folder / f"towers-{seed}.pt"


def pretrain(setup: Setup, seed: int, folder: Path) -> Path:
    """Train the towers, from its checkpoint if that was interrupted; returns the file that Pretrained.load reads."""
    config = setup.config(seed)
    data = config.data.load(progress=False)
    first = replace(config, stages=config.stages[:1])
    model = training.train(first, data, folder / f"towers-{seed}")
    frames = config.stages[1].max_frames
    splits = {}
    for name in ("train", "test"):
        pairs = getattr(data, name)
        features, masks = frame_features(model, pairs, frames)
        splits[name] = {"sentences": pairs.sentences, "ids": pairs.ids, "features": features, "masks": masks}
    with evaluating(model):
        blank = model.vision(model.vision.blank(data.test.batch([0], 1).frames))[0]
    weights = {name: value for name, value in model.state_dict().items() if name.startswith(SHARED)}
    values = {"weights": weights, "vocabulary": list(model.text.vocabulary), "blank": blank, **splits}
    path = towers_file(folder, seed)
    files.save_tensors(path, values)
    return path


def build(settings: ModelConfig, towers: Pretrained, seed: int) -> XCLIP:
    """A model whose towers are the pretrained ones; the rest starts from random numbers."""
    torch.manual_seed(seed)
    model = XCLIP.from_config(settings, towers.vocabulary)
    missing, unexpected = model.load_state_dict(towers.weights, strict=False)
    wrong = [name for name in missing if name.startswith(("vision.", "text."))] + unexpected
    if wrong:
        raise ValueError(f"towers: expected the weights of this model, differing: {', '.join(wrong)}")
    model.weigh_words(towers.train.sentences)
    model.freeze_vision(True)
    return model


def fit(model: XCLIP, stage: training.StageConfig, split: Split, seed: int) -> float:
    """Train the second stage; returns the mean loss of the last epoch."""
    optimizer, losses = make_optimizer(model, stage.optimizer), list[float]()
    objective = frozen_objective(model, split, split.features, split.masks, momentum_of(model))
    model.train()
    for epoch in range(stage.epochs):
        order = batches(split.sentences, stage.batch_size, stage.bucket, seed * 1_000_003 + epoch)
        losses = []
        for i, rows in enumerate(order):
            step = epoch * len(order) + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage.optimizer, step, len(order) * stage.epochs) * group["share"]
            loss = objective.share(rows)
            losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), stage.optimizer.clip_norm)
            optimizer.step()
    return sum(losses) / len(losses)


def metrics(model: XCLIP, split: Split) -> mg.metrics.RetrievalMetrics:
    """Evaluate all sentences of a split against all its videos."""
    text = encode_texts(model, split.sentences)
    with evaluating(model):
        parts = zip(split.features.split(BLOCK), split.masks.split(BLOCK), strict=True)
        video = mg.Features.cat([model.video_features(frames, mask) for frames, mask in parts])
        return training.evaluate_features(text, video, model.recipe).metrics["all"]


def train_and_score(config: training.TrainConfig, seed: int, path: Path) -> dict[str, Any]:
    """One run: its metrics on the test split, CPU seconds, parameters and last loss.

    Args:
        config: of its stages, the second.
        path: the towers.
    """
    towers = Pretrained.load(path)
    model = build(config.model, towers, seed)
    train, test = (_padded(split, towers.blank, model.masked) for split in (towers.train, towers.test))
    started = time.process_time()
    loss = fit(model, config.stages[1], train, seed)
    trained = time.process_time()
    found = metrics(model, test)
    return {
        "metrics": {direction: found[direction] for direction in ("t2v", "v2t")},
        "cpu_seconds": {"training": trained - started, "evaluation": time.process_time() - trained},
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_beside_towers": sum(
            p.numel() for name, p in model.named_parameters() if not name.startswith(SHARED)
        ),
        "batch_size": config.stages[1].batch_size,
        "loss": loss,
    }


def _padded(split: Split, blank: Tensor, masked: bool) -> Split:
    """Fill padding, for a model without masks, with the feature of a blank frame, like XCLIP.encode_video."""
    if masked:
        return split
    return replace(split, features=torch.where(split.masks[..., None], split.features, blank))
