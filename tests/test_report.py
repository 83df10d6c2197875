"""The page of an evaluation: what is in it, how large it is, and that it works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import multigrain as mg
from multigrain import viz
from multigrain.cli import main
from multigrain.evaluation import tables
from multigrain.evaluation.scores import metrics_by_grain
from multigrain.report import examples
from multigrain.report.content import Chart, Example, Hit, Hub, Hubs, Page, Query
from multigrain.report.hubs import distribution, hubness
from multigrain.report.images import strip
from multigrain.report.page import render
from multigrain.report.scored_pairs import ScoredPairs
from multigrain.report.summary import summarize
from multigrain.training import Evaluation
from tests.browser import CHROMIUM, Browser
from tests.pages import assert_self_contained
from tests.test_explain import run  # noqa: F401  (a fixture)
from tests.test_viz import features

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PNG = strip(np.zeros((1, 8, 8, 3), np.uint8))
EVIL = '</script><script>alert("x")</script> & {{ page.title }} {% endif %} <!--'


def test_page_escapes_text() -> None:
    row = tables.Row(EVIL, ["1"] * 10, "grain")
    chart = Chart(EVIL, [(EVIL, 3)], EVIL)
    example = Example(EVIL, 1, [Hit(PNG, EVIL, 0.5, 1, False)], [(PNG, EVIL)])
    hubs = Hubs(EVIL, chart, [Hub(PNG, EVIL, 3)])
    page = Page(
        EVIL, EVIL, [EVIL], [row], EVIL, [chart], [(PNG, EVIL)], [row], EVIL, {EVIL: [example]},
        hubs, [Query(EVIL, 1, 0, [(0, 0.5)])], [EVIL], (PNG, EVIL), {EVIL: EVIL}, EVIL,
    )  # fmt: skip
    text = render(page)
    parsed = assert_self_contained(text)
    assert parsed.scripts == 2
    assert text.count("&lt;script&gt;") >= 20
    assert "<!--" not in text
    assert "{{ page.title }}" in text  # nothing is substituted twice
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(data) == {"queries": [[EVIL, 1, 0, [[0, 0.5]]]], "videos": [EVIL]}


def test_without_jinja2_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['jinja2'] = None; import multigrain.report.page"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith('ImportError: pages need Jinja2: pip install "multigrain[cli]"\n')


def test_what_is_empty_has_no_heading() -> None:
    text = render(Page("t", "v"))
    assert '<meta name="viewport" content="width=device-width' in text
    assert "<h2" not in text
    assert assert_self_contained(text).scripts == 0


def test_strips_of_drawings_keep_every_pixel(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 6, (12, 8, 8, 3)).astype(np.uint8) * 50
    (tmp_path / "strip.png").write_bytes(strip(frames))
    with Image.open(tmp_path / "strip.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (8, 12 * 10 - 2, 3)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(pixels[:, 10 * i : 10 * i + 8], frame)


def photographs(video: int) -> np.ndarray:
    """Twelve frames [12, 224, 224, 3] with as much detail as a photograph has."""
    generator = torch.Generator().manual_seed(video)
    shape = 12, 224, 224
    parts = [
        torch.nn.functional.interpolate(torch.randn(12, 3, s, s, generator=generator), shape[1:], mode="bilinear") * 40
        for s in (5, 28, 112)
    ]
    return (128 + sum(parts)).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def test_strips_of_photographs_are_small() -> None:
    image = strip(photographs(0))
    assert image[8:12] == b"WEBP"
    assert len(image) < 30_000


def scored_pairs(n: int, **more: Any) -> ScoredPairs:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(n, n, generator=generator) + 0.5 * torch.eye(n)
    texts = [f"a {('red', 'blue')[i % 2]} car number {i}" for i in range(n)]
    videos = [f"video{i} “{text}”" for i, text in enumerate(texts)]
    return ScoredPairs(scores, torch.arange(n), scores, texts, videos, **more)


def evaluation(of: ScoredPairs) -> Evaluation:
    rows = list(range(len(of.texts)))
    return Evaluation({"all": of.scores}, of.targets, rows, rows, metrics_by_grain({"all": of.scores}))


def test_examples_show_each_query_once_and_its_own_video() -> None:
    shown = scored_pairs(20)
    shown.scores[3, 3], shown.scores[7, 7] = 9.0, -9.0
    groups = examples.choose(shown, each=4, hits=3)
    found = [example for group in groups.values() for example in group]
    assert len({example.sentence for example in found}) == 12
    best, _, worst = groups.values()
    assert best[0].sentence == shown.texts[3]
    assert worst[0].sentence == shown.texts[7]
    assert worst[0].rank == 20
    for example in found:
        assert [hit.rank for hit in example.hits[:3]] == [1, 2, 3]
        [own] = [hit for hit in example.hits if hit.own]
        assert example.sentence in own.name
        assert own.rank == example.rank


@pytest.mark.parametrize(("n", "sizes"), [(3, [1, 1, 1]), (1, [1, 0, 0]), (20, [4, 4, 4])])
def test_few_queries_are_shared_out(n: int, sizes: list[int]) -> None:
    shown = scored_pairs(n)
    groups = examples.choose(shown)
    assert [len(group) for group in groups.values()] == sizes
    if n == 3:
        shown.scores[1, 1] = -1.0
        assert examples.choose(shown)[examples.WORST][0].sentence == shown.texts[1]


def test_where_all_are_first_the_worst_is_least_ahead() -> None:
    shown = scored_pairs(20)
    shown.scores.copy_(torch.eye(20))
    shown.scores[6, 6] = 0.1
    assert examples.choose(shown)[examples.WORST][0].sentence == shown.texts[6]


def test_examples_of_several_captions_a_video() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]])
    shown = ScoredPairs(scores, torch.tensor([0, 0, 1]), scores, ["a", "b", "c"], ["x", "y"])
    assert examples.margins(shown.scores, shown.targets).tolist() == pytest.approx([0.8, -0.6, -0.1])
    assert sum(len(group) for group in examples.choose(shown).values()) == 3
    assert [(q.text, q.rank, q.own, q.found[0][0]) for q in examples.queries(shown, 2)] == [
        ("a", 1, 0, 0),
        ("b", 2, 0, 1),
    ]
    assert examples.rival(scores, shown.targets, 0) == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(10, 12)] * 4, 2), ([(10, 12), (10, 12), (30, 12), (10, 12)], 1), ([(30, 2)] * 4, 2)],
)
def test_the_clearest_pair(sizes: list[tuple[int, int]], expected: int) -> None:
    scores = torch.diag(torch.tensor([1.0, 2.0, 3.0, -1.0]))
    assert examples.clearest(scores, torch.arange(4), sizes) == expected


def test_hubness_counts_how_often_a_video_is_found() -> None:
    scores = torch.rand(50, 30, generator=torch.Generator().manual_seed(1))
    scores[:, 4] += 1  # a hub
    scores[:, 9] -= 1  # never found
    found = hubness(scores)
    expected = Counter(i for row in scores for i in row.argsort(descending=True)[:10].tolist())
    assert found.counts.tolist() == [expected[i] for i in range(30)]
    assert found.hubs[0] == 4
    assert found.counts[4] == 50
    assert found.counts[9] == 0
    x = found.counts.double().numpy()
    assert found.skewness == pytest.approx(((x - x.mean()) ** 3).mean() / x.std() ** 3)
    assert hubness(scores[:, :5]).skewness == 0  # each query has all five
    assert hubness(scores[:, :5]).chance == 0


def test_skewness_of_random_orders_is_that_of_chance() -> None:
    scores = torch.rand(2000, 400, generator=torch.Generator().manual_seed(2))
    found = hubness(scores)
    assert found.skewness == pytest.approx(found.chance, abs=0.3)
    assert found.chance == pytest.approx(0.136, abs=0.001)


def test_distribution_counts_each_value_once() -> None:
    values = torch.tensor([1.0, 1.5, 2, 5, 6, 10, 11, 400])
    assert distribution(values, (1, 5, 10, 20)) == [("1", 2), ("2–5", 2), ("6–10", 2), ("11–20", 1), ("above 20", 1)]
    assert distribution(torch.tensor([1, 2]), (1, 5, 10, 20)) == [("1", 1), ("2–5", 1)]
    assert distribution(torch.tensor([0, 3]), (0, 2, 5)) == [("0", 1), ("1–2", 0), ("3–5", 1)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 1,000 queries, with photographs and heat maps."""
    text, video = features()
    frames = photographs(0)[:4]
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord())

    def picture(i: int, j: int, subtitle: str, levels: bool) -> Any:
        return viz.explain_features(scorer, text, video, list("abcde"), frames, f"{i}, {j}", subtitle, levels)

    shown = scored_pairs(1000, frames=photographs, picture=picture)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(summarize(shown, evaluation(shown), title="A thousand queries")), encoding="utf-8")
    return path


def test_a_thousand_queries_take_less_than_5_mb(large: Path) -> None:
    assert large.stat().st_size < 5_000_000
    page = assert_self_contained(large.read_text(encoding="utf-8"))
    assert page.images >= 12 * 4 + 8 + 5
    assert page.scripts == 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


FILTER = """(() => {
  const box = document.getElementById("filter");
  box.value = %s; box.dispatchEvent(new Event("input"));
  const order = document.getElementById("order");
  order.value = %s; order.dispatchEvent(new Event("input"));
  return [document.getElementById("count").textContent, document.querySelectorAll("#list > li").length,
          document.querySelector("#list summary")?.textContent ?? ""];
})()"""


def filtered(browser: Browser, words: str, order: str = "given") -> tuple[str, int, str]:
    count, items, first = browser.ask(FILTER % (json.dumps(words), json.dumps(order)))
    return count, items, first


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_in_a_browser(width: int, large: Path, browser: Browser) -> None:
    browser.requests.clear()
    browser.open(large, width)
    assert browser.ask("document.documentElement.scrollWidth") <= width  # nothing to push aside on a phone
    assert browser.ask("[...document.images].every(i => i.src.startsWith('data:'))")
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.ask("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    browser.ask("Promise.all([...document.images].map(i => i.decode()))")  # rejects where one is broken
    assert [url for url in browser.requests if not url.startswith("data:")] == [large.resolve().as_uri()]
    assert browser.complaints == []


@needs_chromium
def test_the_filter_finds_queries(large: Path, browser: Browser) -> None:
    browser.open(large)
    count, items, first = filtered(browser, "")
    assert count.startswith("1,000 of 1,000 queries; own video first for ")
    assert items == 20
    assert first.startswith("“a red car number 0”")
    count, items, first = filtered(browser, "  NUMBER blue 77")
    expected = [text for text in scored_pairs(1000).texts if "blue" in text and "77" in text]
    assert count.startswith(f"{len(expected)} of 1,000 queries")
    assert first.startswith(f"“{expected[0]}”")
    assert filtered(browser, "no such words")[:2] == ("0 of 1,000 queries", 0)
    shown = scored_pairs(1000)
    rank = mg.metrics.ranks(shown.scores)
    assert filtered(browser, "", "worst")[2].endswith(f"rank {round(float(rank.max()))}")
    assert filtered(browser, "", "best")[2].endswith("rank 1")
    browser.ask("document.getElementById('more').click()")
    assert browser.ask("document.querySelectorAll('#list > li').length") == 40
    browser.ask("document.querySelector('#list details').open = true")
    assert browser.ask("document.querySelectorAll('#list li:first-child ol li').length") == 5
    assert browser.complaints == []


@needs_chromium
def test_pictures_keep_their_size_and_bars_theirs_without_styles_of_their_own(large: Path, browser: Browser) -> None:
    browser.open(large, 390)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    room = "parseFloat(getComputedStyle(w).gridTemplateColumns) / w.firstChild.width.baseVal.value"
    assert min(browser.ask(f"[...document.querySelectorAll('.wide')].map(w => {room})")) >= 1
    widths = browser.ask("[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().width)")
    assert max(widths) > 50 * min(widths) > 0
    assert "style=" not in large.read_text(encoding="utf-8")


@needs_chromium
def test_scripts_styles_and_forms_of_others_do_nothing(large: Path, tmp_path: Path, browser: Browser) -> None:
    text = large.read_text(encoding="utf-8")
    theirs = (
        '<base href="https://a.invalid/"><style>h1 { color: rgb(1, 2, 3) }</style>'
        '<form action="https://a.invalid/" id="f"></form><script>document.title = "theirs"</script>'
    )
    (tmp_path / "theirs.html").write_text(text.replace("<main>", theirs + "<main>"), encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(tmp_path / "theirs.html")
    assert browser.ask("document.title") != "theirs"
    assert browser.ask("getComputedStyle(document.querySelector('h1')).color") != "rgb(1, 2, 3)"
    browser.ask("document.getElementById('f').submit()")
    browser.hear("form-action")
    assert browser.ask("document.baseURI").startswith("file:")
    assert not [url for url in browser.requests if url.startswith("http")]
    told = " ".join(browser.complaints)
    assert all(name in told for name in ("base-uri", "style-src", "script-src"))
    browser.complaints.clear()


def test_evaluate_reports_features(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    sides = {
        "text": mg.Features(sentence=torch.randn(6, 8), word=torch.randn(6, 5, 8)),
        "video": mg.Features(video=torch.randn(6, 8), frame=torch.randn(6, 4, 8)),
    }
    files = []
    for name, side in sides.items():
        side.save(tmp_path / f"{name}.pt")
        files += [f"--{name}", str(tmp_path / f"{name}.pt")]
    assert main(["evaluate", *files, "--out", str(tmp_path / "out"), "--report"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Scored by the mean of sentence-video, word-video AOSM(temperature=0.01), sentence-frame ")
    assert f"Open {tmp_path / 'out' / 'index.html'}\n" in out
    for wrong, message in (("--model.aggregator=mean_max", "got --model.aggregator"), ("--protocol=x", "--protocol: ")):
        assert main(["evaluate", *files, wrong]) != 0
        assert message in capsys.readouterr().err
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "there are no thumbnails" in text
    assert 'class="strip"' not in text
    assert assert_self_contained(text).images >= 4  # heat maps, of words and frames by their numbers
    assert main(["evaluate", *files, "--out", str(tmp_path / "two")]) == 0
    assert not (tmp_path / "two" / "index.html").exists()

    corrected = ["--out", str(tmp_path / "two"), "--hubness", "dual_softmax", "--report"]
    assert main(["evaluate", *files, *corrected]) == 0
    text = (tmp_path / "two" / "dual_softmax" / "index.html").read_text(encoding="utf-8")
    assert "corrected by dual_softmax (transductive" in text
    assert "There are no heat maps" in text
    assert assert_self_contained(text).images == 0


@pytest.mark.parametrize("protocol", ["group_max", "all_captions"])
def test_the_histograms_show_the_ranks_of_the_table(protocol: str) -> None:
    scores = torch.rand(120, 12, generator=torch.Generator().manual_seed(3))
    targets = torch.arange(120) % 12
    found = metrics_by_grain({"all": scores}, protocol, targets)
    texts, videos = [f"text {i}" for i in range(120)], [f"video {i}" for i in range(12)]
    of = Evaluation({"all": scores}, targets, list(range(120)), list(range(12)), found)
    report = summarize(ScoredPairs(scores, targets, scores, texts, videos), of, title="")
    for chart, side in zip(report.charts, ("t2v", "v2t"), strict=True):
        bars, metrics = dict(chart.bars), found["all"][side]
        total = sum(bars.values())
        assert 100 * bars["1"] / total == pytest.approx(metrics["R@1"])
        assert 100 * (bars["1"] + bars["2–5"]) / total == pytest.approx(metrics["R@5"])
    if protocol == "group_max":
        assert [name for name, _ in report.charts[1].bars if name in ("21–50", "51–100", "above 100")] == []
        assert report.charts[1].axis.startswith("rank of the video itself, among all videos")


@pytest.fixture(scope="module")
def of_videos(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    page = tmp_path_factory.mktemp("videos") / "new" / "page.html"
    assert main(["evaluate", "--out", str(run / "run"), "--report", str(page)]) == 0
    assert not (run / "run" / "index.html").exists()
    return page


def test_evaluate_reports_videos(of_videos: Path) -> None:
    text = of_videos.read_text(encoding="utf-8")
    parsed = assert_self_contained(text)
    assert text.count('class="strip"') >= 2 * 2  # of each query what it found
    assert "Hubs" not in text  # each query finds both videos
    assert parsed.images > text.count('class="strip"')
    assert all(words in text for words in ("video7010", "Ranks", "Training", "Best"))


@pytest.mark.filterwarnings("ignore:.* captions were cut")
def test_captions_of_any_length_and_letters_are_reported_in_time(run: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    manifest = copy / "out" / "manifest.jsonl"
    clips = [json.loads(line) for line in manifest.read_text().splitlines()]
    odd = iter(["w" * 100_000, "\ud800 runs"])
    for clip in clips:
        clip["captions"] = [next(odd)] if clip["split"] == "test" else clip["captions"]
    manifest.write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    settings = json.loads((copy / "run" / "config.json").read_text())
    settings["data"]["manifest"] = str(manifest)
    (copy / "run" / "config.json").write_text(json.dumps(settings))
    since = time.process_time()
    assert main(["evaluate", "--out", str(copy / "run"), "--report", str(tmp_path / "page.html")]) == 0
    assert time.process_time() - since < 5
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\ufffd runs" in text
    assert len(text) < 2_000_000


@needs_chromium
def test_the_report_of_videos_opens_in_a_browser(of_videos: Path, browser: Browser) -> None:
    browser.open(of_videos, 390)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert filtered(browser, "")[1] == 2
    assert browser.complaints == []
