"""python -m benchmarks list | run NAME | report"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from .harness import headline, registry, report, terminal
from .harness.measure import ParityError
from .harness.registry import Benchmark, benchmarks, studies
from .harness.study import CACHE, Study, StudyResult
from .harness.study import run as run_study

GROUPS = ("cpu", "cuda")
# Quick sizes show that a benchmark works, not how fast anything is: they stay out of the repository.
QUICK_RESULTS = Path("runs/benchmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the status is 1 where a benchmark refused to report, 2 without its device, 3 after an error."""
    options = _parser().parse_args(arguments)
    if options.command in ("list", None):
        rows = [[b.name, b.group, b.title] for b in benchmarks().values()]
        rows += [[s.name, "cpu, long", s.title] for s in studies().values()]
        terminal.table("Benchmarks", ["name", "for", "title"], rows)
        return 0
    if options.command == "report":
        results = report.load(options.results)
        options.page.write_text(report.render(results))
        for page in options.headline:
            headline.write(results, page)
        print(f"{options.page}: {len(results)} results")
        for study in studies().values():
            if (path := options.results / f"{study.name}.json").is_file():
                page = options.page.with_name(study.page)
                before = page.read_text() if page.is_file() else ""
                page.write_text(study.rendered(StudyResult.load(path), before))
                print(page)
        return 0
    if options.name in studies():
        return _study(studies()[options.name], options)
    return max(_run(benchmark, options) for benchmark in _chosen(options.name))


def _run(benchmark: Benchmark, options: argparse.Namespace) -> int:
    try:
        result = registry.run(benchmark, options.device, options.quick, options.rounds)
    except ParityError as error:
        print(f"{benchmark.name}: parity failed, nothing is reported: {error}", file=sys.stderr)
        return 1
    except registry.Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        if options.name not in GROUPS:
            raise
        traceback.print_exc()  # the others of the group can still be measured
        return 3
    terminal.show(result)
    print(f"{result.save(options.results or (QUICK_RESULTS if options.quick else report.RESULTS))}\n")
    return 0


def _study(study: Study, options: argparse.Namespace) -> int:
    try:
        result = run_study(study, options.quick, (QUICK_RESULTS if options.quick else CACHE), options.workers)
    except KeyboardInterrupt:
        return 130
    print(result.save(options.results or (QUICK_RESULTS if options.quick else report.RESULTS)))
    return 0


def _chosen(name: str) -> list[Benchmark]:
    known = benchmarks()
    return [b for b in known.values() if b.group == name] if name in GROUPS else [known[name]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="the names of all benchmarks")
    run = commands.add_parser("run", help="measure, and write one JSON file for each benchmark")
    names = [*GROUPS, *benchmarks(), *studies()]
    run.add_argument("name", choices=names, metavar="NAME", help="a benchmark, or cpu or cuda for all of a kind")
    run.add_argument("--device", help="cpu or cuda; default: the one that the benchmark is for")
    run.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    run.add_argument("--rounds", type=int, help="interleaved rounds; default: the benchmark's own")
    run.add_argument("--workers", type=int, help="of a study: processes; default: one per core; 0: only this one")
    run.add_argument("--results", type=Path, help="where to write; default: benchmarks/results, quick: runs/benchmarks")
    page = commands.add_parser("report", help="render docs/benchmarks.md, and the small tables elsewhere")
    page.add_argument("--results", type=Path, default=report.RESULTS)
    page.add_argument("--page", type=Path, default=report.PAGE)
    page.add_argument("--headline", type=Path, nargs="*", default=headline.PAGES, help="pages with the small table")
    return parser


if __name__ == "__main__":
    # maxsim-cpu brings its own threads: as many as torch has.
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
    sys.exit(main())
