"""Count how often control passes from one part of the package to another: `python -m tests.crossings`.

A tiny model is trained, evaluated and explained by the command line under `sys.setprofile`. A part is a folder or a
file at the top level of the package. A call crosses if its function belongs to another part than the nearest function
of the package that called it. Checks (checks.py, and functions named after them) are left out with what they call, and
so are other threads. Each command runs once before it is traced, so that no import is counted.

The figures of another commit come from its worktree: PYTHONPATH=WORKTREE python tests/crossings.py
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import multigrain
from multigrain.cli import main
from tests.models.clips import saved, tiny_clip
from tests.test_end_to_end import dataset, settings

PACKAGE = str(Path(multigrain.__file__).parent) + "/"


def part_of(frame: FrameType) -> str | None:
    """Name the part that a function belongs to, None outside the package; all checks are one part."""
    path = frame.f_code.co_filename
    if not path.startswith(PACKAGE):
        return None
    part = path.removeprefix(PACKAGE).split("/")[0].removesuffix(".py")
    return "checks" if frame.f_code.co_name.lstrip("_").startswith("check") else part


def crossings_of(command: list[str]) -> Counter[tuple[str, str]]:
    """Run a command twice; count the second run's calls from one part to another by (from, to)."""
    found: Counter[tuple[str, str]] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (part := part_of(frame)) is None:
            return
        caller, source = frame.f_back, None
        while caller is not None and (source := part_of(caller)) is None:
            caller = caller.f_back
        if source is not None and source != part and "checks" not in (source, part):
            found[source, part] += 1

    assert main(command) == 0
    sys.setprofile(profile)
    assert main(command) == 0
    sys.setprofile(None)
    return found


def report(folder: Path) -> None:
    """Print the crossings of train, evaluate and explain, and the most frequent of all."""
    annotations, videos, manifest = dataset(folder, "msrvtt")
    main(["prepare", "msrvtt", f"--annotations={annotations}", f"--videos={videos}", f"--out={manifest}", "--val=0"])
    values = settings(manifest, saved(tiny_clip(text_cfg={"width": 64, "heads": 1}), folder / "clip.pt"))
    config, out, page = (str(folder / name) for name in ("config.yaml", "run", "page.html"))
    Path(config).write_text(yaml.safe_dump(values))
    video = str(next(path for path in videos.rglob("*") if path.is_file()))
    found = {
        "train": crossings_of(["train", "--config", config, "--out", out, "--no-resume"]),
        "evaluate": crossings_of(["evaluate", "--out", out, "--report", page]),
        "explain": crossings_of(["explain", "--model", out, "--video", video, "--text", "a dog", "--out", page]),
    }
    together = sum(found.values(), Counter())
    print(*(f"{name} {count.total()}" for name, count in {**found, "together": together}.items()), sep=", ")
    print(*(f"{times:6}  {source} -> {target}" for (source, target), times in together.most_common(9)), sep="\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        report(Path(name))
