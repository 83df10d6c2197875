"""The pictures and the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .. import viz
from ..grains import Grain
from ..scorer import MultiGrain, grains_of
from ..training import Evaluation, checkpoint, encode
from ..training.evaluation import encode_texts
from . import examples, tables
from .explain import explain
from .page import Report, figure_png, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data.babyai import BabyAI
    from ..models import XCLIP
    from ..runs import Run

POINTS = 120  # of a loss curve

_LEAD = (
    "Real pairs that anyone can generate: a bot solves BabyAI missions; its egocentric views, rendered, are the video, "
    "the mission is the sentence. None of the sentences below was seen in training."
)
_MATRIX = (
    "Colour: the cosine of a word (or the whole sentence) with a frame (or the whole video). Ink: weight. A dot's area "
    "is the weight of that pair of tokens in its grain's score, the inner and the outer level of attention multiplied, "
    "the mean of both directions; it is relative to the largest of its block. Bars: the outer level. The panels below: "
    "the inner level."
)
_SEES = " The features of a frame are those after the temporal encoder, so that each also knows of the others."
_EXAMPLES = (
    "Four queries of each kind, each with the videos that came first and its own. A sentence leaves much open, so that "
    "a rival often shows some of the same objects and actions."
)
_TABLE = (
    "R@K: per cent of the queries whose own item is among the first K; MdR, MnR: median and mean rank (1 is best), "
    "ties counted as a random order would in expectation. Each grain alone is a part of the model that was trained on "
    "their sum, which says little about what it could do if it were trained alone. Chance is a random order."
)


def write_pictures(run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation) -> Path:
    """Write curves.png, similarity.png and index.html into the folder of the results; returns the last."""
    scores, sentences = evaluation.scores["all"], data.test.sentences
    lengths = data.test.lengths.clip(max=run.max_frames).tolist()
    best = examples.clearest(scores, [(len(model.text.words(s)), n) for s, n in zip(sentences, lengths, strict=True)])
    rival = int(scores[best].index_fill(0, torch.tensor(best), -torch.inf).argmax())
    own, other = (figure_png(pair(run, model, data, evaluation, best, video)) for video in (best, rival))
    curves = figure_png(training_curves(run.history(), 100 / max(1, run.config.validation_pairs)))
    (run.results / "similarity.png").write_bytes(own)
    (run.results / "curves.png").write_bytes(curves)
    pictures = [
        (own, f"An unseen sentence against its own video. {_MATRIX}{_SEES * (model.frame_source == 'temporal')}"),
        (other, f"The same sentence against the runner-up, the video of “{sentences[rival]}”."),
    ]
    page = run.results / "index.html"
    page.write_text(render(_report(run, model, data, evaluation, pictures, curves)), encoding="utf-8")
    return page


def pair(run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation, text: int, video: int) -> Figure:
    """The picture of one test sentence against one test video."""
    query = encode_texts(model, [data.test.sentences[text]])
    _, candidate = encode(model, data.test, [video], run.max_frames)
    parts = explain(cast("MultiGrain", model.scorer), query, candidate)  # recipes have no page
    frames, words = data.test.frames(video, run.max_frames), model.text.words(data.test.sentences[text])
    by_sides = {(part.query, part.candidate): part for part in parts.values()}

    def sim(*sides: str) -> Tensor:
        # The picture shows all four matrices, also of grains that the scorer goes without.
        part = by_sides.get(cast("tuple[str, str]", sides))
        whole = Grain(sides[0], sides[1]).similarity(query, candidate)[0, 0] if part is None else part.sim
        return whole[: len(words) if sides[0] == "word" else 1, : len(frames) if sides[1] == "frame" else 1].detach()

    def weights(*sides: str) -> Any:
        # A model without masks lets padding take weight; what is left of it would mislead.
        part = by_sides.get(cast("tuple[str, str]", sides))
        return part.weights if part is not None and part.sim.shape == sim(*sides).shape else None

    down, across = weights("word", "video"), weights("sentence", "frame")
    coarse = viz.Coarse(
        sim("word", "video")[:, 0],
        sim("sentence", "frame")[0],
        float(sim("sentence", "video")),
        None if down is None else down.cells[:, 0],
        None if across is None else across.cells[0],
    )
    added = {name: part.share * part.score for name, part in parts.items()}
    scores = evaluation.scores["all"][text]
    rank = 1 + int((scores > scores[video]).sum())
    return viz.similarity(
        frames,
        words,
        sim("word", "frame"),
        weights("word", "frame"),
        coarse,
        added,
        data.test.sentences[text],
        f"score {float(scores[video]):.3f}, rank {rank:,} of {len(scores):,} videos",
    )


def training_curves(history: list[dict[str, Any]], chance: float | None = None) -> Figure:
    """Losses by stage and validation R@1, from the lines of metrics.jsonl."""
    losses: dict[str, list[tuple[float, float]]] = {}
    recalls: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        if line["kind"] == "step":
            x = line["step"] * line["epochs"] / line["steps"]
            losses.setdefault(line["stage"], []).append((x, line["loss"]))
        elif line.get("validation") is not None:
            for direction, name in tables.DIRECTIONS:
                r1 = line["validation"]["all"][direction]["R@1"]
                recalls.setdefault(f"{line['stage']}, {name}", []).append((line["epoch"], r1))
    smooth = {f"stage “{name}”": _means(points) for name, points in losses.items()}
    return viz.curves(smooth, recalls, chance if recalls else None, "epoch of the stage")


def _means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: means of neighbours."""
    size = -(-len(points) // POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _report(
    run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation, pictures: list[tuple[bytes, str]], curves: bytes
) -> Report:
    count = len(data.test)
    sentences = data.test.sentences
    return Report(
        title=run.title,
        verdict=tables.verdict(evaluation.metrics, count),
        lead=[_LEAD, *([run.note] if run.note else [])],
        rows=tables.rows(evaluation.metrics, count),
        table_note=_TABLE,
        similarity=pictures,
        examples_note=_EXAMPLES,
        examples=examples.choose(evaluation.scores["all"], sentences, lambda i: data.test.frames(i, run.max_frames)),
        curves=(curves, f"Losses are means of neighbouring steps; validation: {run.config.validation_pairs:,} pairs."),
        settings=_settings(run, model, data),
        config=run.source,
    )


def _settings(run: Run, model: XCLIP, data: BabyAI) -> dict[str, str]:
    """What made the figures, in words."""
    config, environment = run.config, checkpoint.environment()
    stages = [f"{s.name}: {s.epochs} epochs of batches of {s.batch_size}" for s in config.stages]
    grains = [f"{grain.name}: {grain.aggregator or 'one vector each'}" for grain in grains_of(model.scorer)]
    return {
        "grains": "; ".join(grains),
        "frames": f"{model.frame_source}, at most {run.max_frames} a video",
        "training": "; ".join(stages),
        "pairs": f"{len(data.train):,} for training, {len(data.val):,} for validation, {len(data.test):,} for the "
        f"test, {len(data.single):,} single actions for the towers",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "seed": f"{config.seed} (pairs {data.metadata['seed']})",
        **({"chosen how": run.chosen} if run.chosen else {}),
        "time": str(run.clock),
        "machine": f"{environment['cores']} cores, {environment['platform']}, torch {environment['versions']['torch']}",
    }
