from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multigrain import Features, files
from multigrain.data.video import Sampling, VideoError, batch, read_video
from multigrain.gallery import extraction as module
from multigrain.gallery.collection import Collection
from multigrain.gallery.extraction import extract, list_videos
from multigrain.models import encoding
from multigrain.models.encoding import encode_videos
from tests.clips import numbers, write_clip
from tests.colours import colour_model

ROOT = Path(__file__).parent.parent
BROKEN = ("c-empty.mp4", "e-text.mp4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of one to five seconds, two of them broken, one in a subfolder."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    names = ["a.mp4", "b.mkv", "d.MP4", "f.mp4", "g.avi", "h.mp4", "sub/i.mp4"]
    for i, name in enumerate(names):
        write_clip(folder / name, range(10 * i, 10 * i + 10 + 10 * (i % 5)))
    (folder / BROKEN[0]).touch()
    (folder / BROKEN[1]).write_text("no video")
    (folder / "notes.txt").write_text("not named like a video")
    (folder / "._a.mp4").write_text("what a file manager left")
    return folder


def run(videos: Path, out: Path, **options: Any) -> module.Report:
    return extract(colour_model(), [videos], out, **{"shard_size": 3, "batch_size": 2, **options})


def contents(folder: Path) -> dict[str, Any]:
    """Files of a folder by name: the text ones as they are, features as values."""
    return {
        file.name: [
            (name, tokens.features.tolist(), tokens.mask.tolist() if tokens.mask is not None else None)
            for features in [Features.load(file)]
            for name, tokens in ((name, features[name]) for name in features.names)
        ]
        if file.suffix == ".pt"
        else file.read_bytes()
        for file in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(videos, out)
    return contents(out)


def test_features_and_manifest(videos: Path, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    report = run(videos, tmp_path, progress=lambda done, total: seen.append((done, total)), model_path="here")
    assert seen == [(i, 9) for i in range(10)]
    names = ["a.mp4", "b.mkv", "d.MP4", "f.mp4", "g.avi", "h.mp4", "sub/i.mp4"]
    collection = Collection.open(tmp_path)
    assert collection.complete
    assert collection.videos == [str(videos / name) for name in names]
    assert [len(shard.videos) for shard in collection.shards] == [2, 2, 3]
    assert (report.videos, report.encoded, report.repeated) == (7, 7, 0)
    assert list(report.broken) == [str(videos / name) for name in BROKEN]
    assert report.broken[str(videos / BROKEN[0])] == "empty file (0 bytes)"
    lines = (tmp_path / "broken.txt").read_text().splitlines()
    assert lines == [f"{video}\t{reason}" for video, reason in report.broken.items()]
    assert "2 could not be read" in str(report)
    assert f"{videos / BROKEN[1]}: not a video" in str(report)
    assert collection.settings["sampling"] == {"fps": 1.0, "max_frames": 4, "strategy": "uniform"}
    assert collection.model_path == os.path.abspath("here")
    rows = [collection.load(shard)[row] for shard in collection.shards for row in range(len(shard.videos))]
    model = colour_model()
    for name, row in zip(names, rows, strict=True):
        frames, mask = batch([read_video(videos / name, Sampling(max_frames=4), 16)])
        expected = model.encode_video(frames, mask)
        length = frames.shape[1]
        assert row["frame"].dtype == torch.float16
        assert row["frame"].mask is None or row["frame"].mask.sum() == length
        for grain, got in (("frame", row["frame"].features[:, :length]), ("video", row["video"].features)):
            torch.testing.assert_close(got.float(), expected[grain].features, atol=1e-3, rtol=0)


def test_a_finished_collection_stays_as_it_is_and_grows(videos: Path, tmp_path: Path, undisturbed: dict[str, Any]):
    out, late = tmp_path / "out", write_clip(tmp_path / "late.mp4", range(20))
    run(videos, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.pt")}
    report = run(videos, out)
    assert contents(out) == undisturbed
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.pt")} == before
    assert (report.videos, report.encoded, len(report.broken)) == (7, 0, 2)
    report = extract(colour_model(), [videos, late], out, shard_size=3)
    assert (report.videos, report.encoded) == (8, 1)
    assert Collection.open(out).videos[-1] == str(late)
    assert Collection.open(out).complete


class Killed(BaseException):
    pass


def kill_at(call: int, function: Callable[..., Any], before: bool = True) -> Callable[..., Any]:
    """The function, which dies at a call, before or after its work."""
    calls = iter(range(1, 1000))

    def dying(*args: Any, **options: Any) -> Any:
        now = next(calls) == call
        if now and before:
            raise Killed
        result = function(*args, **options)
        if now:
            raise Killed
        return result

    return dying


def half_a_line(self: Collection, values: dict[str, Any]) -> None:
    with (self.folder / "manifest.jsonl").open("ab") as file:
        file.write(json.dumps(values).encode()[:-3])
    raise Killed


def half_a_shard(self: Features, path: Path) -> None:
    path.with_name(f"{path.name}.123-0a1b2c3d.tmp").write_bytes(b"half")
    raise Killed


POINTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "first video": (encoding, "read_video", kill_at(1, read_video)),
    "fifth video": (encoding, "read_video", kill_at(5, read_video)),
    "second shard, before it is written": (Features, "save", kill_at(2, Features.save)),
    "second shard, before its line": (Features, "save", kill_at(2, Features.save, before=False)),
    "second shard, after its line": (Collection, "append", kill_at(2, Collection.append, before=False)),
    "in a shard": (Features, "save", half_a_shard),
    "in a line": (Collection, "_write", half_a_line),
    "before the list of broken videos": (Collection, "_list_broken", kill_at(2, Collection._list_broken)),
    "before the end": (Collection, "finish", kill_at(1, Collection.finish)),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_as_undisturbed(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any], point: str
):
    with monkeypatch.context() as patch:
        patch.setattr(*POINTS[point])
        with pytest.raises(Killed):
            run(videos, tmp_path)
    assert not Collection.open(tmp_path).complete
    report = run(videos, tmp_path)
    assert contents(tmp_path) == undisturbed
    assert (report.videos, len(report.broken)) == (7, 2)


KILLED = """
import sys, time
from tests.colours import colour_model
from multigrain.gallery.extraction import extract
def progress(done, total):
    if done == 5:
        print("now", flush=True)
        time.sleep(60)
extract(colour_model(), [sys.argv[1]], sys.argv[2], shard_size=3, batch_size=2, progress=progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_by_the_system_and_resumed(videos: Path, tmp_path: Path, undisturbed: dict[str, Any]):
    command = [sys.executable, "-c", KILLED, str(videos), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        process.kill()
        assert said == "now\n", process.stderr.read()
    assert len(Collection.open(tmp_path).shards) == 1
    run(videos, tmp_path)
    assert contents(tmp_path) == undisturbed


def test_strict_stops_at_the_first_broken_video_and_can_go_on(
    videos: Path, tmp_path: Path, undisturbed: dict[str, Any]
):
    for _ in range(2):
        with pytest.raises(VideoError, match=r"c-empty\.mp4: empty file"):
            run(videos, tmp_path, strict=True)
    run(videos, tmp_path)
    assert contents(tmp_path) == undisturbed
    with pytest.raises(VideoError, match=r"c-empty\.mp4: empty file"):
        run(videos, tmp_path, strict=True)


def test_a_shard_of_broken_videos_has_no_file(videos: Path, tmp_path: Path):
    report = extract(colour_model(), [videos / name for name in BROKEN], tmp_path)
    assert (report.videos, len(report.broken)) == (0, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.txt", "manifest.jsonl"]
    assert extract(colour_model(), [videos], tmp_path).videos == 7


def test_repeated_videos_count_once(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(videos)
    report = extract(colour_model(), ["a.mp4", videos / "a.mp4", "sub/../a.mp4", "b.mkv"], tmp_path)
    assert (report.videos, report.repeated) == (2, 2)
    assert "2 were named more than once" in str(report)


def test_other_settings_are_refused(videos: Path, tmp_path: Path):
    run(videos, tmp_path)
    other = colour_model()
    torch.nn.init.constant_(other.vision.gain, 3)  # type: ignore[union-attr]
    for changes, difference in [
        ({"sampling": Sampling(max_frames=2)}, r"sampling\.max_frames was 4, is 2"),
        ({"dtype": "fp32"}, "dtype was 'fp16', is 'fp32'"),
        ({"model": other}, r"model\.weights was '\w+', is '\w+'"),
        ({"model": colour_model(masked=False)}, r"model\.masked was True, is False"),
    ]:
        arguments: dict[str, Any] = {"model": colour_model(), "videos": [videos], "out": tmp_path, **changes}
        with pytest.raises(ValueError, match=rf"features made otherwise: {difference}; pass resume=False"):
            extract(**arguments)
    report = extract(other, [videos / "a.mp4"], tmp_path, resume=False, dtype="fp32")
    assert report.videos == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["manifest.jsonl", "shard-00000.pt"]
    assert Features.load(tmp_path / "shard-00000.pt")["video"].dtype == torch.float32


def test_starting_anew_deletes_nothing_else(videos: Path, tmp_path: Path):
    for name in ("notes.txt", "shard-1.txt", "other.tmp"):
        (tmp_path / name).touch()
    run(videos, tmp_path)
    run(videos, tmp_path, resume=False)
    assert {"notes.txt", "shard-1.txt", "other.tmp"} <= {file.name for file in tmp_path.iterdir()}


def test_damage_is_named(videos: Path, tmp_path: Path):
    run(videos, tmp_path)
    manifest, shard = tmp_path / "manifest.jsonl", tmp_path / "shard-00001.pt"
    collection, whole = Collection.open(tmp_path), shard.read_bytes()
    for content in (whole[:100], whole[:-300] + b"\0" + whole[-299:], (tmp_path / "shard-00002.pt").read_bytes()):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard-00001\.pt: damaged, or another file than was written"):
            collection.load(collection.shards[1])
    features = Features.load(tmp_path / "shard-00002.pt")
    features.save(shard)
    with pytest.raises(ValueError, match=r"shard-00001\.pt: expected 2 rows, as the manifest says, got 3"):
        collection.load(dataclasses.replace(collection.shards[1], sha256=files.digest(shard)))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"the shard shard-00001\.pt is missing \(2 videos\)"):
        Collection.open(tmp_path)
    manifest.write_bytes(b'{"format": 99}\n')
    with pytest.raises(ValueError, match=r"manifest\.jsonl:1: expected the settings of features of format 2"):
        run(videos, tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (b"{nonsense", "Expecting"),
        (b"[" * 100_000, "nested less deeply"),
        (b"[]", "line: expected a JSON object"),
        ({"videos": 5}, "videos: expected paths"),
        ({"videos": []}, "videos: expected paths"),
        ({"file": 5}, r"file: expected shard-00001\.pt or null, got 5"),
        ({"file": "shard-00000.pt"}, r"file: expected shard-00001\.pt or null, got 'shard-00000\.pt'"),
        ({"file": "/etc/passwd"}, r"file: expected shard-00001\.pt"),
        ({"file": "../shard-00001.pt"}, r"file: expected shard-00001\.pt"),
        ({"file": None}, "sha256: expected a digest, for a file"),
        ({"sha256": None}, "sha256: expected a digest, for a file"),
        ({"broken": [1]}, "broken: expected reasons by path"),
        ({"broken": {"a": 1}}, "broken: expected reasons by path"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_manifest_of_another_make_is_refused(videos: Path, tmp_path: Path, change: Any, expected: str):
    extract(colour_model(), [videos / "a.mp4", videos / "b.mkv"], tmp_path, shard_size=1)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines()
    lines[2] = change if isinstance(change, bytes) else json.dumps({**json.loads(lines[2]), **change}).encode()
    manifest.write_bytes(b"\n".join([*lines, b""]))
    for read in (lambda: Collection.open(tmp_path), lambda: run(videos, tmp_path)):
        with pytest.raises(ValueError, match=rf"manifest\.jsonl:3: not a line of a manifest of features: .*{expected}"):
            read()


def test_a_lost_or_damaged_shard_is_made_again(videos: Path, tmp_path: Path, undisturbed: dict[str, Any]):
    run(videos, tmp_path)
    manifest = (tmp_path / "manifest.jsonl").read_bytes()
    shards = {file: file.read_bytes() for file in sorted(tmp_path.glob("shard-*"))}
    first, second, _ = shards
    first.unlink()
    second.write_bytes(shards[second].replace(b"frame", b"Frame", 1))
    seen: list[tuple[int, int]] = []
    with pytest.warns(UserWarning, match=r"missing or damaged: shard-00000\.pt, shard-00001\.pt; the 4 videos are"):
        report = run(videos, tmp_path, progress=lambda *now: seen.append(now))
    assert (report.videos, report.encoded, seen[0], seen[-1]) == (7, 4, (9, 13), (13, 13))
    assert {file: file.read_bytes() for file in sorted(tmp_path.glob("shard-*"))} == shards  # byte for byte
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest
    assert contents(tmp_path) == undisturbed


def test_a_shard_is_made_again_of_the_videos_that_are_left(videos: Path, tmp_path: Path):
    late = [write_clip(tmp_path / f"{name}.mp4", range(10)) for name in "abc"]
    out = tmp_path / "out"
    extract(colour_model(), late, out, shard_size=2)
    for file in (late[1], out / "shard-00000.pt"):
        file.unlink()
    with pytest.warns(UserWarning, match=r"shard-00000\.pt; the 2 videos"):
        report = extract(colour_model(), late, out)
    collection = Collection.open(out)
    assert (report.videos, report.encoded, list(report.broken)) == (2, 1, [str(late[1])])
    assert collection.complete and collection.videos == [str(late[0]), str(late[2])]
    assert [len(collection.load(shard)) for shard in collection.shards] == [1, 1]


def test_two_extractions_give_equal_bytes(videos: Path, tmp_path: Path):
    for name in ("one", "two"):
        run(videos, tmp_path / name)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_decoding_runs_ahead_in_order_but_not_far(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip, started, most = read_video(videos / "a.mp4", size=16), [0], [0]

    def read(path: str, *_: Any) -> Tensor:
        started[0] += 1
        return clip + int(path.rsplit("/")[-1][:-4])

    monkeypatch.setattr(encoding, "read_video", read)
    model = colour_model()
    encode, encoded = model.encode_video, [0]

    def counted(frames: Tensor, mask: Tensor) -> Features:
        most[0] = max(most[0], started[0] - encoded[0])
        encoded[0] += len(frames)
        return encode(frames, mask)

    monkeypatch.setattr(model, "encode_video", counted)
    features = encode_videos(model, [f"/{i}.mp4" for i in range(40)], batch_size=4, workers=3)
    assert features["frame"].features[:, 0, 0].diff().min() > 0
    assert 4 < most[0] <= 4 + 4 + 3 + 1


def test_encode_videos_keeps_order_and_mode(videos: Path):
    model = colour_model().train()
    paths = [videos / "h.mp4", videos / "a.mp4", videos / "h.mp4"]
    seen: list[tuple[int, int]] = []
    features = encode_videos(model, paths, progress=lambda *now: seen.append(now), batch_size=2)
    one = model.encode_video(paths[1])
    torch.testing.assert_close(one["video"].features, model.encode_videos(paths)[1]["video"].features)
    assert model.training
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len(features) == 3
    assert features["frame"].mask is not None
    assert features["frame"].mask.sum(1).tolist() == [1, 1, 1]
    torch.testing.assert_close(features[0]["video"].features, features[2]["video"].features)  # in batches of 2 and 1
    assert not features["video"].features.requires_grad
    assert (features[0]["video"].features - features[1]["video"].features).abs().max() > 0.1
    with pytest.raises(VideoError, match=r"c-empty\.mp4: empty file"):
        encode_videos(model, [videos])


def test_without_masks_padding_is_that_of_training(videos: Path):
    model = colour_model(masked=False)
    features = encode_videos(model, [videos / "a.mp4", videos / "b.mkv"], batch_size=1)
    assert features["frame"].mask is None
    assert features["frame"].features.shape == (2, 4, 3)


def test_folders_are_searched(videos: Path, tmp_path: Path):
    assert [Path(path).name for path in list_videos([videos])] == [
        *("a.mp4", "b.mkv", "c-empty.mp4", "d.MP4", "e-text.mp4", "f.mp4", "g.avi", "h.mp4", "i.mp4")
    ]
    assert list_videos(iter(["clip", tmp_path / "missing.mp4"])) == [os.path.abspath("clip"), f"{tmp_path}/missing.mp4"]
    with pytest.raises(ValueError, match=rf"videos: expected video files in the folder {tmp_path}, found none"):
        list_videos([tmp_path])
    with pytest.raises(ValueError, match="videos: expected at least one path, got none"):
        list_videos([])
    with pytest.raises(TypeError, match=r"videos: expected a list of paths, got one path 'a\.mp4'"):
        list_videos("a.mp4")


def test_arguments_out_of_range_are_named(videos: Path, tmp_path: Path):
    for options, message in [
        ({"batch_size": 0}, "batch_size: expected an integer from 1, got 0"),
        ({"workers": 0}, "workers: expected an integer from 1, got 0"),
        ({"shard_size": 0}, "shard_size: expected an integer from 1, got 0"),
        ({"dtype": "bf16"}, "dtype: expected one of fp16, fp32; got 'bf16'"),
        ({"sampling": Sampling(max_frames=5)}, "sampling: expected at most the 4 frames of the model, got 5"),
        ({"sampling": Sampling(max_frames=4, strategy="random")}, "the strategy random"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(videos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_an_error(videos: Path, tmp_path: Path):
    model = colour_model()
    torch.nn.init.constant_(model.vision.gain, 1e6)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="frame: expected finite features, got NaN or infinity in row 0"):
        extract(model, [videos], tmp_path)


def test_the_sampled_frames_reach_the_model(videos: Path, monkeypatch: pytest.MonkeyPatch):
    model, seen = colour_model(), list[int]()

    def encode(frames: Tensor, _: Tensor) -> Features:
        seen.extend(numbers(frames[0]))
        return Features(video=torch.ones(1, 1))

    monkeypatch.setattr(model, "encode_video", encode)
    encode_videos(model, [videos / "g.avi"], sampling=Sampling(max_frames=3))
    assert seen == [40, 60, 80]  # of the frames at 40, 50, 60, 70, 80
