"""Opening a file is inert: every place that reads one, over hostile files, under an audit hook (see inert.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import inert

ROOT = Path(__file__).parent.parent
# What may be read though it is hostile: as data, it harms nobody.
READ = {"metrics.jsonl", "a manifest", "Collection.open"}


def read(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """What the places of the table did and said."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.inert", str(folder), *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=500,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return read(tmp_path_factory.mktemp("inert"))


@pytest.mark.parametrize("name", inert.places())
def test_a_hostile_file_does_nothing_and_is_refused_in_one_line(name: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[name]["acts"] == []
    outcome = told[name]["outcome"].strip()
    if name in READ:
        assert "Error" not in outcome
        return
    *notices, line = outcome.split("\n")
    assert line.startswith(("2: multigrain: error: ", "multigrain: error: ")) or "Error: " in line[:30], outcome
    assert all(notice.startswith("2: multigrain: ") for notice in notices)
    assert "\x1b" not in outcome
    assert len(line) < 500


@pytest.mark.parametrize(
    ("way", "names", "act"),
    [
        (
            "torch.jit.load",
            ["XCLIP.from_clip, TorchScript", "runs.load_model, TorchScript", "explain"],
            "changed victim",
        ),
        (
            "import_module",
            [
                "XCLIP.from_pretrained, a class",
                "runs.load_model, a run",
                "training.load_config, JSON",
                "search, a model",
            ],
            "imported evil_module",
        ),
        ("import_module", ["XCLIP.from_pretrained, a class of an installed module"], "imported this"),
        (
            "weights_only=False",
            [
                "Features.load",
                "XCLIP.from_original",
                "a checkpoint of training",
                "Collection.load",
                "evaluate, features",
            ],
            "imported evil_module",
        ),
        ("any name is the Hub's", ["XCLIP.from_pretrained, nothing there"], "socket.getaddrinfo"),
    ],
)
def test_a_reader_that_acts_is_heard(way: str, names: list[str], act: str, tmp_path: Path) -> None:
    told = read(tmp_path, way, *names)
    assert list(told) == [name for name in inert.places() if name in names]
    for name in names:
        assert any(found.startswith(act) for found in told[name]["acts"]), (name, told[name])
