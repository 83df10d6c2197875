"""Pairs of a manifest: which frames go where, and what becomes of videos that cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from multigrain.data import clips
from multigrain.data.clips import Clips
from multigrain.data.manifest import Clip, write_manifest
from multigrain.data.video import Sampling, VideoError
from tests.clips import numbers, write_clip


def second(i: int, count: int = 10) -> list[int]:
    return [i] * count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """long.mp4: eight seconds of colours 1 to 8; short.mp4: two, of 20 and 21; broken.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "long.mp4", [n for i in range(1, 9) for n in second(i)])
    write_clip(folder / "short.mp4", [*second(20), *second(21)])
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def pairs(folder: Path, strategy: str = "uniform", strict: bool = False) -> Clips:
    return Clips(
        [
            Clip("long", folder / "long.mp4", ("one", "two"), "train"),
            Clip("broken", folder / "broken.mp4", ("three",), "train"),
            Clip("short", folder / "short.mp4", ("four",), "train"),
            Clip("part", folder / "long.mp4", ("five",), "train", 2.0, 4.0),
        ],
        Sampling(strategy=strategy),
        size=32,
        strict=strict,
    )


def test_every_caption_is_a_pair(folder: Path):
    data = pairs(folder)
    assert data.sentences == ["one", "two", "three", "four", "five"]
    assert data.ids.tolist() == [0, 0, 1, 2, 3]
    assert data.names == ["long", "long", "broken", "short", "part"]
    assert len(data) == 5


def test_a_batch_holds_each_video_once(folder: Path):
    batch = pairs(folder).batch([1, 3, 0, 4], max_frames=4)
    assert batch.sentences == ["two", "four", "one", "five"]
    assert batch.ids.tolist() == [0, 2, 0, 3]
    assert batch.frames.shape == (8, 3, 32, 32)
    assert batch.frames.dtype == torch.uint8
    shown = [numbers(batch.frames[index[mask]]) for index, mask in zip(batch.index, batch.mask, strict=True)]
    assert shown == [[1, 3, 5, 8], [20, 21], [1, 3, 5, 8], [3, 4]]
    assert batch.broken == []


def test_a_broken_video_is_named_and_its_pairs_left_out(folder: Path):
    batch = pairs(folder).batch([2, 3])
    assert batch.sentences == ["four"]
    assert batch.index.shape == (1, 2)
    [reason] = batch.broken
    assert "broken.mp4" in reason
    nothing = pairs(folder).batch([2])
    assert (len(nothing.sentences), len(nothing.frames), len(nothing.broken)) == (0, 0, 1)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        pairs(folder, strict=True).batch([3, 2])


@pytest.mark.parametrize("strategy", ["random", "segment"])
def test_chance_is_of_the_clip_and_the_seed(folder: Path, strategy: str):
    data = pairs(folder, strategy)

    def shown(rows: list[int], seed: int | None) -> list[int]:
        batch = data.batch(rows, 3, seed)
        return numbers(batch.frames[batch.index[-1]])

    drawn = {tuple(shown([0], seed)) for seed in range(8)}
    assert len(drawn) > 2
    assert shown([0], 5) == shown([3, 0], 5) == shown([1], 5)  # whatever else is in the batch
    assert shown([0], None) == shown([0], None) == ([1, 4, 8] if strategy == "random" else [1, 4, 7])


def test_splits_of_a_manifest(folder: Path, tmp_path: Path):
    write_manifest(
        tmp_path / "set.jsonl",
        [Clip(split, folder / "short.mp4", ("a",) * n, split) for n, split in enumerate(clips.SPLITS, 1)],
    )
    splits = clips.load(tmp_path / "set.jsonl", size=32)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1, 2, 3]
    assert splits.single is splits.train
    again = pickle.loads(pickle.dumps(splits.test))  # as a worker gets it
    assert torch.equal(again.batch([2]).frames, splits.test.batch([2]).frames)
