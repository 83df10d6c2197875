"""Every call that changes a disk fails in turn, or is the last one of its process.

What was there before is there still, or the new is, and never a mixture that could be read; after an error nothing is
left beside; and the same job, done again, ends as if nothing had happened.

    python -m tests.test_faults        # each call with each error; prints how many calls that were
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import multigrain as mg
from multigrain import files, training
from multigrain.data.prepare import prepare as prepare_manifest
from multigrain.data.video import VideoError
from multigrain.evaluation.results import write_results
from multigrain.files import write as file_writing
from multigrain.gallery import extraction
from multigrain.gallery.collection import Collection
from multigrain.models import XCLIP, encoding
from multigrain.models.pretrained import write_folder
from tests.colours import colour_model
from tests.data.test_prepare import write as annotations
from tests.test_training import CONFIG, DATA

LIKELY = {"fsync": errno.EIO, "replace": errno.EIO, "truncate": errno.EIO}  # else a full disk
KILLED = 9


class Faults:
    """The calls that change a disk; number `at`, from 1 on, fails with an error, or (None) ends the process."""

    def __init__(self, at: int = 0, error: int | None = None) -> None:
        self.at, self.error, self.calls = at, error, list[str]()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **options)
            self.calls.append(name)
            if len(self.calls) != self.at:
                return call(*arguments, **options)
            if name == "write":  # half of it
                call(*arguments[:-1], memoryview(arguments[-1])[: len(arguments[-1]) // 2])
            if self.error is None:
                os._exit(KILLED)
            raise OSError(self.error, os.strerror(self.error))

        return faulty

    @contextmanager
    def strike(self) -> Iterator[list[str]]:
        """Inside it; gives the list of the calls so far."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "fsync", "replace", "link", "mkdir", "truncate"):
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            for name in ("write", "truncate"):
                patch.setattr(file_writing._Raw, name, self.wrap(name, getattr(file_writing._Raw, name)))
            yield self.calls


@dataclasses.dataclass
class Job:
    """What is done in a folder, and what may be found there when it fails.

    Args:
        before: what is there before.
        work: the job.
        state: what a reader finds; raises where it refuses.
    """

    before: Callable[[Path], object]
    work: Callable[[Path], object]
    state: Callable[[Path], object]


REFUSED = "refused"


def weights(model: XCLIP) -> object:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def model_of(seed: int) -> XCLIP:
    torch.manual_seed(seed)
    return XCLIP.from_config(CONFIG.model, ["red", "blue"][:: 1 if seed else -1])


class Letters:
    """A tokenizer of transformers, as far as it is written; an older one had another file."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        for name in self.names:
            (folder / name).write_text(" ".join(self.names))


def save_model(folder: Path, seed: int, *names: str) -> None:
    model = model_of(seed)
    assert model.config is not None
    write_folder(folder / "model", model.config, model.text.vocabulary, model, Letters(*names))


def loaded(folder: Path) -> object:
    model = XCLIP.from_pretrained(folder / "model")
    parts = {path.name: path.read_text() for path in (folder / "model" / "tokenizer").glob("*.json")}
    return weights(model), model.text.vocabulary, parts


STAGE = dataclasses.replace(CONFIG.stages[1], batch_size=20)
SHORT = dataclasses.replace(CONFIG, stages=[STAGE], validation_pairs=2, checkpoint_seconds=600)


def trained(folder: Path) -> object:
    """The model; and that every checkpoint there is can be gone on from."""
    for path in (folder / "run").glob("checkpoint*"):
        if path.suffix == ".pt":
            files.load_tensors(path)
    for path in (folder / "run").glob("*.json"):
        files.read_json(path)
    return weights(XCLIP.from_pretrained(folder / "run" / "model"))


VIDEOS = [f"/videos/{i}.mp4" for i in range(5)]


def read(path: str, *_: object) -> torch.Tensor:
    number = VIDEOS.index(path)
    if number == 2:
        raise VideoError(f"{path}: broken")
    return torch.full((2, 3, 16, 16), 50 * number, dtype=torch.uint8)


def extract(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shards are made again
        patch.setattr(encoding, "read_video", read)
        return extraction.extract(colour_model(), VIDEOS, folder / "out", shard_size=2, workers=1)


def extracted_and_damaged(folder: Path) -> None:
    extract(folder)
    (folder / "out" / "shard-00000.pt").write_bytes(b"damaged")


def found(folder: Path) -> object:
    """What a reader gets of a collection that is complete."""
    collection = Collection.open(folder / "out")
    features = [collection.load(shard)["video"].features.tolist() for shard in collection.shards if shard.file]
    if not collection.complete:
        raise FileNotFoundError("some are missing")
    return collection.videos, collection.broken, features


def annotated(folder: Path) -> None:
    (folder / "data").mkdir()
    annotations(folder / "data", "msrvtt")
    prepare(folder, val=0)


def prepare(folder: Path, val: int = 1) -> object:
    data = folder / "data"
    return prepare_manifest("msrvtt", data / "annotations", data / "videos", folder / "set.jsonl", val=val)


def evaluated(number: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        features = mg.Features(a=torch.eye(3) + number * torch.ones(3, 3).triu())
        scorer = mg.MultiGrain(mg.Grain("a", "a"))
        out = files.open_folder(folder / "out")
        with files.lock(out), redirect_stdout(io.StringIO()):
            evaluation = training.evaluate_features(features, features, scorer)
            write_results(out, evaluation, "diagonal", *[[f"{number} {i}" for i in range(3)]] * 2)

    return write


def results(folder: Path) -> object:
    metrics = files.read_json(folder / "out" / "metrics.json")
    files.check_digest(folder / "out" / "rankings.jsonl", metrics["sha256"]["rankings.jsonl"])
    return metrics["metrics"], (folder / "out" / "rankings.jsonl").read_text()


def features(number: float) -> Callable[[Path], None]:
    return lambda folder: mg.Features(a=torch.full((3, 2), number)).save(folder / "a.pt")


def loaded_features(folder: Path) -> object:
    return mg.Features.load(folder / "a.pt")["a"].features.tolist()


JOBS = {
    "train": Job(lambda _: None, lambda folder: training.train(SHORT, DATA, folder / "run"), trained),
    "save a model": Job(
        lambda folder: save_model(folder, 0, "old.json", "both.json"),
        lambda folder: save_model(folder, 1, "new.json", "both.json"),
        loaded,
    ),
    "extract": Job(lambda _: None, extract, found),
    "extract again": Job(extracted_and_damaged, extract, found),
    "prepare": Job(annotated, prepare, lambda folder: (folder / "set.jsonl").read_text()),
    "evaluate": Job(evaluated(1), evaluated(2), results),
    "save features": Job(features(1.0), features(2.0), loaded_features),
}


def seen(job: Job, folder: Path) -> object:
    """What a reader finds, or that it refuses."""
    try:
        return job.state(folder)
    except (FileNotFoundError, ValueError):
        return REFUSED


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fails(work: Callable[[], object]) -> str:
    """What the error says; nothing where there is a way round it."""
    try:
        work()
    except OSError as error:
        return str(error)
    return ""


def in_child(work: Callable[[], object]) -> int:
    """The exit code of a process that does the work."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def inject(job: Job, folder: Path, thorough: bool = False) -> int:
    """Let every call fail in turn; returns how many failures that were."""
    before, calm = folder / "before", folder / "calm"
    before.mkdir()
    job.before(before)
    job.work(shutil.copytree(before, folder / "first"))  # after which nothing is done for the first time
    shutil.copytree(before, calm)
    with Faults().strike() as calls:
        job.work(calm)
    old, new, listing = seen(job, before), seen(job, calm), names(calm)
    assert REFUSED != new != old
    points = [(n, error) for n, name in enumerate(calls, 1) for error in errors(name, thorough)]
    for n, error in points:
        place = folder / "place"
        shutil.copytree(before, place)
        what = f"{calls[n - 1]}, call {n} of {len(calls)}: {'killed' if error is None else errno.errorcode[error]}"
        with Faults(n, error).strike():
            ended = fails(partial(job.work, place)) if error is not None else in_child(partial(job.work, place))
        assert ended == KILLED if error is None else len(ended) < 400, f"{what}: {ended}"
        got = seen(job, place)
        assert got in (old, new, REFUSED), f"{what}: a mixture"
        if ended and "replace" not in calls[: n - 1]:
            assert got == old, f"{what}: the old is lost"
        if error is not None and calls[n - 1] in ("mkdir", "open", "write", "link"):
            assert got in (old, new), f"{what}: the old is lost on a full disk"
        if error is not None:
            assert not [name for name in names(place) if name.endswith((".tmp", ".lock"))], f"{what}: some is left"
        job.work(place)
        assert seen(job, place) == new, f"{what}: another result"
        left = [name for name in names(place) if not (error is None and name.startswith("a.pt."))]
        assert left == listing, f"{what}: other files"  # but for those beside a file that stands alone
        shutil.rmtree(place)
    return len(points)


def errors(name: str, thorough: bool) -> list[int | None]:
    return [errno.ENOSPC, errno.EIO, None] if thorough else [LIKELY.get(name, errno.ENOSPC), None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("name", JOBS)
def test_no_failure_leaves_a_mixture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # whether it is called and may fail is what matters here
    assert inject(JOBS[name], tmp_path) >= 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, job in JOBS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {inject(job, Path(folder), thorough=True)} failures, no mixture", flush=True)
