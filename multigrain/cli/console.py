"""Output of a run while it runs: progress on stderr, the table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

try:
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    raise ImportError('the command line needs rich: pip install "multigrain[cli]"') from error

from ..checks import printable
from ..distributed.collectives import all_gather_object, is_rank_zero
from ..evaluation import Evaluation, tables
from ..metrics import RetrievalMetrics

if TYPE_CHECKING:
    from ..training import Progress as TrainingProgress


class Clock:
    """Seconds of every phase, in order; a phase that is entered again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, phase: str, seconds: float) -> None:
        """Count these seconds to a phase."""
        self.seconds[phase] = round(self.seconds.get(phase, 0) + seconds, 2)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count what happens inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - started)

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items()]
        return ", ".join([*parts, f"together {sum(self.seconds.values()):.0f} s"])


class Bars:
    """Progress of long phases on stderr: bars on a terminal, a line now and then elsewhere. A context manager.

    Args:
        stages: names of the stages of training, in order, if there will be one.
    """

    def __init__(self, stages: Sequence[str] = ()) -> None:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not self._live,
        )
        self._stages = list(stages)
        self._tasks: dict[str, TaskID] = {}
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        if self._stages:
            self._task(self._stages[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def training(self, event: TrainingProgress) -> None:
        """Show one event of `multigrain.training.train`."""
        state = f"epoch {event.epoch}/{event.epochs}, loss {event.loss:.3f}"
        if event.validation is not None:
            state += f", validation R@1 {tables.recall_at_1(event.validation['all']):.1f} %"
        self._progress.update(self._task(event.stage), total=event.steps, completed=event.step, state=state)
        at_epoch_end = self._last == (event.stage, event.step)  # its event repeats that of the last step
        self._last = (event.stage, event.step)
        if at_epoch_end:
            self._say(f"{event.stage}: {state}, {event.seconds:.0f} s")
            if event.step == event.steps and event.stage in self._stages:
                for following in self._stages[self._stages.index(event.stage) + 1 :][:1]:
                    self._task(following)

    def counter(self, description: str) -> Callable[[int, int], None]:
        """Make a callback (done, total) with a bar of its own."""
        task = self._task(description)

        def count(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total, state=f"{done:,}/{total:,}")
            if done == total:
                self._say(f"{description}: {total:,}")

        return count

    def _task(self, name: str) -> TaskID:
        """Return the bar of that name; until it has a total it shows that something goes on."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(printable(name), total=None, state="")
        return self._tasks[name]

    def _say(self, line: str) -> None:
        if not self._live:
            print(printable(line), file=sys.stderr, flush=True)


def print_table(metrics: Mapping[str, RetrievalMetrics], candidates: int, title: str) -> None:
    """Print the table of `tables.rows` on stdout, in at most 80 columns."""
    title = printable(title)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for direction, _ in tables.DIRECTION_NAMES:
        for column in tables.COLUMNS:
            table.add_column(f"{direction}\n{column}", justify="right", no_wrap=True)
        table.add_column("")
    for row in tables.rows(metrics, candidates):
        half = len(tables.COLUMNS)
        cells = [*row.cells[:half], "", *row.cells[half:]]
        table.add_row(printable(row.name), *cells, style={"all": "bold", "chance": "dim"}.get(row.kind, ""))
    Console(highlight=False, markup=False, emoji=False).print(table)


def print_evaluation(evaluation: Evaluation, protocol: str) -> None:
    """Print the table of an evaluation, its result in a sentence, and on stderr the videos that could not be read.

    Collective; rank zero prints.
    """
    texts, videos = sum(all_gather_object(len(evaluation.texts))), len(evaluation.videos)
    if not is_rank_zero():
        return
    print_table(evaluation.metrics, videos, tables.title(texts, videos, evaluation.hubness))
    if protocol == "diagonal":
        print(tables.verdict(evaluation.metrics, videos))
    else:
        print(f"Protocol {protocol}: see multigrain.retrieval_metrics")
    if evaluation.broken:
        print(f"multigrain: {len(evaluation.broken)} videos could not be read and were left out:", file=sys.stderr)
        print(*map(printable, evaluation.broken), sep="\n", file=sys.stderr)
