"""The manifest: what goes in comes out, and what is not as the format says is named with its line and field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from multigrain.data.manifest import Clip, load_manifest, missing_videos, texts_and_targets, write_manifest


def clip(id: str = "a", video: str = "/videos/a.mp4", **changes) -> Clip:
    return Clip(**{"id": id, "video": Path(video), "captions": ("a cat",), "split": "train", **changes})


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_is_written_is_loaded(tmp_path) -> None:
    clips = [
        clip("a", f"{tmp_path}/videos/a.mp4", captions=("a cat", 'says "你好"\u2028\n'), start=0.1 + 0.2, end=9),
        clip("b", split="val", end=30.0),
        clip("c", f"{tmp_path}/frames", split="test", start=2.5),
        clip("not text", os.fsdecode(b"/videos/\xff.mp4")),
    ]
    write_manifest(tmp_path / "manifest.jsonl", clips)
    assert "你好" in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8")
    assert load_manifest(tmp_path / "manifest.jsonl") == clips
    assert [c.id for c in load_manifest(tmp_path / "manifest.jsonl", "val")] == ["b"]
    assert load_manifest(str(tmp_path / "manifest.jsonl"), split="train") == [clips[0], clips[3]]


def test_a_folder_moves_with_its_videos(tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_manifest("manifest.jsonl", [clip("a", "videos/a.mp4"), clip("b", "/elsewhere/b.mp4")])
    lines = [json.loads(line) for line in Path("manifest.jsonl").read_text().splitlines()]
    assert [line["video"] for line in lines] == ["videos/a.mp4", "/elsewhere/b.mp4"]
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    videos = [c.video for c in load_manifest("there/manifest.jsonl")]
    assert videos == [tmp_path / "there/videos/a.mp4", Path("/elsewhere/b.mp4")]


def test_ids_default_to_the_video_and_its_part(tmp_path) -> None:
    record = {"video": "a.mp4", "captions": ["a cat"], "split": "test"}
    parts = [{}, {"start": 1.5, "end": 9.0}, {"start": 1.5}, {"end": 9}]
    clips = load_manifest(write(tmp_path / "m.jsonl", *({**record, **part} for part in parts)))
    assert [c.id for c in clips] == ["a.mp4", "a.mp4:1.5-9.0", "a.mp4:1.5-", "a.mp4:-9"]
    assert {c.video for c in clips} == {tmp_path / "a.mp4"}


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path) -> None:
    line = b'{"video": "a.mp4", "captions": ["a"], "split": "test"}'
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line.replace(b"a.mp4", b"b.mp4"))
    assert [c.id for c in load_manifest(tmp_path / "m.jsonl")] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, "video: expected a path, got None"),
        ({"video": ""}, "video: expected a path, got ''"),
        ({"video": "a\0b.mp4"}, "video: expected a path, got .*a.x00b"),
        ({"captions": "a cat"}, "captions: expected a list of at least one string, got 'a cat'"),
        ({"captions": []}, r"captions: expected a list of at least one string, got \[\]"),
        ({"captions": ["a", " "]}, r"captions\[1\]: expected a string that is not blank, got ' '"),
        ({"captions": [3]}, r"captions\[0\]: expected a string that is not blank, got 3"),
        ({"split": "dev"}, "split: expected one of train, val, test, got 'dev'"),
        ({"split": ["test"]}, r"split: expected one of train, val, test, got \['test'\]"),
        ({"start": -1}, "start: expected seconds, a finite number of at least 0, got -1"),
        ({"start": float("nan")}, "start: expected seconds, .* got nan"),
        ({"end": float("inf")}, "end: expected seconds, .* got inf"),
        ({"end": 10**400}, "end: expected seconds, .* got 1000"),
        ({"end": "9"}, "end: expected seconds, .* got '9'"),
        ({"end": True}, "end: expected seconds, .* got True"),
        ({"start": 3, "end": 3}, r"end: expected seconds above the start \(3\), got 3"),
        ({"end": 0}, r"end: expected seconds above the start \(0.0\), got 0"),
        ({"id": ""}, "id: expected a string that is not blank, got ''"),
        ({"id": None}, "id: expected a string that is not blank, got None"),
        ({"caption": "a", "fps": 3}, "fields: expected none but video, captions, .*, got 'caption, fps'"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, message) -> None:
    good = {"video": "a.mp4", "captions": ["a cat"], "split": "test", "id": "a"}
    with pytest.raises(ValueError, match=rf"m\.jsonl:2: {message}"):
        load_manifest(write(tmp_path / "m.jsonl", good, {**good, "id": "b", **change}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "expected a JSON object in UTF-8, got b'{'"),
        (b"\xff", r"expected a JSON object in UTF-8, got b'\\xff'"),
        (b"[1]", r"line: expected a JSON object, got \[1\]"),
        (b"[" * 100_000, r"expected a JSON object in UTF-8, got b'\[\["),
        (b'{"video": "a.mp4", "video": "b.mp4"}', "expected a JSON object .*every name once, got 'video' more"),
    ],
)
def test_what_is_no_json_object_is_named_with_its_line(tmp_path, line, message) -> None:
    (tmp_path / "m.jsonl").write_bytes(line)
    with pytest.raises(ValueError, match=f":1: {message}") as error:
        load_manifest(tmp_path / "m.jsonl")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_an_error_shows_no_more_of_a_value_than_a_line_holds(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"captions: expected a list .*, got 'wwww") as error:
        load_manifest(write(tmp_path / "m.jsonl", {"video": "a.mp4", "captions": "w" * 100_000, "split": "test"}))
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_half_a_surrogate_pair_in_a_caption_is_a_letter_of_its_own(tmp_path) -> None:
    line = b'{"video": "a.mp4", "captions": ["a \\ud800 dog", "\\ud83d\\ude00"], "split": "test"}'
    (tmp_path / "m.jsonl").write_bytes(line)
    assert load_manifest(tmp_path / "m.jsonl")[0].captions == ("a \ufffd dog", "\U0001f600")


def test_an_id_twice_names_both_lines(tmp_path) -> None:
    record = {"video": "a.mp4", "captions": ["a cat"], "split": "test"}
    with pytest.raises(ValueError, match=r":3: id: expected a unique id, got 'a.mp4' as in line 1"):
        load_manifest(write(tmp_path / "m.jsonl", record, {**record, "end": 2}, record))
    with pytest.raises(ValueError, match="clips: expected distinct ids, got 'a'"):
        write_manifest(tmp_path / "new.jsonl", [clip(), clip()])
    assert not (tmp_path / "new.jsonl").exists()


def test_no_manifest_no_clips_and_no_such_split_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest: expected a file, got .*none\.jsonl"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"m\.jsonl: expected at least one clip, got 0"):
        load_manifest(write(tmp_path / "m.jsonl"))
    with pytest.raises(ValueError, match="clips: expected at least one, got 0"):
        write_manifest(tmp_path / "m.jsonl", [])
    with pytest.raises(ValueError, match="split: expected one of train, val, test or None, got 'dev'"):
        load_manifest(tmp_path / "m.jsonl", "dev")


def test_a_failed_write_leaves_the_old_manifest_and_no_other_file(tmp_path, monkeypatch) -> None:
    write_manifest(tmp_path / "m.jsonl", [clip("old")])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(tmp_path / "m.jsonl", [clip("new")])
    assert [c.id for c in load_manifest(tmp_path / "m.jsonl")] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_missing_videos(tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    names = "a.mp4", "b.mp4", "frames", "pipe.mp4", "x" * 5000, "\ud800.mp4"
    clips = [clip(name, f"{tmp_path}/{name}") for name in names]
    assert missing_videos(clips) == [clips[1], *clips[3:]]


def test_every_caption_points_to_its_clip() -> None:
    sentences, targets = texts_and_targets([clip(captions=("a", "b")), clip(captions=("c",)), clip(captions=("b",))])
    assert sentences == ["a", "b", "c", "b"]
    assert torch.equal(targets, torch.tensor([0, 0, 1, 2]))
    assert texts_and_targets([])[1].dtype == torch.long
