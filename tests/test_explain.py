"""One pair, explained: the numbers, the picture, the command."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import multigrain as mg
from multigrain import training, viz
from multigrain.aggregators import aggregator_names, build_aggregator
from multigrain.cli import main, runs
from multigrain.models import XCLIP
from multigrain.viz.lettering import inches, shorten
from multigrain.viz.matrix import Scale
from multigrain.viz.pair import look, round_parts
from tests.clips import write_clip
from tests.models.clips import saved, tiny_clip
from tests.test_end_to_end import config, dataset, settings
from tests.test_viz import features


class Half(mg.Aggregator):
    """Neither attention nor linear: no weights add up to it."""

    def forward(self, sim, query_mask=None, candidate_mask=None):
        return sim.square().sum((2, 3)) / 2


def scorer(**grains: Any) -> mg.MultiGrain:
    given = {"word_frame": "aosm", **grains}
    return mg.MultiGrain(
        mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame("max_max"), mg.FrameWord(given["word_frame"]),
        weights=given.get("weights", "mean"),
    )  # fmt: skip


@pytest.mark.parametrize("weights", ["mean", "learned", [0.7, -0.2, 0.1, 1.3]])
@pytest.mark.parametrize("aggregator", ["aosm", "max_sim", Half()], ids=str)
@torch.no_grad()
def test_parts_add_up_to_the_score(weights: Any, aggregator: Any) -> None:
    model = scorer(weights=weights, word_frame=aggregator)
    if model.weight_logits is not None:
        torch.nn.init.normal_(model.weight_logits)
    text, video = features()
    view = look(model, text, video, 5, 4)
    assert view.score == pytest.approx(float(model(text, video)), abs=1e-6)
    assert list(view.added) == [grain.name for grain in model.grains]


@pytest.mark.parametrize("direction", ["both", "query", "candidate"])
@pytest.mark.parametrize("name", aggregator_names())
@torch.no_grad()
def test_weights_that_are_drawn_add_up(name: str, direction: str) -> None:
    aggregator = build_aggregator(name) if name == "logsumexp" else build_aggregator(name, direction=direction)
    text, video = features()
    view = look(mg.MultiGrain(mg.FrameWord(aggregator)), text, video, 5, 4)
    unexplained = any("no weights that add up" in note for note in view.notes)
    assert (view.weights is None) == unexplained == (name == "logsumexp")
    if view.weights is not None:
        assert float((view.weights.cells * view.sim).sum()) == pytest.approx(view.score, abs=1e-5)


def test_a_scorer_of_one_grain_says_what_is_not_in_its_score() -> None:
    text, video = features()
    view = look(mg.MultiGrain(mg.VideoSentence()), text, video, 5, 4)
    assert view.coarse is not None
    assert view.coarse.counts
    assert view.weights is None
    assert view.notes == ("word-frame, sentence-frame, word-video: not part of this score, similarities alone",)
    fine = look(mg.MultiGrain(mg.FrameWord()), text, video, 5, 4)
    assert fine.coarse is not None
    assert not fine.coarse.counts


def test_shown_numbers_add_up() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.normal(scale=0.2, size=int(generator.integers(1, 7))).tolist()
        parts = {str(i): value for i, value in enumerate(values)}
        shown, total = round_parts(parts)
        assert round(1000 * sum(shown.values())) == round(1000 * total)
        assert total == pytest.approx(sum(values), abs=5.01e-4)
        assert all(abs(shown[name] - parts[name]) < 1e-3 for name in parts)
    assert round_parts({"a": 0.1114, "b": 0.1114, "c": 0.1114}) == ({"a": 0.112, "b": 0.111, "c": 0.111}, 0.334)


def test_what_explains_nothing_is_said() -> None:
    text, video = features()
    view = look(scorer(word_frame=Half()), text, video, 5, 4)
    assert view.weights is None
    assert view.coarse is not None
    assert view.coarse.sentence_weights is not None  # the other grains keep theirs
    assert view.notes == ("word-frame: Half has no weights that add up to its score: similarities alone",)
    figure = viz.explain_features(scorer(word_frame=Half()), text, video, list("abcde"), 4)
    assert view.notes[0] in [line.get_text() for line in figure.texts]
    bottom = min(text.get_position()[1] for text in figure.texts)
    assert bottom > 0  # inside the picture


def test_what_is_not_drawn_is_said() -> None:
    text, video = features()
    text = mg.Features(**{name: text[name] for name in text.names}, phrase=torch.randn(1, 3, 16))
    twice = mg.MultiGrain(
        mg.Grain("word", "frame", "aosm"), mg.Grain("word", "frame", "max_max", name="again"),
        mg.Grain("phrase", "frame", "aosm"),
    )  # fmt: skip
    view = look(twice, text, video, 5, 4)
    assert view.weights is not None
    assert view.weights.query is not None
    assert [note.split(":")[0] for note in view.notes] == [
        "again is not drawn",
        "phrase-frame is not drawn",
        "sentence-frame, word-video, sentence-video",
    ]
    assert set(view.added) == {"word-frame", "again", "phrase-frame"}


def test_padding_that_takes_part_is_said() -> None:
    text, video = features()
    bare = [mg.Features(**{n: x[n].features.nan_to_num() for n in x.names}) for x in (text, video)]
    view = look(scorer(), *bare, 5, 4)
    assert view.sim.shape == (5, 4)
    assert view.weights is None
    assert "word-frame: padding takes part in the score, nothing masks it: similarities alone" in view.notes


def test_counts_that_do_not_fit() -> None:
    text, video = features()
    with pytest.raises(ValueError, match="words: expected the 5 that have features, got 4"):
        look(scorer(), text, video, 4, 4)
    with pytest.raises(ValueError, match="frames: expected the 4 that have features, got 9"):
        look(scorer(), text, video, 5, 9)
    with pytest.raises(KeyError, match="no grain 'word'"):
        look(mg.MultiGrain(mg.VideoSentence()), mg.Features(sentence=torch.randn(1, 16)), video, 5, 4)


def test_scorers_without_grains_are_refused() -> None:
    with pytest.raises(TypeError, match="scorer: expected a MultiGrain, got Linear"):
        look(torch.nn.Linear(1, 1), *features(), 5, 4)


def test_a_pooled_grain_has_its_part() -> None:
    model = mg.MultiGrain(mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool()), mg.FrameWord())
    text, video = features()
    view = look(model, text, video, 5, 4)
    with torch.no_grad():
        assert view.score == pytest.approx(float(model(text, video)), abs=1e-6)
    assert view.notes == (
        "sentence-frame: PooledGrain has no weights that add up to its score: similarities alone",
        "word-video, sentence-video: not part of this score, similarities alone",
    )


def test_fine_grains_alone() -> None:
    text, video = features()
    fine = mg.Features(word=text["word"]), mg.Features(frame=video["frame"])
    model = mg.MultiGrain(mg.FrameWord())
    assert look(model, *fine, 5, 4).coarse is None
    figure = viz.explain_features(model, *fine, list("abcde"), np.zeros((4, 8, 8, 3), np.uint8))
    assert any("score" in line.get_text() for line in figure.texts)


def test_scale_shows_differences() -> None:
    wide = Scale.of([torch.tensor([-0.2, 0.6])])
    assert (wide.low, wide.high) == (pytest.approx(-0.6), pytest.approx(0.6))
    assert [wide.number(x) for x in (0.421, -0.05, -0.001, 1.0)] == [".42", "−.05", ".00", "1.00"]
    close = Scale.of([torch.tensor([0.21, 0.29])])  # as CLIP's
    assert (close.low, close.high) == (pytest.approx(0.21), pytest.approx(0.29))
    assert close.number(0.2345) == ".234"
    assert close.dark(0.29)
    assert not close.dark(0.21)
    same = Scale.of([torch.tensor([0.5, 0.5])])
    assert same.low < 0.5 < same.high


@pytest.mark.parametrize("values", [(0.1, -0.01, 0.2), (-0.1, -0.2, -0.001), (0.0, 0.0, 0.0), (0.3, 0.2, 0.1)])
def test_numbers_of_the_parts_are_clear_of_their_names(values: tuple[float, ...]) -> None:
    sim = torch.rand(3, 4)
    parts = dict(zip(["sentence-video", "word-video", "word-frame"], values, strict=True))
    figure = viz.similarity(np.zeros((4, 8, 8, 3), np.uint8), ["a", "b", "c"], sim, parts=parts)
    figure.draw_without_rendering()
    [axes] = [a for a in figure.axes if [t.get_text() for t in a.get_yticklabels()] == list(parts)]
    names = max(label.get_window_extent().x1 for label in axes.get_yticklabels())
    numbers = [text.get_window_extent() for text in axes.texts]
    assert len(numbers) == 3
    assert all(names < box.x0 and box.x1 <= figure.bbox.x1 for box in numbers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the videos of a data set in miniature, the weights of a CLIP, and a finished training in run/."""
    folder = tmp_path_factory.mktemp("explain")
    weights = saved(tiny_clip(text_cfg={"width": 64, "heads": 1}), folder / "clip.pt")
    annotations, videos, manifest = dataset(folder, "msrvtt")
    places = {"annotations": annotations, "videos": videos, "out": manifest}
    arguments = ["prepare", "msrvtt", *(word for name, path in places.items() for word in (f"--{name}", str(path)))]
    assert main([*arguments, "--val", "0"]) == 0
    values = settings(manifest, weights)
    values["stages"][0]["epochs"] = 1
    made = config(folder, values)
    training.train(made, made.data.load(), folder / "run")
    return folder


@pytest.mark.parametrize("masked", [True, False])
def test_a_model_and_a_video_file(masked: bool, run: Path, tmp_path: Path) -> None:
    model = XCLIP.from_clip(run / "clip.pt", "openai", max_words=9, max_frames=4, masked=masked).eval()
    clip = write_clip(tmp_path / "clip.mp4", [n for n in (3, 60, 200) for _ in range(10)])
    figure = viz.explain(model, "a dog runs", clip)
    thumbnails = [a for a in figure.axes if a.images and a.images[0].get_array().ndim == 3]
    assert [a.images[0].get_array().shape for a in thumbnails] == [(32, 32, 3)] * 3
    words = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    end = words.index("<end_of_text>") + 1
    assert words[end - 5 : end] == ["<start_of_text>", "a", "dog", "runs", "<end_of_text>"]
    with torch.no_grad():
        score = float(model.scorer(model.encode_text(["a dog runs"]), model.encode_video(clip)))
    texts = [line.get_text() for line in figure.texts]
    assert f"score {score:.3f}".replace("-", "−") in texts
    assert any("padding takes part" in line for line in texts) != masked


@pytest.mark.filterwarnings("ignore:.* captions were cut")
@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_a_word_of_any_length_is_drawn_in_time(suffix: str, run: Path, tmp_path: Path) -> None:
    video = next(run.rglob("video7010.mp4"))
    arguments = ["explain", "--model", str(run / "run"), "--video", str(video), "--out", str(tmp_path / f"why{suffix}")]
    since = time.process_time()
    assert main([*arguments, "--text", "w" * 100_000]) == 0
    assert time.process_time() - since < 5
    assert (tmp_path / f"why{suffix}").stat().st_size < 1_000_000


LONG = ["w" * 100_000, "\u0301" * 100_000, "w " * 50_000, "\ud800w" * 50_000, "\U0001f600" * 100_000]


@pytest.mark.parametrize("text", LONG, ids=lambda text: ascii(text[:2]))
def test_labels_of_any_length_are_drawn_in_time(text: str) -> None:
    mine, video = features()
    model = mg.MultiGrain(mg.VideoSentence(), mg.Grain("word", "frame", "aosm"))
    since = time.process_time()
    figure = viz.explain_features(model, mine, video, ["a", text, "c", text[:5000], "e"], 4, text, text)
    figure.savefig(io.BytesIO(), format="png")
    parts = {text: 0.1, text[:5000]: 0.2}
    viz.similarity(None, list("abc"), torch.rand(3, 4), parts=parts).savefig(io.BytesIO(), format="png")
    assert time.process_time() - since < 10


def test_a_label_is_as_long_as_fits() -> None:
    letters = "abc defg " * 200
    for width in (0.0, 0.3, 1.0, 5.0):
        short = shorten(letters, width, 9, ["DejaVu Sans"])
        assert short.endswith("…")
        assert letters.startswith(short[:-1])
        assert len(short) == 1 or inches(short, 9, ["DejaVu Sans"]) <= width
        assert inches(f"{letters[: len(short)]}…", 9, ["DejaVu Sans"]) > width
    assert shorten("abc", 5.0, 9, ["DejaVu Sans"]) == "abc"


def test_the_command(run: Path, tmp_path: Path, capsys: Any) -> None:
    video = next((run).rglob("video7010.mp4"))
    explain = ["explain", "--model", str(run / "run")]
    given = [*explain, "--video", str(video), "--text", "a dog runs"]
    assert main([*given, "--out", str(tmp_path / "why.png")]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"Open {tmp_path / 'why.png'}\n")
    lines = {line.split()[0]: float(line.split()[-1]) for line in out.splitlines() if line[-1].isdigit()}
    assert len(lines) == 5
    assert round(1000 * sum(value for name, value in lines.items() if name != "together")) == round(
        1000 * lines["together"]
    )
    model = runs.load_model(run / "run")
    with torch.no_grad():
        score = float(model.scorer(model.encode_text(["a dog runs"]), model.encode_video(video)))
    assert lines["together"] == pytest.approx(score, abs=5.01e-4)
    with Image.open(tmp_path / "why.png") as picture:
        assert min(picture.size) > 500

    assert main([*explain, "--pair", "1", "--out", str(tmp_path / "why.html")]) == 0
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "<td>together</td>" in page
    assert "the video of test pair 1" in page
    assert "<script" not in page
    # Once in the title and once in the heading, and the picture leaves both to the page.
    sentence = re.findall(r"<h1>(.*)</h1>", page)[0]
    assert page.count(sentence) == 2
    assert len(re.findall(r"[Ss]core −?\d", page)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --video FILE or --pair NUMBER, and not both"),
        (["--video", "a.mp4", "--pair", "1"], "expected --video FILE or --pair NUMBER, and not both"),
        (["--video", "a.mp4"], "--text: expected a sentence beside --video"),
        (["--pair", "99"], "pair: expected one from 0 to 1, got 99"),
        (["--pair", "1", "--out", "why.gif"], "--out: expected a name that ends with .png or .html, got why.gif"),
        (["--video", "none.mp4", "--text", "x"], "none.mp4"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, run: Path, capsys: Any) -> None:
    assert main(["explain", "--model", str(run / "run"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_pairs_are_of_a_run(run: Path, capsys: Any) -> None:
    assert main(["explain", "--model", str(run / "run" / "model"), "--pair", "1"]) == 2
    assert "model: expected with --pair the folder of a finished training" in capsys.readouterr().err
