"""Pictures and the explanation behind them."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import multigrain as mg
from multigrain import viz
from multigrain.explain import explain, token_weights
from multigrain.report.images import figure_png

AGGREGATORS = [
    mg.AOSM(0.01),
    mg.AOSM(0.1, "query"),
    mg.AOSM(0.1, "candidate"),
    mg.AOSM(0.1, query_tokens=9, candidate_tokens=9),
    mg.MeanMean(),
    mg.MeanMax(),
    mg.MaxMean("candidate"),
    mg.MaxMax(),
    mg.MaxSim(),
    mg.aggregators.TopK(2),
    mg.TokenWeighted(direction="candidate"),
]


def similarities(m: int = 6, n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
@torch.no_grad()
def test_weights_give_the_score(aggregator: mg.Aggregator) -> None:
    for parameter in aggregator.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    sim = similarities()
    weights = token_weights(aggregator, sim)
    torch.testing.assert_close((weights.cells * sim).sum(), aggregator(sim[None, None])[0, 0])


@pytest.mark.parametrize(("side", "shape"), [("query_tokens", (6, 1)), ("candidate_tokens", (1, 4))])
@torch.no_grad()
def test_weights_of_a_single_matrix_give_the_score(side: str, shape: tuple[int, int]) -> None:
    aggregator = mg.AOSM(0.1, **{side: 9})
    for parameter in aggregator.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    sim = similarities(*shape)
    weights = token_weights(aggregator, sim)
    torch.testing.assert_close((weights.cells * sim).sum(), aggregator(sim[None, None])[0, 0])


def test_weights_of_aosm_are_its_two_softmaxes() -> None:
    sim = similarities()
    weights = token_weights(mg.AOSM(0.1), sim)
    assert weights.query is not None
    assert weights.candidate is not None
    inner = (sim / 0.1).softmax(1)
    torch.testing.assert_close(weights.query.inner, inner)
    torch.testing.assert_close(weights.query.outer, ((inner * sim).sum(1) / 0.1).softmax(0))
    torch.testing.assert_close(weights.candidate.inner, (sim / 0.1).softmax(0))
    torch.testing.assert_close(weights.cells.sum(), torch.tensor(1.0))


def test_weights_of_a_foreign_aggregator_are_its_gradient() -> None:
    class Half(mg.Aggregator):
        def forward(self, sim, query_mask=None, candidate_mask=None):
            return sim.sum((2, 3)) / 2

    weights = token_weights(Half(), similarities())
    torch.testing.assert_close(weights.cells, torch.full((6, 4), 0.5))
    assert weights.query is None


def features(words: int = 5, frames: int = 4) -> tuple[mg.Features, mg.Features]:
    torch.manual_seed(0)
    word_mask, frame_mask = torch.arange(8)[None] < words, torch.arange(6)[None] < frames
    text = mg.Features(sentence=torch.randn(1, 16), word=(torch.randn(1, 8, 16), word_mask))
    return text, mg.Features(video=torch.randn(1, 16), frame=(torch.randn(1, 6, 16), frame_mask))


def test_parts_add_up_to_the_score() -> None:
    scorer = mg.MultiGrain(
        mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame("max_max"), mg.FrameWord(), weights=[0.4, 0.3, 0.2, 0.1]
    )
    text, video = features()
    parts = explain(scorer, text, video)
    assert sum(part.share * part.score for part in parts.values()) == pytest.approx(float(scorer(text, video)))
    for part in parts.values():
        assert float((part.weights.cells * part.sim).sum()) == pytest.approx(part.score, abs=1e-6)
    assert parts["word-frame"].sim.shape == (5, 4)  # real tokens alone


def test_weights_of_tokens_and_a_pooled_grain_are_explained() -> None:
    pooled = mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool())
    scorer = mg.MultiGrain(pooled, mg.FrameWord(mg.TokenWeighted(16)))
    text, video = features()
    parts = explain(scorer, text, video)
    weighted = parts["word-frame"]
    assert float((weighted.weights.cells * weighted.sim).sum()) == pytest.approx(weighted.score, abs=1e-6)
    assert weighted.weights.query is not None
    assert float(weighted.weights.query.outer.std()) > 1e-4  # not uniform
    cells = parts["sentence-frame"].weights.cells
    assert cells.shape == (1, 4)
    assert int(cells[0].argmax()) == int(parts["sentence-frame"].sim[0].argmax())


def test_explain_takes_one_item() -> None:
    text, video = features()
    with pytest.raises(ValueError, match="text: expected the features of one item, got 2"):
        explain(mg.MultiGrain(mg.VideoSentence()), mg.Features.cat([text, text]), video)


def picture(m: int, n: int, title: str | None = None) -> Figure:
    sim = similarities(m, n)
    coarse = viz.Coarse(sim[:, 0], sim[0], 0.3, torch.ones(m) / m, torch.ones(n) / n)
    frames = np.zeros((n, 56, 56, 3), np.uint8)
    weights = token_weights(mg.AOSM(0.1), sim)
    parts = {"sentence-video": 0.1, "word-video": -0.02, "sentence-frame": 0.2, "word-frame": 0.1}
    return viz.similarity(frames, [f"word{i}" for i in range(m)], sim, weights, coarse, parts, title, "score 0.38")


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2), (14, 12), (28, 12)])
def test_similarity_picture(m: int, n: int) -> None:
    figure = picture(m, n)
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
    thumbnails = [a for a in figure.axes if a.images and a.images[0].get_array().ndim == 3]
    assert len(thumbnails) == n
    assert all(a.images[0].get_interpolation() == "nearest" for a in thumbnails)
    for axes in thumbnails:  # square, in inches
        box = axes.get_position()
        assert box.width * width == pytest.approx(box.height * height)
    assert figure_png(figure, 40).startswith(b"\x89PNG")


def test_word_labels_do_not_overlap() -> None:
    figure = picture(28, 12, "a title so long that it needs more than one line " * 4)
    figure.draw_without_rendering()
    matrix = next(a for a in figure.axes if [t.get_text() for t in a.get_yticklabels()][:1] == ["word0"])
    boxes = [label.get_window_extent() for label in matrix.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
    titles = [text.get_window_extent() for text in figure.texts if text.get_weight() == "bold"]
    assert len(titles) > 1
    assert all(box.x1 <= figure.bbox.x1 for box in titles)


def test_similarity_without_weights() -> None:
    figure = viz.similarity(np.zeros((4, 8, 8, 3), np.uint8), list("abcdef"), similarities())
    assert figure_png(figure, 40).startswith(b"\x89PNG")


def test_similarity_of_a_wrong_size() -> None:
    with pytest.raises(ValueError, match=r"sim: expected \[5, 4\] for 5 words and 4 frames, got \[6, 4\]"):
        viz.similarity(np.zeros((4, 8, 8, 3), np.uint8), list("abcde"), similarities())


def test_curves() -> None:
    figure = viz.curves({"towers": [(0.1, 3.0), (1.0, 1.0)]}, {"text → video": [(1, 10), (2, 30)]}, chance=0.1)
    assert len(figure.axes) == 2
    assert figure_png(viz.curves({}, {}), 40).startswith(b"\x89PNG")  # a run without a logged step


def test_pyplot_stays_out() -> None:
    code = "import sys, multigrain.viz as v; v.curves({}, {}); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Texts of a figure, the labels of its axes too, that lie on each other or reach over the edge."""
    figure.draw_without_rendering()
    labels = [label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    texts = [
        text for text in (*figure.texts, *labels, *(t for axes in figure.axes for t in axes.texts)) if text.get_text()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible()]
    edge = figure.bbox
    found = [
        (name, "the edge") for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > edge.x1 or box.y1 > edge.y1
    ]
    for (one, a), (other, b) in combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
            found.append((one, other))
    return found


LONG = ["Donaudampfschifffahrtsgesellschaftskapitän", "W" * 30, "$x^$", "<end_of_text>"]


@pytest.mark.parametrize(
    ("words", "n", "title"),
    [
        (["dog"], 1, None),
        (["dog"], 12, None),
        (list("abcde"), 1, None),
        (list("abcde"), 3, None),
        (["word"] * 9, 10, None),
        (["word"] * 20, 24, "a title so long that it needs more than one line " * 9),
        (LONG, 3, "COSTS $5 AND $_{ " + "WIDE WORDS " * 40),
        (["一只", "狗", "כלב", "🐶"], 3, "一只狗在公园里接住了一个红色的飞盘" * 5),
    ],
    ids=["1x1", "1x12", "5x1", "5x3", "9x10", "20x24", "long", "other letters"],
)
def test_no_text_overlaps(words: list[str], n: int, title: str | None) -> None:
    m = len(words)
    sim = similarities(m, n)
    coarse = viz.Coarse(sim[:, 0], sim[0], 0.3, torch.ones(m) / m, torch.ones(n) / n, counts=True)
    parts = {"sentence-video": 0.1, "word-video": -0.02, "sentence-frame": 0.2, "a grain of a very long name": 0.1}
    frames = np.zeros((n, 8, 8, 3), np.uint8)
    notes = ["a note that is long enough for two lines " * 6]
    weights = token_weights(mg.AOSM(0.1), sim)
    figure = viz.similarity(frames, words, sim, weights, coarse, parts, title, "score 0.38", notes)
    assert overlaps(figure) == []


def test_letters_without_a_font_are_said() -> None:
    nowhere = "\U000e0150"  # no font has letters for a plane that is not assigned
    figure = viz.similarity(None, ["dog", nowhere], similarities(2, 3), title=nowhere)
    texts = [text.get_text() for text in figure.texts]
    assert "▯" in texts
    assert any("▯ stands for a letter that no font" in text for text in texts)


def test_one_word_or_frame_has_no_choice() -> None:
    both = [text.get_text() for text in picture(5, 3).texts]
    assert sum(text.startswith("where each") for text in both) == 2
    assert sum(text.startswith("weight of") for text in both) == 2
    lone = [text.get_text() for text in picture(5, 1).texts]
    assert [text[:16] for text in lone if text.startswith("where each")] == ["where each frame"]
    assert [text for text in lone if text.startswith("weight of")] == ["weight of\neach word"]


def test_weights_below_zero_are_dark_dots() -> None:
    weights = viz.Weights(torch.tensor([[1.0, -0.5]]))
    figure = viz.similarity(None, ["dog"], similarities(1, 2), weights)
    [dots] = [a.collections[0] for a in figure.axes if a.collections and len(a.collections[0].get_offsets()) == 2]
    white, dark = dots.get_facecolors()[:, :3].mean(1)
    assert white == 1
    assert dark < 0.3
    assert dots.get_sizes()[1] == pytest.approx(0.5 * dots.get_sizes()[0])
    assert any("a dark\ndot counts against it" in text.get_text() for text in figure.texts)


def test_ink_is_the_same_in_all_inner_panels() -> None:
    figure = viz.similarity(None, list("abc"), similarities(3, 8), token_weights(mg.MeanMean(), similarities(3, 8)))
    inner = [image for axes in figure.axes for image in axes.images if image.get_cmap().name == "Greys"]
    assert [(image.norm.vmin, image.norm.vmax) for image in inner] == [(0, 1)] * 2  # black is all of it
