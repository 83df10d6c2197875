"""A study of all recipes, trained on the pairs of `multigrain demo`, from the same towers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from multigrain import recipes, training
from multigrain.training import TrainConfig

from ..harness.intervals import difference, interval
from ..harness.report import study_provenance, table
from ..harness.study import Study, StudyResult

# What trains or is scored slowly comes last: an interrupted study has the others.
SLOW = ("taco", "matching_head", "clipbert")
BASELINE = "clip"
WORDS = {1: "above", -1: "below", 0: "open"}


def variants(base: TrainConfig) -> dict[str, TrainConfig]:
    """The config of each recipe that comes with the package, under the budget of the study."""
    return {name: _variant(base, name) for name in [*sorted({*recipes.names()} - {*SLOW}), *SLOW]}


def _variant(base: TrainConfig, name: str) -> TrainConfig:
    config = training.load_config(f"recipes/{name}")
    towers, videos = base.stages
    return replace(base, model=config.model, stages=[towers, replace(videos, batch_size=config.stages[1].batch_size)])


def render(result: StudyResult) -> str:
    """The section of docs/recipes.md, which depends on the result alone."""
    return "\n".join([*_introduction(result), "", *_table(result), "", study_provenance(result), ""])


def _introduction(result: StudyResult) -> Iterator[str]:
    setup, seeds = result.setup, len(result.setup["seeds"])
    towers, videos = setup["stages"]
    usual = videos["batch_size"]
    others = {run["variant"]: run["batch_size"] for run in result.runs if run["batch_size"] != usual}
    odd = "".join(f" (`{name}`: {size})" for name, size in sorted(others.items()))
    yield (
        f"Each is trained by its config in `multigrain/configs/recipes`, {videos['epochs']} epochs over "
        f"{setup['sizes']['train']:,} of the quickstart's pairs in batches of {usual}{odd}, above towers that "
        f"{towers['epochs']} epochs of the quickstart's first stage have trained once for each seed; the frame tower "
        "is then frozen, so that a recipe without parameters above the frames trains the text tower alone. Widths and "
        "depths are made for these towers, all other settings are those that were published, and none was tuned "
        "here: this shows what the parts cost and that they learn in so short a time, not which system is best."
    )
    yield ""
    yield (
        f"R@1 in per cent among {setup['sizes']['test']:,} pairs (chance {100 / setup['sizes']['test']:.1f}), means "
        f"over {seeds} seeds ± half of the 95 % interval (Student's t, {seeds - 1} degrees of freedom). Against "
        f"`{BASELINE}`: the difference in the mean of both directions, seed by seed; *open* where its interval has 0 "
        "in it. Parameters are those beside the towers, seconds those of one core, of training and of scoring the "
        "test."
    )


def _table(result: StudyResult) -> Iterator[str]:
    names = list(dict.fromkeys(run["variant"] for run in result.runs))
    both = {name: interval(result.recall(name)) for name in names}
    rows = []
    for name in sorted(names, key=lambda name: -both[name].mean):
        runs = [run for run in result.runs if run["variant"] == name]
        ways = [str(interval(result.recall(name, way))) for way in ("t2v", "v2t")]
        seconds = [sum(run["cpu_seconds"][kind] for run in runs) / len(runs) for kind in ("training", "evaluation")]
        against = ""
        if name != BASELINE and BASELINE in names:
            gain = difference(result.recall(name), result.recall(BASELINE))
            against = f"{gain.signed}, {WORDS[gain.sign]}"
        parameters = f"{runs[0]['parameters_beside_towers']:,}"
        rows.append([f"`{name}`", *ways, str(both[name]), against, parameters, *(f"{s:.0f}" for s in seconds)])
    header = ["recipe", "T2V", "V2T", "both", f"against `{BASELINE}`", "parameters", "training s", "scoring s"]
    yield from table(header, rows)


STUDY = Study(
    name="recipes",
    title="Every recipe on the demo's pairs",
    variants=variants,
    page="recipes.md",
    render=render,
    quick=("clip", "drl", "wenlan"),
    marks=(
        "<!-- Written by `python -m benchmarks report` from here -->",
        "<!-- python -m benchmarks report: to here -->",
    ),
)
