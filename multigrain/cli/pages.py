"""Pages of an evaluation: of a run with its pictures, and of saved features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import files, viz
from ..data.babyai import BabyAI, Rollouts
from ..data.pairs import Data
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

    from ..models import XCLIP
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


def write_page(run: Run, model: XCLIP, data: Data, evaluation: Evaluation, page: Path) -> None:
    """Write the page of a run; beside that of generated pairs, similarity.png and curves.png as well."""
    config, history = run.config, run.history()
    generated = data if isinstance(data, BabyAI) else None
    subject = of_pairs(evaluation, data.test, model, run.max_frames)
    lead = [_LEAD, run.note] if generated else []
    lead += [f"The test split of {Path(config.data.manifest).name}."] if isinstance(config.data, ClipsConfig) else []
    lead += [f"{len(evaluation.broken):,} videos could not be read and were left out."] if evaluation.broken else []
    chance = 100 / max(1, config.validation_pairs) if generated else None
    curves = figure_png(training_curves(history, chance)) if history else None
    pictures = _pictures(subject, model, generated.test, run.max_frames) if generated and subject.picture else []
    if pictures:
        files.write_bytes(run.results / "similarity.png", pictures[0][0])
    if generated and curves:
        files.write_bytes(run.results / "curves.png", curves)
    note = f"Losses are means of neighbouring steps; validation: {config.validation_pairs:,} pairs."
    report = summarize(
        subject,
        evaluation,
        title=run.title,
        lead=[sentence for sentence in lead if sentence],
        similarity=pictures,
        examples_note=_EXAMPLES + (_OPEN if generated else ""),
        curves=(curves, note) if curves else None,
        settings=_settings(run, model, data),
        config=run.source,
    )
    _write(page, report)


def _pictures(subject: ScoredPairs, model: XCLIP, test: Rollouts, max_frames: int) -> list[tuple[bytes, str]]:
    """Draw the sentence that is clearest, with its own video and with the runner-up; a caption for each picture."""
    lengths = test.lengths.clip(max=max_frames).tolist()
    sizes = [(len(model.text.words(s)), n) for s, n in zip(subject.texts, lengths, strict=True)]
    best = examples.clearest(subject.scores, subject.targets, sizes)
    rival = examples.rival(subject.scores, subject.targets, best)
    own, other = (figure_png(pair(subject, best, video)) for video in (best, rival))
    sees = _SEES * (model.frame_source == "temporal")
    return [
        (own, f"An unseen sentence against its own video. {_MATRIX}{sees}"),
        (other, f"The same sentence against the runner-up, the {subject.videos[rival]}."),
    ]


def write_features_page(
    evaluation: Evaluation, text: Features, video: Features, scorer: nn.Module, page: Path
) -> None:
    """Write the page of saved features."""
    report = summarize(
        of_features(evaluation, text, video, scorer),
        evaluation,
        title="multigrain: saved features",
        lead=[_NOTHING],
        examples_note=_EXAMPLES,
        settings={"grains": _grains(scorer)},
    )
    _write(page, report)


def pair(subject: ScoredPairs, text: int, video: int) -> Figure:
    """Draw one text against one video, with its rank."""
    scores = subject.scores[text]
    rank = 1 + int((scores > scores[video]).sum())
    assert subject.picture is not None
    subtitle = f"score {float(scores[video]):.3f}, rank {rank:,} of {len(scores):,} videos"
    return subject.picture(text, video, subtitle, True)


def training_curves(history: list[dict[str, Any]], chance: float | None = None) -> Figure:
    """Draw the losses of each stage and the validation R@1, from the lines of metrics.jsonl."""
    losses: dict[str, list[tuple[float, float]]] = {}
    recalls: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        if line["kind"] == "step":
            x = line["step"] * line["epochs"] / line["steps"]
            losses.setdefault(line["stage"], []).append((x, line["loss"]))
        elif line.get("validation") is not None:
            for direction, name in tables.DIRECTION_NAMES:
                r1 = line["validation"]["all"][direction]["R@1"]
                recalls.setdefault(f"{line['stage']}, {name}", []).append((line["epoch"], r1))
    smooth = {f"stage “{name}”": _means(points) for name, points in losses.items()}
    return viz.curves(smooth, recalls, chance if recalls else None, "epoch of the stage")


def _means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return means of neighbouring points, at most `POINTS` of them."""
    size = -(-len(points) // POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _write(page: Path, report: Page) -> None:
    files.write_text(files.open_folder(page.parent, "--report") / page.name, render(report))


def _settings(run: Run, model: XCLIP, data: Data) -> dict[str, str]:
    """Tell in words what made the figures."""
    environment = environment_of()
    stages = [f"{s.name}: {s.epochs} epochs of batches of {s.batch_size}" for s in run.config.stages]
    uses = {"train": "for training", "val": "for validation", "test": "for the test"}
    pairs = [f"{len(getattr(data, split).sentences):,} {use}" for split, use in uses.items()]
    seed = str(run.config.seed)
    if isinstance(data, BabyAI):
        pairs.append(f"{len(data.single):,} single actions for the towers")
        seed += f" (pairs {data.metadata['seed']})"
    return {
        "grains": _grains(model.scorer),
        "frames": f"{model.frame_source}, at most {run.max_frames} a video",
        "training": "; ".join(stages),
        "pairs": ", ".join(pairs),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "seed": seed,
        **({"chosen how": run.chosen} if run.chosen else {}),
        "time": str(run.clock),
        "machine": f"{environment['cores']} cores, {environment['platform']}, torch {environment['versions']['torch']}",
    }


def _grains(scorer: nn.Module) -> str:
    """Say what scores, with everything that an aggregator is set to."""
    if not isinstance(scorer, MultiGrain):
        return str(scorer)
    return "; ".join(f"{grain.name}: {grain.aggregator or 'one vector each'}" for grain in grains_of(scorer))
