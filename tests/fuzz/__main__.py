"""Run many cases: `python -m tests.fuzz [--videos N] [--files N] [--seed S] [--first N] [--keep FOLDER]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import files, pool, videos


def main() -> int:
    """0 where every case ended as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=5000)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on after an interruption")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where inputs that break something go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.videos:
            bad += run("videos", videos.Videos(videos.seeds(root / "videos"), root, given.seed), given.videos, given)
        if given.files:
            bad += run("files", files.seeds(root / "files", given.seed), given.files, given)
    return int(bad > 0)


def run(kind: str, judge: videos.Videos | files.Files, count: int, given: argparse.Namespace) -> int:
    """Run the cases of a kind, say how they go, and return how many broke something."""
    outcomes: list[pool.Outcome] = []
    since = said = time.monotonic()
    try:
        for outcome in pool.run(judge, range(given.first, given.first + count), given.workers):
            outcomes.append(outcome)
            if outcome.bad:
                given.keep.mkdir(parents=True, exist_ok=True)
                name, content, *_ = judge.case(outcome.case)
                kept = given.keep / f"{kind}-{given.seed}-{outcome.case}-{name.replace('/', '-')}"
                kept.write_bytes(content)
                print(f"\n{kind} case {outcome.case}, kept as {kept}: {outcome.bad}", flush=True)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{said - since:5.0f} s  {kind}: {pool.summary(outcomes)}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted; go on with --first {given.first + len(outcomes)}")
    print(f"{kind}: {pool.summary(outcomes)}; {time.monotonic() - since:.0f} s in all", flush=True)
    return sum(bool(outcome.bad) for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
