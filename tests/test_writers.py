"""One writer in a folder at a time, in all commands: a second one is refused by number, a killed one holds nothing."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multigrain import files, training
from multigrain.cli import main
from multigrain.data.manifest import Clip, write_manifest
from multigrain.models import XCLIP
from multigrain.training import ClipsConfig
from tests.test_training import CONFIG, DATA, Paint, lines, same_weights
from tests.worlds import World

ROOT = Path(__file__).parent.parent
HOLD = """
import sys
from contextlib import ExitStack
from multigrain import files
with ExitStack() as stack:
    for place in sys.argv[1:]:
        stack.enter_context(files.lock(place))
    print("now", flush=True)
    input()
"""
TRAIN = """
import sys, time
from tests.test_writers import CONFIG, DATA, training
import dataclasses
def wait(event):
    if event.stage == "grains" and event.step == 3:
        print("now", flush=True)
        time.sleep(60)
training.train(dataclasses.replace(CONFIG, workers=2), DATA, sys.argv[1], progress=wait)
"""


@contextmanager
def other(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, once it says "now"; it is killed in the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        yield process
        process.kill()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training on videos."""
    folder = tmp_path_factory.mktemp("writers") / "run"
    write_manifest(folder.with_name("set.jsonl"), [Clip(split, Path("no.mp4"), ("red",), split) for split in SPLITS])
    config = dataclasses.replace(CONFIG, data=ClipsConfig(str(folder.with_name("set.jsonl")), size=16))
    XCLIP.from_config(config.model, ["red"]).save_pretrained(folder / "model")
    files.write_json(folder / "config.json", dataclasses.asdict(config))
    return folder


SPLITS = ("train", "val", "test")
COMMANDS = {
    "demo": ["demo", "--out", "{held}"],
    "train": ["train", "--config", "{run}/config.json", "--out", "{held}"],
    "prepare": ["prepare", "msrvtt", "--annotations", "none", "--videos", "none", "--out", "{held}/set.jsonl"],
    "evaluate": ["evaluate", "--out", "{run}"],
    "evaluate features": ["evaluate", "--text", "none", "--video", "none", "--out", "{held}"],
    "extract": ["extract", "none.mp4", "--model", "none", "--out", "{held}"],
    "explain": ["explain", "--model", "none", "--video", "none", "--text", "red", "--out", "{held}/why.png"],
}


@pytest.fixture(scope="module")
def held(run: Path) -> Iterator[tuple[Path, int]]:
    """A folder in which another process writes everything, as it does in that of the run; and its number."""
    held = run.with_name("held")
    held.mkdir()
    with other(HOLD, held, run, held / "set.jsonl", held / "why.png") as process:
        yield held, process.pid


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_writer_is_refused_before_anything_is_computed(
    command: str, run: Path, held: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)  # where the demo would put its pairs
    before = sorted(held[0].iterdir())
    assert main([part.format(held=held[0], run=run) for part in COMMANDS[command]]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"process {held[1]} on {socket.gethostname()} is writing there; wait for it to end" in line
    assert sorted(held[0].iterdir()) == before
    assert not list(tmp_path.iterdir())


def refused(rank: int, size: int, out: Path) -> str:
    with pytest.raises(BlockingIOError) as caught:
        training.train(CONFIG, DATA, out)
    return str(caught.value)


def test_every_rank_is_refused(held: tuple[Path, int], tmp_path: Path):
    with World(2, tmp_path) as world:
        assert all(f"process {held[1]} on" in said for said in world(refused, held[0]))


def test_a_killed_trainer_with_readers_holds_nothing(tmp_path: Path):
    whole = training.train(CONFIG, DATA, tmp_path / "whole")
    out = tmp_path / "run"
    with other(TRAIN, out) as process:
        with pytest.raises(BlockingIOError, match=rf"process {process.pid} on "):
            training.train(CONFIG, DATA, out)
        process.kill()
        process.wait()
        assert same_weights(training.train(CONFIG, DATA, out), whole)
    assert lines(out) == lines(tmp_path / "whole")
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_a_run_on_other_files_of_a_manifest_is_refused(tmp_path: Path):
    """What the pairs of a manifest tell of themselves: the file, wherever the folder lies now, and the part of it."""

    def fingerprint(folder: str, video: str = "a.mp4", **part: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        clips = [Clip(f"{split}", tmp_path / folder / video, ("red",), split, **part) for split in SPLITS]
        write_manifest(tmp_path / folder / "set.jsonl", clips)
        return training.data.fingerprint(ClipsConfig(str(tmp_path / folder / "set.jsonl")).load())

    first = fingerprint("one")
    assert fingerprint("moved") == first
    for other_data in (fingerprint("one", "b.mp4"), fingerprint("one", start=1.0), fingerprint("one", end=9.0)):
        assert {split: [k for k in first[split] if first[split][k] != other_data[split][k]] for split in first} == {
            split: ["sources"] for split in ("train", "single", "val", "test")
        }
    swapped = SimpleNamespace(**{**vars(DATA), "val": Paint(8, 3)})
    assert training.data.fingerprint(swapped)["val"] != training.data.fingerprint(DATA)["val"]
