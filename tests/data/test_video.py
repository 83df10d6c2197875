from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from multigrain.data.video import Sampling, VideoError, batch, read_video, sample
from multigrain.data.video import decode as video_decode
from tests.clips import VP9, X264, numbers, picture, rotate, write_clip, write_sound

EVERY = Sampling(max_frames=100)
x264 = pytest.mark.skipif(not X264, reason="this PyAV cannot encode H.264")
vp9 = pytest.mark.skipif(not VP9, reason="this PyAV cannot encode VP9")


def read(path: Path, sampling: Sampling = EVERY, **options: Any) -> list[int]:
    frames = read_video(path, sampling, 32, backend="pyav", **options)
    assert frames.dtype == torch.uint8
    assert frames.shape[1:] == (3, 32, 32)
    assert frames.is_contiguous()
    return numbers(frames)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of ten frames each."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


# Which candidates are taken


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 32, 64])
def test_uniform_is_the_published_linspace(n: int):
    for total in range(1, 300):
        expected = np.linspace(0, total - 1, n, dtype=int).tolist() if total > n else list(range(total))
        assert sample(total, Sampling(max_frames=n)) == expected


def test_head_takes_the_first():
    assert sample(10, Sampling(max_frames=3, strategy="head")) == [0, 1, 2]


def test_segment_takes_the_middle_of_equal_parts():
    assert sample(9, Sampling(max_frames=3, strategy="segment")) == [1, 4, 7]
    assert sample(10, Sampling(max_frames=4, strategy="segment")) == [0, 3, 5, 8]  # parts of 2, 3, 2, 3


def test_segment_draws_one_from_each_part():
    sampling, generator = Sampling(max_frames=4, strategy="segment"), torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(10, sampling, generator) for _ in range(100)])
    seen = [sorted(set(column.tolist())) for column in drawn.T]
    assert seen == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


def test_random_draws_without_repetition_in_order():
    sampling, generator = Sampling(max_frames=4, strategy="random"), torch.Generator().manual_seed(0)
    draws = [sample(10, sampling, generator) for _ in range(100)]
    assert all(draw == sorted(set(draw)) and len(draw) == 4 for draw in draws)
    assert set(itertools.chain(*draws)) == set(range(10))
    torch.manual_seed(3)
    first = sample(10, sampling)
    torch.manual_seed(3)
    assert sample(10, sampling) == first


@pytest.mark.parametrize("strategy", ["uniform", "head", "random", "segment"])
def test_few_candidates_are_all_taken(strategy: str):
    assert sample(3, Sampling(max_frames=3, strategy=strategy), torch.Generator()) == [0, 1, 2]
    assert sample(1, Sampling(max_frames=3, strategy=strategy)) == [0]


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="fps: expected a positive finite number, got 0"):
        Sampling(fps=0)
    with pytest.raises(ValueError, match="max_frames: expected an integer from 1, got 0"):
        Sampling(max_frames=0)
    with pytest.raises(ValueError, match="strategy: expected one of uniform, head, random, segment; got 'all'"):
        Sampling(strategy="all")
    with pytest.raises(ValueError, match="total: expected an integer from 1, got 0"):
        sample(0, Sampling())


# Which frames of a file are the candidates


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "mpeg4", {}),
        ("a: b.mkv", "mpeg4", {"bf": "2"}),
        ("clip.avi", "mpeg4", {"bf": "2"}),
        ("clip.mpg", "mpeg2video", {}),  # starts at half a second
        pytest.param("clip.ts", "libx264", {}, marks=x264),
        pytest.param("clip.flv", "libx264", {}, marks=x264),
        pytest.param("clip.avi", "libx264", {}, marks=x264),  # its timestamps run backwards
        pytest.param("clip.h264", "libx264", {}, marks=x264),  # it has none
        pytest.param("clip.mp4", "libx264", {"x264-params": "open-gop=1:keyint=7"}, marks=x264),
        pytest.param("clip.webm", "libvpx-vp9", {"deadline": "realtime"}, marks=vp9),
    ],
)
def test_a_frame_a_second_whatever_the_container(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    path = write_clip(tmp_path / name, range(75), rate=25, codec=codec, options=options)
    expected = [0, 25, 50]
    assert read(path) == expected
    assert read(path, Sampling(fps=25, max_frames=100)) == list(range(75))
    assert read(path, start=1.5) == [37, 62]


def test_rates_spans_and_strategies(clip: Path):
    assert read(clip) == [0, 10, 20, 30, 40]
    assert read(clip, Sampling(fps=2)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert read(clip, Sampling(fps=0.4)) == [0, 25]
    assert read(clip, Sampling(fps=3, max_frames=4)) == [0, 13, 30, 46]  # candidates 0, 4, 9, 14 of fifteen
    assert read(clip, Sampling(max_frames=2, strategy="head")) == [0, 10]
    assert read(clip, Sampling(max_frames=2, strategy="segment")) == [0, 30]
    drawn = read(clip, Sampling(max_frames=2, strategy="random"), seed=1)
    assert drawn == read(clip, Sampling(max_frames=2, strategy="random"), seed=1)
    assert {tuple(read(clip, Sampling(max_frames=2, strategy="random"), seed=s)) for s in range(9)} > {tuple(drawn)}
    assert read(clip, start=2) == [20, 30, 40]
    assert read(clip, start=1.55, end=3.6) == [15, 25, 35]
    assert read(clip, start=1.55, end=3.55) == [15, 25]
    assert read(clip, end=2) == [0, 10]
    assert read(clip, start=3, end=99) == [30, 40]


def test_a_part_has_a_frame_however_short(clip: Path, tmp_path: Path):
    assert read(clip, start=2.34, end=2.35) == [23]
    assert read(clip, start=4.99) == [49]
    assert read(write_clip(tmp_path / "short.mp4", range(3))) == [0]
    assert read(write_clip(tmp_path / "one.mp4", range(5, 6))) == [5]


def test_a_start_behind_the_end_is_an_error(clip: Path):
    with pytest.raises(VideoError, match=r"clip\.mp4: it ends at 5\.00 s, before the start of the clip at 5\.00 s"):
        read(clip, start=5)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
@pytest.mark.parametrize("codec", ["mpeg4", pytest.param("libx264", marks=x264)])
@pytest.mark.parametrize("first", [0, 45])
def test_variable_frame_rates_show_the_last_frame_due(tmp_path: Path, name: str, codec: str, first: int):
    times = [0, 1, 2, 30, 31, 45, 60, 90, 91, 130]
    path = write_clip(tmp_path / name, range(10), [first + t for t in times], rate=30, codec=codec)
    for fps in (1, 2, 7.5, 30):
        due = [k * 30 / fps for k in range(math.ceil(131 / 30 * fps - 1e-6))]
        assert read(path, Sampling(fps, 200)) == [sum(t <= d + 1e-6 for t in times) - 1 for d in due]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {"g": "20"}),
        pytest.param("libx264", {"x264-params": "open-gop=1:keyint=20:bframes=3"}, marks=x264),
        pytest.param("libx264", {"x264-params": "intra-refresh=1:keyint=20"}, marks=x264),
    ],
)
@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_seeking_changes_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict[str, str]
):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    moving = [np.roll(noise, i, 1) // 2 + np.uint8(i) for i in range(120)]
    path = write_clip(tmp_path / name, moving, codec=codec, options=options)
    decoded = count_frames(monkeypatch)
    sparse = [read_video(path, Sampling(0.25), 48), read_video(path, start=7.9, size=48)]
    fewer, decoded[:] = decoded[0], [0]
    monkeypatch.setattr(video_decode, "_INDEXED", ("no container",))
    whole = [read_video(path, Sampling(0.25), 48), read_video(path, start=7.9, size=48)]
    assert all(torch.equal(a, b) for a, b in zip(sparse, whole, strict=True))
    assert fewer < decoded[0] or "intra-refresh" in options.get("x264-params", "")


def count_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    count, timed = [0], video_decode._timed

    def counted(*args: Any):
        for frame in timed(*args):
            count[0] += 1
            yield frame

    monkeypatch.setattr(video_decode, "_timed", counted)
    return count


# Pixels


def test_the_centre_of_the_shorter_side():
    wide = np.zeros((1, 48, 96, 3), np.uint8)
    wide[:, :, 24:72] = 200
    frames = read_video(wide, size=24)
    assert frames.shape == (1, 3, 24, 24)
    assert frames[..., 2:-2].eq(200).all()
    assert torch.equal(read_video(wide.transpose(0, 2, 1, 3), size=24), frames.transpose(2, 3))
    assert torch.equal(read_video(wide, size=48), torch.from_numpy(wide[:, :, 24:72]).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("height", "width", "size"), [(48, 64, 32), (97, 61, 32), (20, 31, 56)])
def test_resizing_is_that_of_clip(height: int, width: int, size: int):
    # Smooth pictures: on noise, Pillow and torch differ by rounding between the two passes.
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 127 + 120 * np.sin(x / 5 + y / 7)], -1).astype(np.uint8)
    new = (size, size * height // width) if width < height else (size * width // height, size)
    resized = np.asarray(Image.fromarray(pixels).resize(new, Image.Resampling.BICUBIC)).astype(int)
    top, left = round((new[1] - size) / 2), round((new[0] - size) / 2)
    expected = resized[top : top + size, left : left + size]
    got = read_video(pixels[None], size=size)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected).max() <= 1


def test_rotated_videos_are_upright(tmp_path: Path):
    pixels = picture(0)
    pixels[:, :32] = 200  # left, which the rotation turns to the top
    path = write_clip(tmp_path / "phone.mp4", [pixels] * 10)
    rotate(path)
    upright = read_video(path, size=48).float()
    assert upright[0, :, :12].mean() > 190
    assert upright[0, :, -12:].mean() < 10


@pytest.mark.parametrize("size", [(33, 17), (17, 33), (16, 16)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]):
    path = write_clip(tmp_path / "odd.mkv", range(20), codec="ffv1", size=size, pix_fmt="yuv444p")
    assert read(path) == [0, 10]


# What cannot be read


def damaged(name: str, tmp_path: Path) -> Path:
    path = tmp_path / name
    whole = write_clip(tmp_path / f"whole{path.suffix}", container_options=_faststart(path)).read_bytes()
    if name.startswith("cut"):
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif name.startswith("headless"):
        path.write_bytes(whole[len(whole) // 2 :])
    elif name.startswith("text"):
        path.write_text("no video\n" * 100)
    elif name.startswith("sound"):
        write_sound(path)
    elif name.startswith("empty"):
        path.touch()
    elif name.startswith("folder"):
        path.mkdir()
    return path


def _faststart(path: Path) -> dict[str, str]:
    return {"movflags": "faststart"} if path.suffix == ".mp4" else {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.mp4", "no such file"),
        ("empty.mp4", r"empty file \(0 bytes\)"),
        ("text.mp4", "not a video, or a damaged one: Invalid data"),
        ("headless.mp4", "damaged: a bare m4v stream in place of a mp4 file"),
        ("cut.mp4", "truncated"),
        ("cut.mkv", "truncated: ends after .* of 5.0 s"),
        ("cut.avi", "truncated"),
        ("sound.mp4", "no video stream in it"),
        ("sound.m4a", "no video stream in it"),
        ("folder.mp4", "no images in the folder"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_line(tmp_path: Path, name: str, reason: str):
    path = damaged(name, tmp_path)
    with pytest.raises(VideoError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_frames_that_do_not_decode_are_an_error(clip: Path, tmp_path: Path):
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, length in packets[25:]:
        data[start : start + length] = bytes(length)
    damaged = tmp_path / "holes.mp4"
    damaged.write_bytes(data)
    assert read(damaged, end=2) == [0, 10]
    with pytest.raises(VideoError, match=r"holes\.mp4: .*damaged"):
        read(damaged)


def test_arguments_out_of_range_are_named(clip: Path):
    with pytest.raises(ValueError, match=r"start: expected seconds from 0 on, got -1"):
        read(clip, start=-1)
    with pytest.raises(ValueError, match=r"end: expected a time after the start at 2 s, got 2"):
        read(clip, start=2, end=2)
    with pytest.raises(TypeError, match=r"end: expected seconds or None, got '3'"):
        read(clip, end="3")
    with pytest.raises(ValueError, match=r"frame_rate: expected None for a video file.*got 5"):
        read(clip, frame_rate=5)
    with pytest.raises(ValueError, match=r"size: expected an integer from 1, got 0"):
        read_video(clip, size=0)
    with pytest.raises(ValueError, match=r"backend: expected one of auto, torchcodec, pyav; got 'cv2'"):
        read_video(clip, backend="cv2")


def test_a_missing_library_names_its_extra(clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[data\]"'):
        read(clip)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match=r'pip install "multigrain\[data-fast\]"'):
        read_video(clip, backend="torchcodec")


# torchcodec


@pytest.mark.skipif(not video_decode.torchcodec_loads(), reason="torchcodec does not load here")
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("codec", ["mpeg4", pytest.param("libx264", marks=x264)])
def test_torchcodec_takes_the_same_frames(tmp_path: Path, name: str, codec: str):
    times = [4 + t + 3 * (t > 30) + t // 7 for t in range(100)]
    path = write_clip(tmp_path / name, range(100), times, rate=24, codec=codec)
    for sampling in (Sampling(), Sampling(24, 500), Sampling(7.3, 30), Sampling(3, 5, "segment")):
        for start, end in ((None, None), (1.2, 3.4), (3.99, None)):
            a, b = (read_video(path, sampling, 32, start, end, backend=name) for name in ("pyav", "torchcodec"))
            assert numbers(a) == numbers(b)
            assert (a.float() - b.float()).abs().max() <= 2


def fake_torchcodec(decode: Callable[[list[float]], Any]) -> SimpleNamespace:
    return SimpleNamespace(VideoDecoder=lambda *_, **__: SimpleNamespace(get_frames_played_at=decode))


def test_torchcodec_is_asked_for_exact_frames_and_believed_only_then(clip: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    late = 0.0

    def decode(seconds: list[float]) -> Any:
        asked.extend(seconds)
        shown = [math.floor(s * 10) for s in seconds]
        pixels = torch.stack([torch.from_numpy(picture(i)).permute(2, 0, 1) for i in shown])
        return SimpleNamespace(data=pixels, pts_seconds=torch.tensor([i / 10 + late for i in shown]).double())

    monkeypatch.setattr(video_decode, "_torchcodec", lambda: fake_torchcodec(decode))
    monkeypatch.setattr(video_decode, "torchcodec_loads", lambda: True)
    assert numbers(read_video(clip, Sampling(2, 20), 32)) == list(range(0, 50, 5))
    assert asked == pytest.approx([k / 2 for k in range(10)], abs=1e-3)
    late = 0.1
    with pytest.raises(VideoError, match="torchcodec gives other frames"):
        read_video(clip, size=32, backend="torchcodec")
    assert numbers(read_video(clip, size=32)) == [0, 10, 20, 30, 40]  # by PyAV


def test_what_torchcodec_cannot_do_pyav_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: list[float]) -> Any:
        raise RuntimeError("no more frames\nleft to decode")

    monkeypatch.setattr(video_decode, "_torchcodec", lambda: fake_torchcodec(fail))
    monkeypatch.setattr(video_decode, "torchcodec_loads", lambda: True)
    for name, reason in (("a.mp4", "torchcodec cannot decode it: no more frames left"), ("a.avi", "use pyav")):
        path = write_clip(tmp_path / name, range(20))
        with pytest.raises(VideoError, match=reason):
            read_video(path, backend="torchcodec")
        assert numbers(read_video(path, size=32)) == [0, 10]


def test_a_torchcodec_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch):
    def fail() -> Any:
        raise OSError("libavutil.so: cannot open shared object file")

    monkeypatch.setattr(video_decode, "_torchcodec", fail)
    assert video_decode.torchcodec_loads.__wrapped__() is False


# Folders and arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.{'PNG' if i % 2 else 'bmp'}")
    (tmp_path / "notes.txt").write_text("not a frame")
    return tmp_path


def test_folders_of_frames_are_in_natural_order(folder: Path):
    assert read(folder) == list(range(12))
    assert read(folder, Sampling(max_frames=3)) == [0, 5, 11]
    assert read(folder, frame_rate=4) == [0, 4, 8]
    assert read(folder, Sampling(fps=2), frame_rate=4, start=1, end=2.5) == [4, 6, 8]


def test_a_broken_image_is_named(folder: Path):
    (folder / "frame4.bmp").write_text("no picture")
    with pytest.raises(VideoError, match=r"frame4\.bmp: not a video, or a damaged one"):
        read(folder)


@pytest.mark.parametrize("layout", ["N,H,W,3", "N,3,H,W"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_arrays(layout: str, kind: Callable[[np.ndarray], np.ndarray | Tensor]):
    frames = np.stack([picture(i, 50, 40) for i in range(20)])
    source = kind(frames if layout == "N,H,W,3" else frames.transpose(0, 3, 1, 2))
    assert numbers(read_video(source, size=32)) == [0, 1, 3, 5, 6, 8, 10, 12, 13, 15, 17, 19]
    assert numbers(read_video(source, size=32, frame_rate=10)) == [0, 10]
    with pytest.raises(VideoError, match=r"array of frames: it ends at 2\.00 s"):
        read_video(source, frame_rate=10, start=3)


def test_arrays_that_are_no_frames_are_named():
    for source, error, reason in [
        (np.zeros((4, 8, 8, 3), np.float32), TypeError, r"expected frames uint8, got torch\.float32"),
        (
            np.zeros((4, 8, 8), np.uint8),
            ValueError,
            r"expected frames \[N, H, W, 3\] or \[N, 3, H, W\], got \[4, 8, 8\]",
        ),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, r"got \[0, 8, 8, 3\]"),
        (np.zeros((4, 8, 8, 4), np.uint8), ValueError, r"got \[4, 8, 8, 4\]"),
        (object(), TypeError, "expected a path, or frames as an array, got object"),
    ]:
        with pytest.raises(error, match=reason):
            read_video(source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frame_rate: expected frames per second"):
        read_video(np.zeros((4, 8, 8, 3), np.uint8), start=1)


# Batches


def test_videos_of_different_lengths_make_a_batch():
    videos = [torch.full((n, 3, 4, 4), n, dtype=torch.uint8) for n in (2, 3, 1)]
    frames, mask = batch(videos)
    assert frames.dtype == torch.uint8
    assert mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert frames[:, :, 0, 0, 0].tolist() == [[2, 2, 0], [3, 3, 3], [1, 0, 0]]
    frames, mask = batch(videos, length=5)
    assert frames.shape == (3, 5, 3, 4, 4)
    assert mask.sum(1).tolist() == [2, 3, 1]


def test_videos_that_make_no_batch_are_named():
    video = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="videos: expected at least one, got none"):
        batch([])
    with pytest.raises(ValueError, match=r"videos\[1\]: expected frames .* got \[2, 3, 4, 5\] beside \[2, 3, 4, 4\]"):
        batch([video, torch.zeros(2, 3, 4, 5, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="length: expected at least the 2 frames of the longest video, got 1"):
        batch([video], length=1)
