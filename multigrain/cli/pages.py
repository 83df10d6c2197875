"""The pictures and the page of an evaluation: of the demo, of a run on videos, of saved features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import files, viz
from ..data.pairs import Pairs
from ..evaluation import Evaluation, tables
from ..evaluation.results import environment as environment_of
from ..report import examples
from ..report.content import Page
from ..report.images import figure_png
from ..report.page import render
from ..report.scored_pairs import ScoredPairs, of_features, of_pairs
from ..report.summary import summarize
from ..scorer import MultiGrain, grains_of
from ..tokens import Features
from ..training import ClipsConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data.babyai import BabyAI
    from ..models import XCLIP
    from ..recipes import Recipe
    from .runs import Run

POINTS = 120  # of a loss curve

_LEAD = (
    "Real pairs that anyone can generate: a bot solves BabyAI missions; its egocentric views, rendered, are the video, "
    "the mission is the sentence. None of the sentences below was seen in training."
)
_MATRIX = (
    "A dot's area is the inner and the outer level of attention multiplied, the mean of both directions, relative to "
    "the largest of its block. Bars: the outer level. The panels below: the inner level."
)
_SEES = " The features of a frame are those after the temporal encoder, so that each also knows of the others."
_EXAMPLES = (
    "Queries, each with the videos that came first and its own. Best: its own is furthest ahead of all others. Worst: "
    "its own is furthest down, or least ahead."
)
_OPEN = " A sentence leaves much open, so that a rival often shows some of the same objects and actions."
_NOTHING = (
    "Saved features were evaluated: there are no thumbnails, since the videos are not known, and texts and videos are "
    "called by their places, counted from 0."
)


def write_pictures(run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation, page: Path | None = None) -> Path:
    """Write curves.png, similarity.png and the page (default index.html) of the demo; returns the page."""
    subject = of_pairs(evaluation, data.test, model, run.max_frames)
    scores, sentences = subject.scores, subject.texts
    lengths = data.test.lengths.clip(max=run.max_frames).tolist()
    sizes = [(len(model.text.words(s)), n) for s, n in zip(sentences, lengths, strict=True)]
    best = examples.clearest(scores, subject.targets, sizes)
    rival = examples.rival(scores, subject.targets, best)
    own, other = (figure_png(pair(subject, best, video)) for video in (best, rival))
    curves = figure_png(training_curves(run.history(), 100 / max(1, run.config.validation_pairs)))
    files.write_bytes(run.results / "similarity.png", own)
    files.write_bytes(run.results / "curves.png", curves)
    pictures = [
        (own, f"An unseen sentence against its own video. {_MATRIX}{_SEES * (model.frame_source == 'temporal')}"),
        (other, f"The same sentence against the runner-up, the {subject.videos[rival]}."),
    ]
    report = summarize(
        subject,
        evaluation,
        title=run.title,
        lead=[_LEAD, *([run.note] if run.note else [])],
        similarity=pictures,
        examples_note=_EXAMPLES + _OPEN,
        curves=(curves, f"Losses are means of neighbouring steps; validation: {run.config.validation_pairs:,} pairs."),
        settings=_settings(run, model, data),
        config=run.source,
    )
    return _write(page or run.results / "index.html", report)


def write_page(run: Run, model: XCLIP, pairs: Pairs, evaluation: Evaluation, page: Path | None = None) -> Path:
    """Write the page (default index.html) of a run on the videos of a manifest, which are read again; returns it."""
    config, history = run.config, run.history()
    lead = [f"The test split of {Path(config.data.manifest).name}."] if isinstance(config.data, ClipsConfig) else []
    if evaluation.broken:
        lead.append(f"{len(evaluation.broken):,} videos could not be read and were left out.")
    note = f"Losses are means of neighbouring steps; validation: {config.validation_pairs:,} pairs."
    report = summarize(
        of_pairs(evaluation, pairs, model, run.max_frames),
        evaluation,
        title=run.title,
        lead=lead,
        examples_note=_EXAMPLES,
        curves=(figure_png(training_curves(history)), note) if history else None,
        settings=_about(run, model),
        config=run.source,
    )
    return _write(page or run.results / "index.html", report)


def write_features_page(
    evaluation: Evaluation, text: Features, video: Features, scorer: nn.Module | Recipe, page: Path
) -> Path:
    """Write the page of saved features; returns it."""
    report = summarize(
        of_features(evaluation, text, video, scorer),
        evaluation,
        title="multigrain: saved features",
        lead=[_NOTHING],
        examples_note=_EXAMPLES,
        settings={"grains": _grains(scorer)},
    )
    return _write(page, report)


def pair(subject: ScoredPairs, text: int, video: int) -> Figure:
    """The picture of one text against one video, with its rank."""
    scores = subject.scores[text]
    rank = 1 + int((scores > scores[video]).sum())
    assert subject.picture is not None
    subtitle = f"score {float(scores[video]):.3f}, rank {rank:,} of {len(scores):,} videos"
    return subject.picture(text, video, subtitle, True)


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


def _write(path: Path, page: Page) -> Path:
    files.write_text(files.open_folder(path.parent, "--report") / path.name, render(page))
    return path


def _settings(run: Run, model: XCLIP, data: BabyAI) -> dict[str, str]:
    """What made the figures of the demo, in words."""
    about = _about(run, model)
    return {
        **{name: about[name] for name in ("grains", "frames", "training")},
        "pairs": f"{len(data.train):,} for training, {len(data.val):,} for validation, {len(data.test):,} for the "
        f"test, {len(data.single):,} single actions for the towers",
        "parameters": about["parameters"],
        "seed": f"{run.config.seed} (pairs {data.metadata['seed']})",
        **({"chosen how": run.chosen} if run.chosen else {}),
        **{name: about[name] for name in ("time", "machine")},
    }


def _about(run: Run, model: XCLIP) -> dict[str, str]:
    """What made the figures, in words."""
    environment = environment_of()
    stages = [f"{s.name}: {s.epochs} epochs of batches of {s.batch_size}" for s in run.config.stages]
    return {
        "grains": _grains(model.scorer),
        "frames": f"{model.frame_source}, at most {run.max_frames} a video",
        "training": "; ".join(stages),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "seed": str(run.config.seed),
        "time": str(run.clock),
        "machine": f"{environment['cores']} cores, {environment['platform']}, torch {environment['versions']['torch']}",
    }


def _grains(scorer: nn.Module | Recipe) -> str:
    """What scores, in words."""
    if not isinstance(scorer, MultiGrain):
        return str(scorer)
    return "; ".join(f"{grain.name}: {grain.aggregator or 'one vector each'}" for grain in grains_of(scorer))
