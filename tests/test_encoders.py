"""Evaluation, extraction, search and pictures of encoders that are no XCLIP, against scores of their features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

import multigrain as mg
from multigrain import gallery, training, viz
from multigrain.data.clips import Clips
from multigrain.data.video import Sampling, read_video
from multigrain.gallery.collection import Collection
from multigrain.models.encoding import encode_videos
from multigrain.training import ClipsConfig
from tests.clips import write_clip

RGB = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1)}
# Seconds of each colour: videos of one, two and three frames.
VIDEOS = {"a": ["red"], "b": ["green", "blue"], "c": ["yellow", "yellow", "red"], "d": ["blue", "red"]}
# Some captions are wrong, so that grains differ in their metrics.
CAPTIONS = {"a": ["all red", "red"], "b": ["red then blue"], "c": ["yellow and blue"], "d": ["blue red", "red, green"]}


class Colours(nn.Module):
    frame_size, max_frames = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.scorer = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord(mg.MeanMax()), weights=[1.0, 2.0])
        self.dropout = nn.Dropout(0.9)  # outside of training, it does nothing
        self.colours = nn.Parameter(torch.tensor([(2.0, 0.0, 0.0), (0.5, 2.0, 0.0), (0.0, 0.0, 1.0)]))

    def encode_text(self, sentences: list[str]) -> mg.Features:
        found = [[RGB[w] for w in s.replace(",", "").split() if w in RGB] for s in sentences]
        words = nn.utils.rnn.pad_sequence([torch.tensor(x, dtype=torch.float) for x in found], batch_first=True)
        mask = torch.arange(words.shape[1]) < torch.tensor([len(x) for x in found])[:, None]
        return mg.Features(sentence=words.sum(1), word=(words, mask))

    def encode_video(self, frames: Tensor, mask: Tensor) -> mg.Features:
        frame = self.dropout((frames.float().mean((3, 4)) / 255 - 0.5) @ self.colours)
        return mg.Features(video=(frame * mask[..., None]).sum(1), frame=(frame, mask))


class More(Colours):
    """All that an encoder may have besides."""

    version = 1

    def words(self, sentence: str) -> list[str]:
        return [word for word in sentence.replace(",", "").split() if word in RGB]

    def fingerprint(self) -> dict[str, Any]:
        return {"version": self.version}

    def encode_video(self, frames: Tensor, mask: Tensor, index: Tensor | None = None) -> mg.Features:
        self.given = None if index is None else len(frames)
        return super().encode_video(frames if index is None else frames[index], mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, colours in VIDEOS.items():
        shades = [np.full((32, 32, 3), [255 * (x > 0) for x in RGB[colour]], np.uint8) for colour in colours]
        write_clip(folder / f"{name}.mp4", [shade for shade in shades for _ in range(10)], size=(32, 32))
    lines = [{"id": name, "video": f"{name}.mp4", "captions": CAPTIONS[name], "split": "test"} for name in VIDEOS]
    (folder / "set.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(params=[Colours, More])
def model(request: pytest.FixtureRequest) -> Colours:
    return request.param()


@torch.no_grad()
def features_of(model: Colours, folder: Path, name: str) -> mg.Features:
    """The features of one video alone, without padding."""
    frames = read_video(folder / f"{name}.mp4", Sampling(max_frames=3), 8)
    assert len(frames) == len(VIDEOS[name])
    return model.eval().encode_video(frames[None], torch.ones(1, len(frames), dtype=torch.bool))


@torch.no_grad()
def scores_of(model: Colours, folder: Path, sentences: list[str], grain: str | None = None) -> Tensor:
    """The scores [sentences, videos], each computed alone."""
    rows = []
    for sentence in sentences:
        text = model.encode_text([sentence])
        videos = [features_of(model, folder, name) for name in VIDEOS]
        found = [model.scorer.scores_by_grain(text, video) | {None: model.scorer(text, video)} for video in videos]
        rows.append(torch.cat([scores[grain] for scores in found], 1))
    return torch.cat(rows)


def pairs_of(folder: Path) -> Clips:
    return ClipsConfig(str(folder / "set.jsonl"), "all_captions", size=8).load().test


def test_evaluate(model: Colours, folder: Path) -> None:
    pairs = pairs_of(folder)
    found = training.evaluate(model.train(), pairs, max_frames=3, protocol="all_captions", batch_size=4)
    assert model.training
    if isinstance(model, More):
        assert model.given == sum(len(colours) for colours in VIDEOS.values())
    expected = scores_of(model, folder, pairs.sentences)
    torch.testing.assert_close(found.scores["all"], expected, atol=1e-5, rtol=0)
    assert found.metrics.keys() == {"sentence-video", "word-frame", "all"}
    for name, metrics in found.metrics.items():
        scores = scores_of(model, folder, pairs.sentences, None if name == "all" else name)
        assert metrics == mg.retrieval_metrics(scores, pairs.ids, "all_captions")
    assert len({str(metrics) for metrics in found.metrics.values()}) > 1
    grains = training.scores_by_grain(model, *training.encode(model, pairs, max_frames=3, batch_size=2))
    for name, scores in grains.items():
        expected = scores_of(model, folder, pairs.sentences, None if name == "all" else name)
        torch.testing.assert_close(scores, expected[:, pairs.ids], atol=1e-5, rtol=0)


def test_extract_and_search(model: Colours, folder: Path, tmp_path: Path) -> None:
    report = gallery.extract(model, [folder], tmp_path, shard_size=3, batch_size=2, dtype="fp32")
    assert (report.videos, report.broken) == (4, {})
    collection = Collection.open(tmp_path)
    assert [Path(video).stem for video in collection.videos] == list(VIDEOS)
    stored = mg.Features.cat([collection.load(shard) for shard in collection.shards])
    for row, name in enumerate(VIDEOS):
        alone, real = features_of(model, folder, name), len(VIDEOS[name])
        torch.testing.assert_close(stored["video"].features[[row]], alone["video"].features)
        torch.testing.assert_close(stored["frame"].features[[row], :real], alone["frame"].features)
        assert stored["frame"].mask is not None and stored["frame"].mask[row].sum() == real
    sentences = ["blue and green", "red"]
    expected = scores_of(model, folder, sentences)
    for row, results in enumerate(gallery.search(model, sentences, tmp_path, k=3)):
        best = expected[row].sort(descending=True)
        assert [Path(result.path).stem for result in results] == [list(VIDEOS)[i] for i in best.indices[:3]]
        assert [result.score for result in results] == pytest.approx(best.values[:3].tolist(), abs=1e-5)
        for result, place in zip(results, best.indices, strict=False):
            assert result.by_grain == {
                grain: pytest.approx(float(scores_of(model, folder, sentences, grain)[row, place]), abs=1e-5)
                for grain in ("sentence-video", "word-frame")
            }


def test_features_belong_to_their_model(folder: Path, tmp_path: Path) -> None:
    default, model = Colours(), More()
    for name, encoder in (("default", default), ("own", model)):
        gallery.extract(encoder, [folder / "a.mp4"], tmp_path / name)
        nn.init.eye_(encoder.colours)
    with pytest.raises(ValueError, match=r"features made otherwise: model\.weights was '\w{64}', is '\w{64}'"):
        gallery.search(default, "red", tmp_path / "default")
    assert Collection.open(tmp_path / "own").settings["model"] == {"version": 1}
    assert len(gallery.search(model, "red", tmp_path / "own")) == 1  # whose own values have not changed
    model.version = 2
    with pytest.raises(ValueError, match=r"features made otherwise: model\.version was 1, is 2"):
        gallery.search(model, "red", tmp_path / "own")


def test_explain(model: Colours, folder: Path) -> None:
    sentence, names = "blue red", ["blue", "red"]
    text, video = model.encode_text([sentence]), features_of(model, folder, "d")
    score = float(scores_of(model, folder, [sentence])[0, list(VIDEOS).index("d")])
    sides = (nn.functional.normalize(x.features[0], dim=-1) for x in (text["word"], video["frame"]))
    cosines = torch.einsum("md,nd->mn", *sides).detach()
    words = names if isinstance(model, More) else ["word 1", "word 2"]
    own = viz.explain_features(model.scorer, text, video, names, frames=2)
    for figure, shown in ((viz.explain(model, sentence, folder / "d.mp4"), words), (own, names)):
        said = "".join(artist.get_text() for artist in figure.findobj(Text))
        assert f"score {score:.3f}" in said
        [block] = [x for x in figure.axes for image in x.get_images() if is_close(image.get_array(), cosines)]
        assert shown in [[label.get_text() for label in x.get_yticklabels()] for x in (block, *figure.axes)]


def is_close(shown: Any, expected: Tensor) -> bool:
    return shown.shape == expected.shape and np.allclose(shown, expected, atol=1e-5)


class NoVideo(nn.Module):
    frame_size, max_frames = 8, 3
    scorer = mg.MultiGrain(mg.VideoSentence())

    def encode_text(self, sentences: list[str]) -> mg.Features:
        return mg.Features(sentence=torch.ones(len(sentences), 3))


class NoScorer(Colours):
    def __init__(self) -> None:
        super().__init__()
        del self.scorer


class Vectors(Colours):
    def encode_video(self, frames: Tensor, mask: Tensor) -> Any:
        return frames.float().mean((3, 4))


class OneVideo(Colours):
    def encode_video(self, frames: Tensor, mask: Tensor) -> mg.Features:
        return super().encode_video(frames, mask)[:1]


class OneSentence(Colours):
    def encode_text(self, sentences: list[str]) -> mg.Features:
        return super().encode_text(sentences)[:1]


@pytest.mark.parametrize("call", ["evaluate", "encode", "extract", "encode_videos", "search", "explain"])
@pytest.mark.parametrize(("wrong", "missing"), [(NoVideo, "encode_video"), (NoScorer, "scorer"), (object, None)])
def test_what_an_encoder_lacks_is_named(folder: Path, tmp_path: Path, call: str, wrong: Any, missing: str | None):
    model, needed = wrong(), "scorer, frame_size, max_frames, encode_text, encode_video"
    calls = {
        "evaluate": lambda: training.evaluate(model, pairs_of(folder)),
        "encode": lambda: training.encode(model, pairs_of(folder)),
        "extract": lambda: gallery.extract(model, [folder], tmp_path / "out"),
        "encode_videos": lambda: encode_videos(model, [folder]),
        "search": lambda: gallery.search(model, "red", tmp_path),
        "explain": lambda: viz.explain(model, "red", folder / "a.mp4"),
    }
    expected = f"model: expected an encoder with {needed}, got {wrong.__name__} without {missing or needed}$"
    with pytest.raises(TypeError, match=expected):
        calls[call]()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "error", "expected"),
    [
        (Vectors, TypeError, "encode_video: expected a Features, got .*Tensor"),
        (OneVideo, ValueError, "encode_video: expected Features of [24] items, got 1"),
        (OneSentence, ValueError, "encode_text: expected Features of [26] items, got 1"),
    ],
)
def test_what_an_encoder_gives_is_checked(
    folder: Path, tmp_path: Path, wrong: type[Colours], error: type[Exception], expected: str
):
    model = wrong()
    with pytest.raises(error, match=expected):
        training.evaluate(model, pairs_of(folder), protocol="all_captions")
    with pytest.raises(error, match=expected):
        extract_and_search(model, folder, tmp_path)


def extract_and_search(model: Colours, folder: Path, out: Path) -> None:
    gallery.extract(model, [folder], out)
    gallery.search(model, ["red", "blue"], out)
