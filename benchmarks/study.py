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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from multigrain import training
from multigrain.data.cores import cores
from multigrain.models import ModelConfig
from multigrain.training.checkpoint import write_json

from . import machine, pretrained
from .pretrained import Setup

CACHE = Path("runs/studies")
SETUP = Setup()
QUICK = Setup(pairs=240, single=120, val=5, test=40, tower_epochs=1, epochs=1, seeds=(0, 1))
PACKAGES = ("multigrain", "torch", "timm", "minigrid", "numpy")


@dataclass(frozen=True)
class Study:
    """An entry of the registry of studies.

    Args:
        variants: the settings of each by its name, given those of `multigrain demo`.
        page: its page among the docs.
        render: the page from a result.
        quick: a few variants and a setup, to see that everything works.
    """

    name: str
    title: str
    variants: Callable[[ModelConfig], dict[str, ModelConfig]]
    page: str
    render: Callable[[StudyResult], str]
    quick: tuple[str, ...]
    setup: Setup = SETUP
    quick_setup: Setup = QUICK


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study: of each its variant, seed, metrics, CPU seconds, parameters, last loss, date and commit."""

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

    @staticmethod
    def load(path: Path) -> StudyResult:
        """Read what `save` wrote."""
        return StudyResult(**json.loads(path.read_text()))


def run(study: Study, quick: bool = False, cache: Path = CACHE, workers: int | None = None) -> StudyResult:
    """All runs that are not there yet, and the result of all.

    Args:
        cache: folder of the runs that are done; those of other settings are not read.
        workers: processes; None = one per core, 0 = this one.

    Raises:
        KeyboardInterrupt: after saying how much is done.
    """
    setup = study.quick_setup if quick else study.setup
    variants = study.variants(setup.config().model)
    variants = {name: variants[name] for name in study.quick} if quick else variants
    started, commit = _now(), machine.commit()  # of the code that is loaded: files may change while it runs
    torch.set_num_threads(1)
    training.load_data(setup.config().data)  # generated once, for all processes
    shared = setup.settings()
    base = _folder(cache, "towers", setup.config().model, {**shared, "stages": shared["stages"][:1]})
    with _executor(cores() if workers is None else workers) as submit:
        towers = {seed: submit(pretrained.pretrain, setup, seed, base) for seed in setup.seeds}
        _wait(study.name, "towers", towers.values())
        jobs = {
            (name, seed): _folder(cache, study.name, settings, shared) / f"seed-{seed}.json"
            for seed in setup.seeds
            for name, settings in variants.items()
        }
        done = [path for path in jobs.values() if path.is_file()]
        print(f"{study.name}: {len(jobs)} runs, {len(done)} of them done before", file=sys.stderr, flush=True)
        futures = [
            submit(_job, name, variants[name], setup, seed, towers[seed].result(), path, commit)
            for (name, seed), path in jobs.items()
            if path not in done
        ]
        _wait(study.name, "runs", futures)
    found = [{"variant": name, "seed": seed, **json.loads(path.read_text())} for (name, seed), path in jobs.items()]
    return StudyResult(
        name=study.name,
        device="cpu",
        quick=quick,
        date=started,
        commit=commit,
        machine=machine.machine("cpu"),
        versions=machine.versions(PACKAGES),
        setup={**shared, "seeds": list(setup.seeds), "model": asdict(setup.config().model)},
        runs=found,
    )


def _job(name: str, settings: ModelConfig, setup: Setup, seed: int, towers: Path, path: Path, commit: str) -> str:
    """One run, written to its file; returns what to say about it."""
    started = time.monotonic()
    found: dict[str, Any] = {"date": _now(), "commit": commit}
    found |= pretrained.train_and_score(settings, setup, seed, towers)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    recall = " / ".join(f"{found['metrics'][direction]['R@1']:.1f}" for direction in ("t2v", "v2t"))
    seconds = f"{sum(found['cpu_seconds'].values()):.0f} CPU s in {time.monotonic() - started:.0f} s"
    return f"{name}, seed {seed}: R@1 {recall}, loss {found['loss']:.3f}, {seconds}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _folder(cache: Path, kind: str, model: ModelConfig, shared: Mapping[str, Any]) -> Path:
    """Where the runs of these settings are kept: a function of all that they depend on but the seed."""
    # Without those that are off: a setting that is new and off changes nothing.
    settings = {name: value for name, value in asdict(model).items() if value is not None}
    text = json.dumps([settings, shared], sort_keys=True)
    folder = cache / kind / hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _executor(workers: int) -> Iterator[Callable[..., Future[Any]]]:
    """Something that runs functions: in so many processes, or here and at once."""
    if workers == 0:
        yield _here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _here(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(*arguments))
    return future


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


def _wait(study: str, what: str, futures: Sequence[Future[Any]] | Any) -> None:
    """Until all are done, saying of each that it is.

    Raises:
        KeyboardInterrupt: the user wants an end.
    """
    futures, done = list(futures), 0
    started = time.monotonic()
    try:
        for future in as_completed(futures):
            said, done = future.result(), done + 1
            left = (time.monotonic() - started) / done * (len(futures) - done)
            line = f"{study}: {what} {done} of {len(futures)}, about {left / 60:.0f} min left: {said}"
            print(line, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"{study}: stopped; run it again to go on after {done} more {what}", file=sys.stderr)
        raise
