"""Results rendered as docs/benchmarks.md and as rows of tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .machine import ROOT
from .records import Figure, Result, Section, Timing
from .registry import Benchmark, benchmarks

if TYPE_CHECKING:
    from .study import StudyResult

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

INTRODUCTION = """\
# Benchmarks

<!-- Written by `python -m benchmarks report` from benchmarks/results/*.json: do not edit. -->

Every figure is a ratio measured in one run, the candidates taking turns (A B C A B C ...): the median over the rounds
of the ratio within a round, with its quartiles. Before anything is timed, every candidate is compared with the
definition (`backend="eager"`); where one differs, nothing is reported. Times are medians per call. "original" is the
formula of X-CLIP's code without its mixing matrices. To measure again:

```sh
python -m benchmarks list
python -m benchmarks run cpu    # or one of those listed; the extra `bench` brings other packages
python -m benchmarks run cuda   # on a machine with an H100 or H200
python -m benchmarks report
```
"""


def load(folder: Path) -> list[Result]:
    """The results of a folder, in the order of the registry."""
    order = list(benchmarks())
    # Those of studies have no device in their names.
    found = [Result.load(path) for path in sorted(folder.glob("*-*.json"))]
    return sorted((r for r in found if r.name in order), key=lambda r: (order.index(r.name), r.device))


def render(results: Sequence[Result]) -> str:
    """Render the page, which depends on the results and the registry alone."""
    known = benchmarks()
    parts = [INTRODUCTION, "## Targets\n", *_targets(results)]
    for benchmark in known.values():
        own = [result for result in results if result.name == benchmark.name]
        parts += [f"\n## {benchmark.title}\n", benchmark.about]
        if not own:
            parts.append(f"\nNo result yet: `python -m benchmarks run {benchmark.name}`.")
        for result in own:
            parts += _result(benchmark, result)
    return "\n".join(parts) + "\n"


def _targets(results: Sequence[Result]) -> Iterator[str]:
    rows = [
        [r.name, f"{f.name} ({s.title})", str(f.target), amount(f), f.verdict]
        for r in results
        for s in r.sections
        for f in s.figures
        if f.target is not None
    ]
    measured = {(r.name, f.name) for r in results for s in r.sections for f in s.figures if f.target is not None}
    rows += [
        [b.name, name, str(target), "", "not measured"]
        for b in benchmarks().values()
        for name, target in b.targets.items()
        if (b.name, name) not in measured
    ]
    yield from table(["benchmark", "figure", "target", "found", ""], rows)


def _result(benchmark: Benchmark, result: Result) -> Iterator[str]:
    yield f"\n`python -m benchmarks run {benchmark.name}`, {provenance(result)}"
    for section in result.sections:
        yield f"\n### {section.title}\n"
        yield f"{section.inputs}.\n"
        yield from table(["figure", "median (quartiles)", "target", ""], figure_rows(section))
        if section.timings:
            yield ""
            yield from table(["candidate", "time"], timing_rows(section))
        yield "\n" + footnote(section)


def figure_rows(section: Section) -> list[list[str]]:
    """Name, value, target and verdict of each figure."""
    return [[f.name, amount(f), str(f.target or ""), f.verdict] for f in section.figures]


def timing_rows(section: Section) -> list[list[str]]:
    """Name and time of each candidate, or why there is none."""
    return [[t.name, _seconds(t)] for t in section.timings]


def footnote(section: Section) -> str:
    """Say what parity was found, and the notes."""
    worst = [f"{check.name} {check.error:.0e} (at most {check.tolerance:.0e})" for check in section.checks]
    return ". ".join([f"Errors relative to the largest value: {', '.join(worst)}", *section.notes]) + "."


def provenance(result: Result) -> str:
    """Machine, versions, commit and date in one sentence."""
    quick = "quick sizes, " if result.quick else ""
    when = f"{result.date} at commit {_short(result.commit)}"
    return f"{quick}{result.rounds} rounds on {when}: {_machine(result.machine)}; {_versions(result.versions)}."


def study_provenance(result: StudyResult) -> str:
    """Machine, versions, commits and dates of a study, whose runs may have been done at several times."""
    quick = "quick sizes, " if result.quick else ""
    dates = sorted(run["date"] for run in result.runs)
    commits = ", ".join(sorted({_short(run["commit"]) for run in result.runs}))
    what = f"`python -m benchmarks run {result.name}`, {quick}{len(result.runs)} runs of one thread each"
    when = f"from {dates[0]} to {dates[-1]} at commit {commits}"
    return f"{what}, {when}: {_machine(result.machine)}; {_versions(result.versions)}."


def _machine(m: dict[str, Any]) -> str:
    where = f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, load average {m['load_average_1min']}"
    return f"{m['gpu']}, {m['gpu_memory_gb']} GB, CUDA {m['cuda']}; {where}" if m["gpu"] else where


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {v}" for name, v in versions.items() if v != "not installed")


def _short(commit: str) -> str:
    return commit[:12] + (" with changes" if commit.endswith("-dirty") else "")


def amount(figure: Figure) -> str:
    """The median, with quartiles where there were several rounds."""

    def number(x: float) -> str:
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}" if abs(x) < 0.1 else f"{x:.2f}"

    spread = f" ({number(figure.low)} to {number(figure.high)})" if figure.low != figure.high else ""
    return f"{number(figure.value)} {figure.unit}".rstrip() + spread


def _seconds(timing: Timing) -> str:
    if not timing.seconds:
        return timing.note
    s = timing.median
    return f"{s:.2f} s" if s >= 1 else f"{s * 1e3:.3g} ms"


def replace_between(page: str, start: str, end: str, text: str, name: str) -> str:
    """Renew what stands between two lines of a page that was written by hand.

    Raises:
        ValueError: a page without the lines.
    """
    if start not in page or end not in page:
        raise ValueError(f"{name}: expected the two lines {start} and {end}")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n\n{text}\n{end}{rest.partition(end)[2]}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
