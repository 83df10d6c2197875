"""The main job in its one-minute version, and the page that it leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multigrain.report import examples, tables
from multigrain.report.page import Example, Hit, Report, render, strip_png

GRAINS = ["sentence-video", "word-video", "sentence-frame", "word-frame"]


class Page(HTMLParser):
    """Tags that are open, and everything that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "iframe", "object", "embed")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"url\(|@import|https?://", text)
    return page


def test_quick_demo(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "multigrain.cli", "demo", "--quick", "--out", "run", "--workers", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    assert page.images >= 3 + 12 * 4
    assert all(words in text for words in ("Furthest behind", "chosen how", "seed", "validation"))


def hit(sentence: str, own: bool = True) -> Hit:
    return Hit(np.zeros((2, 8, 8, 3), np.uint8), sentence, 0.5, 1, own)


def test_page_escapes_text() -> None:
    evil = '<script>alert("x")</script> & $title ${style}'
    row = tables.Row(evil, ["1"] * 10, "grain")
    example = Example(evil, 1, [hit(evil, own=False)])
    report = Report(evil, evil, [evil], [row], evil, [(b"png", evil)], evil, {evil: [example]}, (b"png", evil),
                    {evil: evil}, evil)  # fmt: skip
    text = render(report)
    assert_self_contained(text)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 12
    assert "$title" in text  # nothing is substituted twice


def test_page_width_follows_the_screen() -> None:
    text = render(Report("t", "v", [], [], "", [], "", {}, (b"", "")))
    assert '<meta name="viewport" content="width=device-width' in text


def test_strips_keep_every_pixel(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 6, (3, 8, 8, 3)).astype(np.uint8) * 50
    (tmp_path / "strip.png").write_bytes(strip_png(frames))
    with Image.open(tmp_path / "strip.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (8, 3 * 10 - 2, 3)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(pixels[:, 10 * i : 10 * i + 8], frame)


def test_examples_show_each_query_once_and_its_own_video() -> None:
    scores = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    scores[3, 3], scores[7, 7] = 9.0, -9.0
    sentences = [f"sentence {i}" for i in range(20)]
    groups = examples.choose(scores, sentences, lambda i: np.full((1, 8, 8, 3), i, np.uint8), each=4, hits=3)
    shown = [example for group in groups.values() for example in group]
    assert len({example.sentence for example in shown}) == 12
    best, _, worst = groups.values()
    assert best[0].sentence == "sentence 3"
    assert worst[0].sentence == "sentence 7"
    assert worst[0].rank == 20
    for example in shown:
        assert [hit.rank for hit in example.hits[:3]] == [1, 2, 3]
        [own] = [hit for hit in example.hits if hit.own]
        assert own.sentence == example.sentence
        assert own.rank == example.rank


def test_examples_of_a_small_test() -> None:
    groups = examples.choose(torch.eye(3), ["a", "b", "c"], lambda _: np.zeros((1, 8, 8, 3), np.uint8))
    assert sum(len(group) for group in groups.values()) == 3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(10, 12)] * 4, 2), ([(10, 12), (10, 12), (30, 12), (10, 12)], 1), ([(30, 2)] * 4, 2)],
)
def test_the_clearest_pair(sizes: list[tuple[int, int]], expected: int) -> None:
    assert examples.clearest(torch.diag(torch.tensor([1.0, 2.0, 3.0, -1.0])), sizes) == expected


def test_table() -> None:
    metrics = {name: tables.chance(100) for name in ["a", "b", "all"]}
    rows = tables.rows(metrics, 100)
    assert [row.name for row in rows] == ["a", "b", "both", "chance"]
    assert rows[-1].cells[:5] == ["1.0", "5.0", "10.0", "50.5", "50.5"]
    assert [row.name for row in tables.rows({"a": tables.chance(5), "all": tables.chance(5)}, 5)] == ["a", "chance"]
    assert tables.chance(5)["t2v"]["R@10"] == 100
    assert tables.standard_error(50, 1000) == pytest.approx(1.58, abs=0.01)
