"""A study: many variants of one model, trained from the same towers, each with several seeds.

Every run leaves a file the moment it is done and is never repeated; whatever interrupts a study loses the runs in
flight. Runs share the cores, one thread each.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multigrain.data.pairs import cores
from multigrain.files import write_json
from multigrain.training import TrainConfig

from . import machine, pretrained
from .pretrained import Setup
from .report import replace_between

CACHE = Path("runs/studies")
SETUP = Setup()
QUICK = Setup(pairs=240, single=120, val=5, test=40, tower_epochs=1, epochs=1, seeds=(0, 1))
PACKAGES = ("multigrain", "torch", "timm", "minigrid", "numpy")


@dataclass(frozen=True)
class Study:
    """An entry of the registry of studies.

    Args:
        variants: the settings of each by its name, given those that all share; towers and data are the same for all.
        page: its page among the docs.
        render: the page from a result, or with `marks` what is between them.
        marks: the lines of a page that was written by hand between which the study stands.
        quick: a few variants and a setup, to see that everything works.
    """

    name: str
    title: str
    variants: Callable[[TrainConfig], dict[str, TrainConfig]]
    page: str
    render: Callable[[StudyResult], str]
    quick: tuple[str, ...]
    marks: tuple[str, str] | None = None
    setup: Setup = SETUP
    quick_setup: Setup = QUICK

    def rendered(self, result: StudyResult, page: str) -> str:
        """Return the page with this study, given the page as it is.

        Raises:
            ValueError: there are no marks.
        """
        text = self.render(result)
        return text if self.marks is None else replace_between(page, *self.marks, text, self.page)


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study, each with its variant, seed, metrics, CPU seconds, parameters, last loss, date, commit."""

    name: str
    device: str
    quick: bool
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    setup: dict[str, Any]
    runs: list[dict[str, Any]]

    def save(self, folder: Path) -> Path:
        """Write one JSON file, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        write_json(path, asdict(self))
        return path

    def recall(self, variant: str, direction: str | None = None) -> list[float]:
        """R@1 of each seed, in their order; None: the mean of both directions."""
        runs = {run["seed"]: run["metrics"] for run in self.runs if run["variant"] == variant}
        directions = ("t2v", "v2t") if direction is None else (direction,)
        return [sum(runs[seed][d]["R@1"] for d in directions) / len(directions) for seed in self.setup["seeds"]]

    @staticmethod
    def load(path: Path) -> StudyResult:
        """Read what `save` wrote."""
        return StudyResult(**json.loads(path.read_text()))


def run(study: Study, quick: bool = False, cache: Path = CACHE, workers: int | None = None) -> StudyResult:
    """Do the runs that are not there yet, and return the result of all.

    Args:
        cache: folder of the runs that are done; those of other settings are not read.
        workers: processes; None = one per core, 0 = this one.

    Raises:
        KeyboardInterrupt: after saying how much is done.
    """
    started, commit = machine.now(), machine.commit()  # of the code that is loaded: files may change while it runs
    torch.set_num_threads(1)
    setup, workers = study.quick_setup if quick else study.setup, cores() if workers is None else workers
    base = setup.config()
    variants = study.variants(base)
    variants = {name: variants[name] for name in study.quick} if quick else variants
    data = base.data.load()  # generated here once, for all processes
    towers = folder_of(cache, "towers", replace(base, stages=base.stages[:1]))
    missing = [seed for seed in setup.seeds if not pretrained.towers_file(towers, seed).is_file()]
    _say(study.name, "towers", _each(workers, pretrained.pretrain, [(setup, seed, towers) for seed in missing]))
    jobs = {
        (name, seed): folder_of(cache, study.name, config) / f"seed-{seed}.json"
        for seed in setup.seeds
        for name, config in variants.items()
    }
    calls = [
        (name, variants[name], seed, pretrained.towers_file(towers, seed), path, commit)
        for (name, seed), path in jobs.items()
        if not path.is_file()
    ]
    print(f"{study.name}: {len(jobs)} runs, {len(jobs) - len(calls)} done before", file=sys.stderr, flush=True)
    try:
        _say(study.name, "runs", _each(workers, _job, calls), len(calls))
    except KeyboardInterrupt:
        done = sum(path.is_file() for path in jobs.values())
        print(f"{study.name}: stopped with {done} of {len(jobs)} runs done; the next call goes on", file=sys.stderr)
        raise
    found = [{"variant": name, "seed": seed, **json.loads(path.read_text())} for (name, seed), path in jobs.items()]
    sizes = {name: len(getattr(data, name).sentences) for name in ("single", "train", "test")}
    return StudyResult(
        name=study.name,
        device="cpu",
        quick=quick,
        date=started,
        commit=commit,
        machine=machine.machine("cpu"),
        versions=machine.versions(PACKAGES),
        setup={**_shared(base), "sizes": sizes, "seeds": list(setup.seeds), "model": asdict(base.model)},
        runs=found,
    )


def _job(name: str, config: TrainConfig, seed: int, towers: Path, path: Path, commit: str) -> str:
    """One run, written to its file; returns what to say about it."""
    started = time.monotonic()
    found: dict[str, Any] = {"date": machine.now(), "commit": commit}
    found |= pretrained.train_and_score(config, seed, towers)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    recall = " / ".join(f"{found['metrics'][direction]['R@1']:.1f}" for direction in ("t2v", "v2t"))
    seconds = f"{sum(found['cpu_seconds'].values()):.0f} CPU s in {time.monotonic() - started:.0f} s"
    return f"{name}, seed {seed}: R@1 {recall}, loss {found['loss']:.3f}, {seconds}"


def folder_of(cache: Path, kind: str, config: TrainConfig) -> Path:
    """Return the folder of the runs of these settings: a function of all that they depend on but the seed."""
    # Without those that are off: a setting that is new and off changes nothing.
    model = {name: value for name, value in asdict(config.model).items() if value is not None}
    text = json.dumps([model, _shared(config)], sort_keys=True)
    folder = cache / kind / hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _shared(config: TrainConfig) -> dict[str, Any]:
    """Settings that a run depends on, other than its model and its seed."""
    values = asdict(config)
    del values["data"]["cache"]
    return {name: values[name] for name in ("data", "stages")}


def _each(workers: int, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call the function for each set of arguments, in so many processes, or here, in order; yield results when done."""
    if workers == 0 or not calls:
        yield from (function(*call) for call in calls)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin) as pool:
        futures = [pool.submit(function, *call) for call in calls]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal: these end at once and in silence, and the first one speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _say(study: str, what: str, results: Iterator[Any], total: int | None = None) -> None:
    """Say of each result that it is there and, where their number is known, how long the rest may take."""
    started = time.monotonic()
    for done, said in enumerate(results, 1):
        of = ""
        if total is not None:
            left = (time.monotonic() - started) / done * (total - done)
            of = f" of {total}, about {left / 60:.0f} min left"
        print(f"{study}: {what} {done}{of}: {said}", file=sys.stderr, flush=True)
