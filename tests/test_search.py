from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import multigrain as mg
from multigrain.gallery.collection import Collection
from multigrain.gallery.extraction import extract
from multigrain.gallery.query import Result, search
from multigrain.models.encoding import encode_videos
from multigrain.models.protocol import fingerprint
from tests.clips import write_clip
from tests.colours import RGB, colour_model


def shade(name: str) -> np.ndarray:
    return np.full((32, 48, 3), [255 if x > 0 else 0 for x in RGB[name]], np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in RGB:
        write_clip(folder / f"{name}.mp4", [shade(name)] * 20)
    write_clip(folder / "red-then-blue.mp4", [shade("red")] * 20 + [shade("blue")] * 20)
    return folder


@pytest.fixture(scope="module")
def features(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    extract(colour_model(), [videos], out, shard_size=2, batch_size=2, dtype="fp32")
    return out


def test_the_right_video_comes_first(features: Path, videos: Path):
    for name in RGB:
        found = search(colour_model(), f"something {name}", features, k=3)
        assert found[0].path == str(videos / f"{name}.mp4")
        assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert search(colour_model(), "red and blue", features)[0].path == str(videos / "red-then-blue.mp4")


@pytest.mark.parametrize("block", [1, 2, 256])
@pytest.mark.parametrize("k", [1, 3, 6, 50])
def test_streaming_is_top_k_of_the_whole(features: Path, videos: Path, k: int, block: int):
    model, sentences = colour_model(), ["red", "blue and green", "yellow", "purple blue"]
    found = search(model, sentences, features, k=k, block=block)
    paths = Collection.open(features).videos
    whole = encode_videos(model, paths)
    text = model.encode_text(sentences)
    scores, indices = mg.top_k(model.scorer, text, whole, min(k, len(paths)))
    assert [[paths.index(r.path) for r in row] for row in found] == indices.tolist()
    torch.testing.assert_close(torch.tensor([[r.score for r in row] for row in found]), scores, atol=1e-5, rtol=1e-5)
    grains = model.scorer.scores_by_grain(text, whole)
    for query, row in enumerate(found):
        for result in row:
            expected = {name: float(value[query, paths.index(result.path)]) for name, value in grains.items()}
            assert result.by_grain == pytest.approx(expected, abs=1e-5)
            weighted = sum(w * s for w, s in zip(model.scorer.weights, result.by_grain.values(), strict=True))
            assert result.score == pytest.approx(float(weighted), abs=1e-4)


def test_of_equal_scores_the_earlier_video_comes_first(videos: Path, tmp_path: Path):
    copies = [write_clip(tmp_path / f"{name}.mp4", [shade("red")] * 10) for name in "dacb"]
    extract(colour_model(), [*copies, videos / "green.mp4"], tmp_path / "out", shard_size=2, batch_size=1)
    for k in (1, 2, 3, 4):
        found = search(colour_model(), "red", tmp_path / "out", k=k)
        assert [r.path for r in found] == [str(copy) for copy in copies[:k]]


def test_grains_can_be_left_out(features: Path):
    found = search(colour_model(), "red", features, by_grain=False, k=2)
    assert len(found) == 2
    assert all(isinstance(r, Result) and r.by_grain == {} for r in found)


def test_search_keeps_the_mode_of_the_model(features: Path):
    model = colour_model().train()
    search(model, "red", features)
    assert model.training


def test_features_of_another_model_are_refused(features: Path):
    other = colour_model()
    torch.nn.init.constant_(other.vision.gain, 1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"features made otherwise: model\.weights was .*; search with the model"):
        search(other, "red", features)
    assert fingerprint(colour_model()) == fingerprint(colour_model())


def test_what_is_missing_is_named(features: Path, videos: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="expected a folder that `extract` wrote"):
        search(colour_model(), "red", tmp_path)
    (tmp_path / "empty.mp4").touch()
    extract(colour_model(), [tmp_path / "empty.mp4"], tmp_path / "none")
    with pytest.raises(ValueError, match="expected features of at least one video, found none"):
        search(colour_model(), "red", tmp_path / "none")
    extract(colour_model(), [videos], tmp_path / "out", shard_size=2)
    (tmp_path / "out" / "shard-00001.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"the shard shard-00001\.pt is missing"):
        search(colour_model(), "red", tmp_path / "out")
    with pytest.raises(ValueError, match="k: expected an integer from 1, got 0"):
        search(colour_model(), "red", features, k=0)


def test_nan_finds_nothing(features: Path, videos: Path):
    model = colour_model()
    encode = model.encode_text

    def broken(sentences: list[str]) -> mg.Features:
        found = encode(sentences)
        found["word"].features[1] = torch.nan
        return found

    model.encode_text = broken  # type: ignore[method-assign]
    first = re.escape(Collection.open(features).videos[0])
    with pytest.raises(ValueError, match=f"scores: expected numbers, got NaN for sentence 1 and the video {first}"):
        search(model, ["red", "blue"], features)


def test_an_unfinished_extraction_is_told(videos: Path, tmp_path: Path):
    extract(colour_model(), [videos], tmp_path, shard_size=2)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.warns(UserWarning, match="the extraction is not finished"):
        found = search(colour_model(), "red", tmp_path)
    assert len(found) == 6
