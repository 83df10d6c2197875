"""Damaged files: some of each here; `python -m tests.fuzz` runs as many as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz import files, pool, videos

CASES = 200
# From Python 3.12 on; the workers use none of the locks of other threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def run(judge: pool.Judge, cases: int = CASES) -> list[pool.Outcome]:
    outcomes = list(pool.run(judge, range(cases), workers=1))
    assert [outcome.case for outcome in outcomes] == list(range(cases))
    return outcomes


def test_mutated_videos_give_frames_or_a_video_error(tmp_path: Path) -> None:
    made = videos.seeds(tmp_path / "seeds")
    assert len({name.partition(".")[2] for name in made}) >= 10
    outcomes = run(videos.Videos(made, tmp_path))
    assert not [(outcome.case, outcome.bad) for outcome in outcomes if outcome.bad]
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert min(counts["frames"], counts["VideoError"]) > CASES // 5


def test_mutated_files_load_equal_or_are_refused_in_a_line(tmp_path: Path) -> None:
    outcomes = run(files.seeds(tmp_path / "seeds"))
    assert not [(outcome.case, outcome.bad) for outcome in outcomes if outcome.bad]
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert counts["refused"] > CASES // 2
    assert counts["the same"] > 0
    assert counts["other values"] < CASES // 4


def test_cases_follow_from_their_number_and_the_seed(tmp_path: Path) -> None:
    made = videos.seeds(tmp_path / "seeds")
    judges = [videos.Videos(made, tmp_path), videos.Videos(made, tmp_path), videos.Videos(made, tmp_path, 1)]
    one, again, other = ([judge.case(number) for number in range(20)] for judge in judges)
    assert one == again
    assert one != other
    assert sum(content != made[name] for name, content, _ in one) >= 18


def test_what_breaks_or_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_HANGS", 10.0)
    monkeypatch.setattr(pool, "SECONDS", 2.0)

    def judge(case: int) -> str:
        match case:
            case 1:
                raise RuntimeError("broken")
            case 2:
                os._exit(3)
            case 3:
                time.sleep(100)
            case 4:
                assert len(bytearray(os.urandom(1 << 20)) * 1100) > 0
            case 5:
                since = time.process_time()
                while time.process_time() - since < 2.2:
                    pass
        return "fine"

    reasons = {outcome.case: outcome.bad for outcome in run(judge, 8)}
    assert [number for number, reason in reasons.items() if not reason] == [0, 6, 7]
    assert "RuntimeError: broken" in reasons[1]
    assert reasons[2] == "the worker died: exit code 3"
    assert reasons[3].startswith("it hangs")
    assert reasons[4].endswith(" MB")
    assert "processor time" in reasons[5]


def test_a_finding_fails_the_command_and_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--videos", "22", "--files", "11", "--workers", "1"]
    root = Path(__file__).parent.parent
    good = subprocess.run([*command, "--keep", str(tmp_path / "kept")], cwd=root, capture_output=True, text=True)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "videos: 22 cases: " in good.stdout
    assert "files: 11 cases: " in good.stdout
    assert not (tmp_path / "kept").exists()
    script = "import sys; from tests.fuzz import __main__ as m, pool; pool.SECONDS = 0; sys.exit(m.main())"
    bad = subprocess.run(
        [sys.executable, "-c", script, *command[3:5], "--files", "0", "--keep", str(tmp_path / "kept")],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert len(list((tmp_path / "kept").iterdir())) == 22
