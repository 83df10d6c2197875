"""docs/ablation.md: the paper's tables beside ours and, by rule, what holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from ..harness.intervals import Estimate, difference, interval
from ..harness.report import study_provenance, table
from .ablation_tables import FOUR, TABLES, Recalls, Row, Table

if TYPE_CHECKING:
    from ..harness.study import StudyResult

NAMED = 6  # orderings in a sentence of the summary
WAYS = ("t2v", "v2t", None)
INTRODUCTION = """\
# Ablations

<!-- Written by `python -m benchmarks report` from benchmarks/results/ablation.json: do not edit. -->

The ablations of X-CLIP's paper (Ma et al. 2022, arXiv 2207.07285), on pairs that anyone can generate: the BabyAI
missions and rollouts of `multigrain demo`, every object of which has its colour in the sentence. The settings are those
of the demo but for what a table varies. {setup} To run them again:

```sh
python -m benchmarks run ablation    # Ctrl-C, and it goes on from there the next time
python -m benchmarks report
```

All figures are R@1 in per cent, from text to video (T2V) and from video to text (V2T). Ours are means over {seeds}
seeds, ± half of the 95 % interval of the mean (Student's t, {freedom} degrees of freedom). A seed decides how towers
and model start and the order of the batches; pairs and split are the same for all, so that the intervals say what
another training would change, not what other test pairs would. Chance is {chance:.1f}. The paper's figures are for the
1,000 test pairs of MSR-VTT 1k-A with CLIP's ViT-B/32, one training each. "Prototype" is an earlier program on pairs of
the same kind, with smaller towers, five epochs of 6,000 pairs and one seed. Neither is meant to be met: what can be
compared is the order within a column.

One variant is above another where the 95 % interval of the difference between them, seed by seed, in R@1 averaged over
both directions, lies above 0. An ordering of the paper (by the same average) *holds* where it is so here, is *reversed*
where the opposite is, and is *open* where the interval has 0 in it. Nothing is corrected for the number of comparisons:
between variants that are equal, about one in twenty would not be open.
"""


class Judgement(NamedTuple):
    """Two rows, the better one of the paper first (of ours where the paper has none), and our difference."""

    better: Row
    worse: Row
    paper: float | None
    ours: Estimate

    @property
    def verdict(self) -> str:
        """The verdict of our interval on the paper's order, or on ours where it has none."""
        return {1: "above" if self.paper is None else "holds", -1: "reversed", 0: "open"}[self.ours.sign]


def render(result: StudyResult) -> str:
    """The page, which depends on the result alone."""
    seeds, sizes = len(result.setup["seeds"]), result.setup["sizes"]
    known = {"seeds": seeds, "freedom": seeds - 1, "chance": 100 / sizes["test"]}
    introduction = INTRODUCTION.format(setup=_setup(result), **known)
    parts = [introduction, "## In short\n", *_summary(result)]
    for each in TABLES:
        parts += [f"\n## {each.title}\n", f"{each.about}\n", *_table(each, result), "", *_orderings(each, result)]
    parts += ["\n## Where\n", study_provenance(result)]
    return "\n".join(parts) + "\n"


def _setup(result: StudyResult) -> str:
    sizes, (towers, grains) = result.setup["sizes"], result.setup["stages"]
    cpu = sum(sum(run["cpu_seconds"].values()) for run in result.runs) / 60
    return (
        f"To keep {len(result.runs)} trainings affordable ({cpu:.0f} minutes of one core in all), the "
        f"second stage is {grains['epochs']} epochs over {sizes['train']:,} pairs; the towers ({towers['epochs']} "
        "epochs of the first stage) are trained once for each seed, and all variants start from them."
    )


def judgements(each: Table, result: StudyResult) -> list[Judgement]:
    """Judge all pairs of rows that are to be compared and that the result has."""
    there = {run["variant"] for run in result.runs}
    found = []
    for a, b in combinations([row for row in each.rows if row.variant in there], 2):
        if each.nested and not _nested(a, b):
            continue
        ours, paper = difference(result.recall(a.variant), result.recall(b.variant)), _paper(a, b)
        first = (ours.mean if paper is None else paper) >= 0
        if not first:
            a, b, ours = b, a, Estimate(-ours.mean, ours.half)
        found.append(Judgement(a, b, None if paper is None else abs(paper), ours))
    return found


def _nested(a: Row, b: Row) -> bool:
    """Tell whether one of two sets of grains is the other and one more, or has all grains."""
    one, other = set(a.label.split("+")), set(b.label.split("+"))
    return len(one ^ other) == 1 or FOUR in (a.variant, b.variant)


def _paper(a: Row, b: Row) -> float | None:
    if a.paper is None or b.paper is None:
        return None
    return (sum(a.paper) - sum(b.paper)) / 2


def _summary(result: StudyResult) -> Iterator[str]:
    for each in TABLES:
        found = judgements(each, result)
        said = [_sentence(j) for j in found if j.paper is None]
        if ordered := [j for j in found if j.paper is not None]:
            parts = [_counted(ordered, verdict) for verdict in ("holds", "reversed", "open")]
            alike = f"{sum(j.ours.mean > 0 for j in ordered)} means are in its order"
            said.insert(0, f"of {len(ordered)} orderings of the paper, {', '.join(parts)}; {alike}")
        if said:
            yield f"- **{each.title}**: {'; '.join(said)}."


def _counted(ordered: list[Judgement], verdict: str) -> str:
    """Count the orderings of a verdict and, if they are few, list them."""
    these = [j for j in ordered if j.verdict == verdict]
    words = {"holds": ("hold", "holds"), "reversed": ("are reversed", "is reversed"), "open": ("are open", "is open")}
    count = f"{len(these)} {words[verdict][len(these) == 1]}"
    if verdict == "open" or not 1 <= len(these) <= NAMED:
        return count
    return f"{count} ({', '.join(f'{j.better.label} over {j.worse.label}' for j in these)})"


def _sentence(j: Judgement) -> str:
    words = "is above" if j.verdict == "above" else "and"
    tail = "" if j.verdict == "above" else " cannot be told apart"
    return f"{j.better.label} {words} {j.worse.label}{tail} ({j.ours.signed})"


def _table(each: Table, result: StudyResult) -> Iterator[str]:
    header = ["", "paper T2V", "V2T", "prototype T2V", "V2T", "here T2V", "V2T", "both"]
    there = {run["variant"] for run in result.runs}
    rows = []
    for row in each.rows:
        ours = [str(interval(result.recall(row.variant, way))) for way in WAYS if row.variant in there]
        rows.append([row.label, *_two(row.paper), *_two(row.prototype), *(ours or [""] * len(WAYS))])
    yield from table(header, rows)


def _two(recalls: Recalls) -> list[str]:
    return ["", ""] if recalls is None else [f"{recall:.1f}" for recall in recalls]


def _orderings(each: Table, result: StudyResult) -> Iterator[str]:
    """A table of what can be told apart, best known first, and the rest in a sentence."""
    found = judgements(each, result)
    told = sorted((j for j in found if j.verdict != "open"), key=lambda j: (j.verdict == "reversed", -j.ours.mean))
    if told:
        paper = ["" if j.paper is None else f"{j.paper:+.1f}" for j in told]
        rows = [
            [f"{j.better.label} over {j.worse.label}", known, j.ours.signed, j.verdict]
            for j, known in zip(told, paper, strict=True)
        ]
        yield from table(["ordering", "paper", "here", ""], rows)
    if rest := [f"{j.better.label} over {j.worse.label} ({j.ours.signed})" for j in found if j.verdict == "open"]:
        yield f"\nOpen: {', '.join(rest)}."
