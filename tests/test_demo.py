"""The main job in its one-minute version, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from multigrain.evaluation import tables
from tests.pages import assert_self_contained

GRAINS = ["sentence-video", "word-video", "sentence-frame", "word-frame"]


def test_quick_demo(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "multigrain.cli", "demo", "--quick", "--out", "run", "--workers", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("chance ") >= 1
    assert all(name in run.stdout for name in [*GRAINS, "all four", "Time: pairs"])
    assert run.stdout.endswith("Open run/index.html\n")
    out = tmp_path / "run"
    results = json.loads((out / "metrics.json").read_text())
    assert list(results["metrics"]) == [*GRAINS, "all"]
    assert results["candidates"] == results["data"]["test"]
    for name in ("curves.png", "similarity.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    text = (out / "index.html").read_text(encoding="utf-8")
    page = assert_self_contained(text)
    assert page.images >= 3 + 12 * 4 + 12 + 5  # figures, strips of examples, heat maps, hubs
    assert page.scripts == 2
    assert all(words in text for words in ("Worst", "Skewness", "chosen how", "seed", "validation"))


def test_table() -> None:
    metrics = {name: tables.chance(100) for name in ["a", "b", "all"]}
    rows = tables.rows(metrics, 100)
    assert [row.name for row in rows] == ["a", "b", "both", "chance"]
    assert rows[-1].cells[:5] == ["1.0", "5.0", "10.0", "50.5", "50.5"]
    assert [row.name for row in tables.rows({"a": tables.chance(5), "all": tables.chance(5)}, 5)] == ["a", "chance"]
    assert tables.chance(5)["t2v"]["R@10"] == 100
    assert tables.standard_error(50, 1000) == pytest.approx(1.58, abs=0.01)
