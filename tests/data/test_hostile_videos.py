"""Files that are no videos, or want to be more than one: each is one VideoError, and opens nothing else."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from multigrain.data.clips import Clips
from multigrain.data.manifest import Clip
from multigrain.data.video import Sampling, VideoError, read_video, sample
from multigrain.data.video import container as video_file
from multigrain.data.video import decode as video_decode
from multigrain.data.video import read as video_module
from multigrain.models.encoding import decoding
from tests.clips import numbers, write_clip


def reason(path: str | Path, **options: Any) -> str:
    """Why a file cannot be read: one line behind its name."""
    with pytest.raises(VideoError) as error:
        read_video(path, size=16, **options)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# Metadata and codecs


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_a_title_that_is_not_utf_8_is_no_damage(tmp_path: Path, suffix: str):
    path = write_clip(tmp_path / f"clip.{suffix}", range(3), title="a caf_ title")
    content = path.read_bytes()
    assert b"caf_" in content
    path.write_bytes(content.replace(b"caf_", b"caf\xe9"))
    assert numbers(read_video(path, Sampling(10), 16)) == [0, 1, 2]


def test_an_unknown_codec_is_named(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mkv", range(3))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_QQEG4/ISO/ASP"))
    assert reason(path) == "a codec that FFmpeg does not know"


# What a path may lead to


def test_names_that_lead_nowhere(tmp_path: Path):
    assert reason(tmp_path / ("x" * 5000)) == "cannot be read: File name too long"
    assert reason(f"{tmp_path}/a\0b.mp4") == "no such file"
    assert reason(f"{tmp_path}/\ud800.mp4") in ("no such file", "cannot be read: UnicodeEncodeError")  # by locale
    assert reason(tmp_path) == "no images in the folder"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are Unix's")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert reason(tmp_path / "pipe.mp4") == "neither a file nor a folder"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
def test_names_that_are_not_utf_8_are_names(tmp_path: Path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    write_clip(tmp_path / "clip.mp4", range(2)).rename(path)
    assert numbers(read_video(path, Sampling(10), 16)) == [0, 1]
    clips = Clips([Clip("\udce9", path, ("a dog",), "train")], Sampling(10), 16, strict=True)
    assert len(clips.batch([0], seed=0).frames) == 2


def test_a_picture_is_read_whatever_it_is_called(tmp_path: Path):
    for name in ("a%03d.png", "b*.png", "c.png"):
        write_clip(tmp_path / "one.apng", [3], codec="apng", pix_fmt="rgb24").rename(tmp_path / name)
    assert numbers(read_video(tmp_path, size=16)) == [3, 3, 3]


# Files that name others

VIDEO = "bait/video.mp4"


def alias(path: Path) -> Path:
    """An mp4 whose frames are said to be in another file, by QuickTime's alias."""
    data = bytearray(write_clip(path, range(3)).read_bytes())
    place = data.index(b"url \0\0\0\1") - 4
    name = os.path.abspath(path.parent / VIDEO).encode()
    name += b"\0" * (len(name) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0) + bytes(20)
    data[place : place + 12] = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.index(kind) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", data, at)[0] + len(record))
    path.write_bytes(data)
    return path


PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:5.0,\n{}\n"
REFERRING: dict[str, str | Callable[[Path], Path]] = {
    "endless.m3u8": PLAYLIST.format(VIDEO),
    "list.m3u8": PLAYLIST.format(VIDEO) + "#EXT-X-ENDLIST\n",
    "named.mp4": PLAYLIST.format(f"file:{VIDEO}") + "#EXT-X-ENDLIST\n",
    "remote.m3u8": PLAYLIST.format("http://127.0.0.1:9/video.ts") + "#EXT-X-ENDLIST\n",
    "list.ffconcat": f"ffconcat version 1.0\nfile {VIDEO}\n",
    "concat.mp4": f"ffconcat version 1.0\nfile {VIDEO}\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "stream.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="'
    'urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    f'bandwidth="1"><BaseURL>{VIDEO}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "frame%03d.png": "no picture",
    "*.png": "no picture",
    "notes.txt": "a dog runs\n" * 100,
    "art.ans": "\x1b[31mred\x1b[0m\n" * 100,
    "lines.srt": "1\n00:00:00,000 --> 00:00:05,000\na dog\n",
    "drawing.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{VIDEO}"/></svg>',
    "http: name.mp4": "no video",
    "alias.mov": alias,
}


def refer(folder: Path, name: str) -> Path:
    """One of these files, and beside it what it refers to."""
    bait = folder / VIDEO
    if not bait.exists():
        bait.parent.mkdir(parents=True)
        write_clip(bait, range(3))
        for number in range(3):
            write_clip(folder / "one.apng", [3], codec="apng", pix_fmt="rgb24").rename(folder / f"frame{number:03}.png")
    path, content = folder / name, REFERRING[name]
    if isinstance(content, str):
        path.write_text(content)
        return path
    return content(path)


@pytest.mark.parametrize("name", [name for name in REFERRING if name != "alias.mov"])
def test_what_names_other_files_is_no_video(tmp_path: Path, name: str):
    assert "not a video" in reason(refer(tmp_path, name))


TRACED = """
import os, sys
from multigrain.data.video import Sampling, VideoError, read_video
read_video(sys.argv[1], Sampling(10), 16)
os.path.exists("/from here on")
for path in sys.argv[2:]:
    try:
        read_video(path, Sampling(10), 16)
    except VideoError as error:
        print(error)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_video_opens_another_file_or_a_socket(tmp_path: Path):
    paths = [refer(tmp_path, name) for name in REFERRING]
    log = tmp_path / "log"
    calls = "trace=open,openat,openat2,creat,execve,rename,unlink,mkdir,socket,connect,stat,newfstatat,statx"
    command = ["strace", "-f", "-s", "1000", "-o", str(log), "-e", calls, sys.executable, "-c", TRACED]
    done = subprocess.run([*command, str(tmp_path / VIDEO), *map(str, paths)], capture_output=True, text=True)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    before, after = log.read_text().rsplit("/from here on", 1)
    assert f'"{tmp_path / VIDEO}"' in before
    assert "bait" not in after
    assert "frame001" not in after
    opened = [line for line in after.splitlines()[1:] if "stat" not in line.split("(")[0].split()[-1]]
    assert not [line for line in opened if "socket(" in line or "connect(" in line or "execve(" in line]
    names = [line.split('"')[1] for line in opened if '"' in line]
    assert set(names) == set(map(str, paths))


# Time and memory


def test_frames_beyond_a_size_are_refused_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    size = 640, 480
    clip = write_clip(tmp_path / "clip.mp4", range(3), size=size)
    folder = tmp_path / "frames"
    folder.mkdir()
    write_clip(folder / "one.apng", [3], codec="apng", pix_fmt="rgb24", size=size).rename(folder / "one.png")
    monkeypatch.setattr(video_file, "MOST_PIXELS", 640 * 480 - 1)
    assert reason(clip) == "frames of 640 x 480, more than 307,199 pixels"
    with pytest.raises(VideoError, match=r"one\.png: frames of 640 x 480, more than 307,199 pixels"):
        read_video(folder, size=16)
    monkeypatch.setattr(video_file, "MOST_PIXELS", 640 * 480 // 4)
    assert "more than 76,800 pixels" in reason(clip)
    monkeypatch.setattr(video_file, "MOST_PIXELS", 640 * 480)
    assert len(read_video(clip, size=16)) == 1
    assert len(read_video(folder, size=16)) == 1


def test_a_stream_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small, large = write_clip(tmp_path / "a.m4v", range(3)), write_clip(tmp_path / "b.m4v", range(3), size=(640, 480))
    both = tmp_path / "both.m4v"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    monkeypatch.setattr(video_file, "MOST_PIXELS", 64 * 48)
    reason(both, sampling=Sampling(25))


def test_a_file_that_leads_nowhere_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = write_clip(tmp_path / "clip.mp4", range(3))
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(video_file.time, "thread_time", lambda: next(clock))
    assert reason(clip) == "damaged: nothing to show for 5 s of reading"


def test_a_slow_video_is_read_as_long_as_frames_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = write_clip(tmp_path / "clip.mp4", range(20))
    now = [0.0]

    def packet(self: video_file.Opened, *streams: Any) -> Any:
        for packet in packets(self, *streams):
            now[0] += 4.0
            yield packet

    packets = video_file.Opened.packets
    monkeypatch.setattr(video_file.Opened, "packets", packet)
    monkeypatch.setattr(video_file.time, "thread_time", lambda: now[0])
    assert numbers(read_video(clip, Sampling(10, 20), 16)) == list(range(20))
    assert now[0] > 150


def test_billions_of_promised_frames_are_not_counted(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mp4", range(20))
    data = bytearray(path.read_bytes())
    place = data.index(b"stsz") + 8
    data[place : place + 8] = struct.pack(">II", 1, 2**27)  # as many frames of one byte each
    path.write_bytes(data)
    assert reason(path) == "damaged: it promises more frames than it has bytes"


@pytest.mark.parametrize("shape", [(4, 400), (400, 4)])
def test_of_a_strip_the_middle_alone_is_enlarged(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    strip = torch.randint(0, 256, (1, 3, *shape), dtype=torch.uint8)
    whole = functional.interpolate(strip, tuple(8 * side for side in shape), mode="bicubic", antialias=True)[0]
    largest, resize = [0], functional.interpolate

    def watched(frames: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        made = resize(frames, *given, **more)
        largest[0] = max(largest[0], made.numel())
        return made

    monkeypatch.setattr(video_module.functional, "interpolate", watched)
    (got,) = read_video(strip, size=32)
    start = [(side - 32) // 2 for side in whole.shape[1:]]
    assert torch.equal(got, whole[:, start[0] : start[0] + 32, start[1] : start[1] + 32])
    assert largest[0] <= 3 * 32 * 32 * 8


@pytest.mark.parametrize("shape", [(1, 32768), (8192, 4), (3, 50), (50, 7)])
def test_strips_of_any_shape_fit(shape: tuple[int, int]):
    frames = torch.full((1, 3, *shape), 7, dtype=torch.uint8)
    assert torch.equal(read_video(frames, size=20), torch.full((1, 3, 20, 20), 7, dtype=torch.uint8))


def test_a_few_of_very_many_candidates_are_drawn_in_little_memory():
    sampling = Sampling(max_frames=4, strategy="random")
    drawn = sample(10**15, sampling, torch.Generator().manual_seed(0))
    assert drawn == sorted(set(drawn)) == sample(10**15, sampling, torch.Generator().manual_seed(0))
    assert len(drawn) == 4
    assert max(drawn) > 10**13


def test_every_draw_is_as_likely_as_any_other():
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(max_frames=2, strategy="random")
    draws = [tuple(sample(5, sampling, generator)) for _ in range(4000)]
    counts = torch.tensor([draws.count((i, j)) for i in range(5) for j in range(i + 1, 5)])
    assert counts.sum() == 4000
    assert counts.float().sub(400).abs().max() < 5 * 19  # five standard deviations


def test_any_rate_has_a_last_candidate(tmp_path: Path):
    clip = write_clip(tmp_path / "clip.mp4", range(3))
    for strategy in ("uniform", "head", "random", "segment"):
        assert len(read_video(clip, Sampling(1e20, 4, strategy), 16, seed=0)) == 4


# Whatever else happens


ERRORS = [MemoryError(), RuntimeError("no\nmemory"), UnicodeDecodeError("utf-8", b"", 0, 1, "?")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_one_video_is_a_video_error(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch):
    good, bad = (write_clip(tmp_path / f"{name}.mp4", range(3)) for name in ("good", "bad"))
    scan = video_decode._scan

    def fails(path: Path) -> Any:
        if path == bad:
            raise error
        return scan(path)

    monkeypatch.setattr(video_decode, "_scan", fails)
    assert reason(bad).startswith(f"cannot be read: {type(error).__name__}")
    clips = Clips([Clip(path.stem, path, ("a dog",), "train") for path in (good, bad)], Sampling(), 16)
    batch = clips.batch([0, 1], seed=0)
    assert [str(bad) in line and type(error).__name__ in line for line in batch.broken] == [True]
    assert len(batch.sentences) == 1
    model: Any = SimpleNamespace(frame_size=16)
    with decoding(model, [str(bad), str(good)], Sampling(), 2, 1) as stream:
        (_, first), (_, second) = stream
    assert isinstance(first, VideoError)
    assert isinstance(second, torch.Tensor)
