"""The cache of BabyAI rollouts: shards of seeds, generated in parallel, written atomically, reused.

A shard is a pure function of (seed, stream, number), so the result depends neither on the number of workers
nor on the files of an interrupted run. The folder's name is a key of everything that shapes a shard.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import files
from .render import KINDS

Stream = Literal["many", "one"]

_ARRAYS = ("sentences", "lengths", "observations", "skipped")  # of a shard's file
_LARGEST = 2**24  # bytes of one of them
_OLD = 3600  # seconds after which no process writes the same file still

FORMAT = 1
"""Raise it with any change to the world, the bot or the file that would change a shard."""
STEPS = (4, 64)
"""Fewest and most views of a rollout that is kept."""
TIME_LIMIT = 3.0
"""Seconds of CPU for a seed, a thousand times the usual: some never leave ``reset()``."""
SHARD = 250
"""Rollouts in a shard: an interrupt loses about a second of work."""
SEEDS_PER_ROLLOUT = 100
"""A shard that has tried this many seeds for each rollout it holds gives up."""


class ShardId(NamedTuple):
    """The name of a shard: its ``stream``, "many" (two to four actions) or "one", and its number in it."""

    stream: Stream
    number: int


class RolloutShard(NamedTuple):
    """The first `SHARD` rollouts that succeed among a shard's own seeds."""

    sentences: list[str]
    lengths: NDArray[np.int64]
    """[SHARD] steps of each rollout"""
    observations: NDArray[np.uint8]
    """[sum of lengths, 7, 7, 3]"""
    skipped: Counter[str]
    """seeds that gave no pair, by reason"""


def shards_for(pairs: int, single: int) -> list[ShardId]:
    """List the shards that hold ``pairs`` rollouts of many actions and ``single`` of one."""
    wanted: list[tuple[Stream, int]] = [("many", pairs), ("one", single)]
    return [ShardId(stream, k) for stream, count in wanted for k in range(-(-count // SHARD))]


def folder_for(cache_dir: Path, seed: int) -> Path:
    """Return the folder of a seed's shards, keyed by every setting that shapes them."""
    settings = {
        "format": FORMAT,
        "shard": SHARD,
        "seeds_per_rollout": SEEDS_PER_ROLLOUT,
        "steps": STEPS,
        "time_limit": TIME_LIMIT,
        "seed": seed,
        "minigrid": importlib.metadata.version("minigrid"),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir / f"babyai-{key}"


def load_shards(
    cache_dir: Path, ids: Sequence[ShardId], seed: int, workers: int, progress: bool
) -> dict[ShardId, RolloutShard]:
    """Load every shard of ``ids``, or generate and keep those that are missing or damaged."""
    folder = folder_for(cache_dir, seed)
    found: dict[ShardId, RolloutShard] = {}
    for shard in ids:
        path = _path(folder, shard)
        try:
            found[shard] = read_shard(path)
        except FileNotFoundError:
            continue
        except CorruptShardError as error:
            print(f"multigrain: corrupt cache file {path} ({error}): regenerating it", file=sys.stderr)
    missing = [shard for shard in ids if shard not in found]
    if missing:
        files.remove_partial(files.open_folder(folder, "cache_dir"), age=_OLD)  # others may be at the same cache
        _generate(folder, missing, seed, workers, progress)
        found |= {shard: read_shard(_path(folder, shard)) for shard in missing}
    return found


class CorruptShardError(ValueError):
    """A shard file cannot be read, or is no shard."""


def read_shard(path: Path) -> RolloutShard:
    """Read and verify one shard; a zip archive carries a checksum of every array.

    Raises:
        FileNotFoundError: there is none.
        CorruptShardError: it is truncated, damaged or not a shard.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sentences, lengths, observations, skipped = (_array(archive, name) for name in _ARRAYS)
        reasons = files.parse_json(str(skipped[()]))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damaged contents raise many kinds
        raise CorruptShardError(f"unreadable: {type(error).__name__}") from error
    problems = {
        "sentences": sentences.shape != (SHARD,) or sentences.dtype.kind != "U",
        "lengths": lengths.shape != (SHARD,) or lengths.dtype != np.int64 or not _within(lengths, 1, STEPS[1]),
        "skipped": not isinstance(reasons, dict) or not all(type(count) is int for count in reasons.values()),
        "observations": observations.dtype != np.uint8 or observations.shape[1:] != (7, 7, 3),
    }
    if not any(problems.values()):
        problems["observations"] = len(observations) != lengths.sum() or bool((observations >= KINDS).any())
    if bad := [name for name, wrong in problems.items() if wrong]:
        raise CorruptShardError(f"no {' and '.join(bad)} of a shard")
    return RolloutShard(sentences.tolist(), lengths, observations, Counter[str](reasons))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array that np.save wrote; a header that promises more than there is makes nothing allocated."""
    if (entry := archive.getinfo(f"{name}.npy")).file_size > _LARGEST:
        raise ValueError(f"{name}: expected at most {_LARGEST} bytes")
    file = io.BytesIO(archive.read(entry))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(file.read(), dtype).reshape(shape)


def _within(values: NDArray[np.int64], low: int, high: int) -> bool:
    return low <= values.min() and values.max() <= high


def write_shard(path: Path, shard: RolloutShard) -> None:
    """Write a shard, whole or not at all."""
    with files.writing(path) as file:
        np.savez_compressed(
            file,
            sentences=np.array(shard.sentences),
            lengths=shard.lengths,
            observations=shard.observations,
            skipped=np.array(json.dumps(shard.skipped)),
        )


def make_shard(shard: ShardId, seed: int) -> RolloutShard:
    """Roll out the shard's own seeds, in order, until `SHARD` of them gave a pair."""
    from .world import Skipped, rollout, time_limit

    room = _room(shard.stream)
    # Seeds of any size are welcome to the generator, so streams and shards get ranges that cannot meet.
    tries = SHARD * SEEDS_PER_ROLLOUT
    first = (((seed << 1) + (shard.stream == "one")) << 40) + shard.number * tries
    kept: list[tuple[str, NDArray[np.uint8]]] = []
    skipped: Counter[str] = Counter()
    for candidate in range(first, first + tries):
        try:
            with time_limit(TIME_LIMIT), redirect_stdout(io.StringIO()):  # minigrid prints "Sampling rejected"
                kept.append(rollout(room, candidate, STEPS))
        except Skipped as reason:
            skipped[str(reason)] += 1
        if len(kept) == SHARD:
            break
    else:
        raise RuntimeError(f"only {len(kept)} of {tries} seeds of {shard} gave a pair: {dict(skipped)}")
    lengths = np.array([len(views) for _, views in kept], np.int64)
    return RolloutShard([mission for mission, _ in kept], lengths, np.concatenate([v for _, v in kept]), skipped)


@functools.cache
def _room(stream: Stream) -> Any:
    from .world import ColouredRoom

    return ColouredRoom(stream)


def _path(folder: Path, shard: ShardId) -> Path:
    return folder / f"{shard.stream}-{shard.number:05d}.npz"


def _generate(folder: Path, missing: Sequence[ShardId], seed: int, workers: int, progress: bool) -> None:
    pool = ProcessPoolExecutor(min(workers, len(missing)), _context(), initializer=_start_worker)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on: NumPy's idle threads count. The workers use none of their locks.
            warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
            jobs = [pool.submit(_generate_one, _path(folder, shard), shard, seed) for shard in missing]
        with _progress(len(jobs), enabled=progress) as advance:
            for job in as_completed(jobs):
                job.result()
                advance()
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)  # shards under way are finished and kept
        kept = sum(_path(folder, shard).exists() for shard in missing)
        print(f"multigrain: interrupted; the next call goes on from {kept} of {len(missing)} shards", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Fork on Linux: workers inherit the imported world, and a script needs no ``__main__`` guard."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")  # forking is unsafe on macOS and absent on Windows
    importlib.import_module(".world", __package__)
    return multiprocessing.get_context("fork")


def _generate_one(path: Path, shard: ShardId, seed: int) -> None:
    write_shard(path, make_shard(shard, seed))


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group: the parent decides. A parent that is killed takes its workers along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _progress(total: int, *, enabled: bool) -> Generator[Callable[[], None]]:
    """Show a bar where rich is installed and stderr is a terminal, else about ten plain lines."""
    label = "generating BabyAI pairs"
    if enabled and sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            pass
        else:
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task(label, total=total)
                yield lambda: bar.advance(task)
            return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if enabled and (done * 10) // total > ((done - 1) * 10) // total:
            print(f"{label}: {done}/{total} shards", file=sys.stderr, flush=True)

    yield advance
