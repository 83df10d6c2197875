"""Five data sets in miniature, written as their authors do; and what may be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from multigrain.data.annotations import SOURCES
from multigrain.data.manifest import load_manifest
from multigrain.data.prepare import prepare, protocol_of
from multigrain.data.video.files import list_videos
from multigrain.metrics import PROTOCOLS

FLIGHT = [f"1001_Flight_00.00.0{i}.000-00.00.0{i + 1}.500" for i in range(2)]
VAL_CLIP, TEST_CLIP = "1005_Signs_00.00.01.000-00.00.02.000", "1006_Slumdog_00.01.00.000-00.01.05.000"
MOMENTS = {"train": "1@N00_2_ab.mov", "val": "3@N01_4_cd.avi", "test": "5@N02_6_ef.3gp"}
FILES = {
    "msrvtt": {f"{video}.mp4" for video in ("video0", "video1", "video2", "video3", "video7010", "video7020")},
    "msvd": {"-4wsuPCjDBc_5_15.avi", "b_BuSVZwq6M_1_9.avi", "rw9h_574HxE_1_9.avi"},
    "lsmdc": {f"{clip.rsplit('_', 1)[0]}/{clip}.avi" for clip in (*FLIGHT, VAL_CLIP, TEST_CLIP)},
    "didemo": {f"{MOMENTS['train']}.mp4", "3@N01_4_cd.webm", MOMENTS["test"]},
    "activitynet": {"v_QOlSCBRmfWY.mp4", "ehGHCYKzyZ8.mkv", "deep/er/v_uqiMw7tQ1Cc.MP4"},
}


def lsmdc_row(clip: str, sentence: str) -> str:
    return "\t".join([clip, "00.00.00.000", "00.00.03.000", "00.00.00.000", "00.00.03.500", sentence]) + "\n"


def moment(split: str, description: str) -> dict[str, object]:
    return {"video": MOMENTS[split], "description": description, "times": [[1, 1], [1, 2]], "num_segments": 6}


def paragraph(*sentences: str) -> dict[str, object]:
    times = [[i, i + 2.5] for i in range(len(sentences))]
    return {"duration": 82.73, "timestamps": times, "sentences": sentences}


def annotations_of(name: str) -> dict[str, object]:
    if name == "msrvtt":
        train = [("video0", "a cat"), ("video1", "a dog"), ("video0", " two\ncats "), ("video2", "x"), ("video3", " ")]
        sentences = [*train, ("video7010", "not the caption of the test")]
        items = [{"video_id": v, "caption": c, "sen_id": i} for i, (v, c) in enumerate(sentences)]
        return {
            "MSRVTT_train.9k.csv": "video_id\nvideo0\nvideo1\nvideo2\nvideo3\n",
            "MSRVTT_train.7k.csv": "\ufeffvideo_id\r\nvideo1\r\nvideo0\r\n",  # as spreadsheets save it
            "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\r\n"
            'ret0,msr7010,video7010,"a man, and a dog"\r\nret1,msr7020,video7020,fireworks\r\n',
            "MSRVTT_data.json": {"videos": [], "sentences": items},
        }
    lists = ("train_list.txt", "val_list.txt", "test_list.txt")
    if name == "msvd":
        videos = ["-4wsuPCjDBc_5_15", "b_BuSVZwq6M_1_9", "rw9h_574HxE_1_9"]
        captions = [[["a", "squirrel", "eats"], ["an", "animal"]], [["a", "man", "runs"]], [["one"], ["two"], ["2"]]]
        return {
            **{file: f"{video}\n" for file, video in zip(lists, videos, strict=True)},
            "raw-captions.pkl": pickle.dumps(dict(zip(videos, captions, strict=True)), protocol=2),
        }
    if name == "lsmdc":
        twice = lsmdc_row(FLIGHT[0], "SOMEONE wakes.") + lsmdc_row(FLIGHT[0], 'He says "no.')
        return {
            "LSMDC16_annos_training.csv": twice + lsmdc_row(FLIGHT[1], "He stands."),
            "LSMDC16_annos_val.csv": lsmdc_row(VAL_CLIP, "A field."),
            "LSMDC16_challenge_1000_publictect.csv": lsmdc_row(TEST_CLIP, "A train."),
        }
    if name == "didemo":
        data = {s: [moment(s, "the cat appears"), moment(s, "it jumps")] for s in MOMENTS}
        data["train"].append({**moment("train", "of no split"), "video": "unlisted.mov"})
        return {f"{s}_list.txt": f"{MOMENTS[s]}\n" for s in MOMENTS} | {f"{s}_data.json": data[s] for s in MOMENTS}
    train = {"v_QOlSCBRmfWY": paragraph("A woman dances.", " She stops."), "v_ehGHCYKzyZ8": paragraph("Snow.")}
    return {
        "train.json": train,
        "val_1.json": {"v_uqiMw7tQ1Cc": paragraph(" A man lifts ", "weights.")},
        "val_2.json": {"v_uqiMw7tQ1Cc": paragraph("Other words.")},
        "train_ids.json": [*train, "v_uncaptioned"],
        "val_ids.json": ["v_uqiMw7tQ1Cc"],
    }


def write(folder: Path, name: str, **changes: object) -> tuple[str, Path, Path, Path]:
    """The arguments of prepare for a data set, with some of its files changed; None removes one."""
    annotations, videos = folder / "annotations", folder / "videos"
    annotations.mkdir()
    for file, content in (annotations_of(name) | changes).items():
        if isinstance(content, bytes | str):
            (annotations / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        elif content is not None:
            (annotations / file).write_text(json.dumps(content))
    for file in FILES[name]:
        (videos / file).parent.mkdir(parents=True, exist_ok=True)
        (videos / file).touch()
    return name, annotations, videos, folder / "out" / "manifest.jsonl"


def prepared(folder: Path, name: str, **options: object) -> dict[str, dict[str, tuple[str, ...]]]:
    """What the manifest holds: split -> video -> captions."""
    arguments = write(folder, name)
    prepare(*arguments, **options)
    clips = load_manifest(arguments[-1])
    assert all(clip.video.is_file() for clip in clips)
    return {s: {c.id: c.captions for c in clips if c.split == s} for s in ("train", "val", "test")}


def test_msrvtt(tmp_path) -> None:
    test = {"video7010": ("a man, and a dog",), "video7020": ("fireworks",)}
    train = {"video0": ("a cat", "two cats"), "video1": ("a dog",), "video2": ("x",)}
    assert prepared(tmp_path, "msrvtt", val=0) == {"train": train, "val": {}, "test": test}


def test_msrvtt_7k(tmp_path) -> None:
    splits = prepared(tmp_path, "msrvtt", val=1, variant="7k")
    assert sorted([*splits["train"], *splits["val"]]) == ["video0", "video1"]
    assert len(splits["val"]) == 1 and len(splits["test"]) == 2


def test_msvd(tmp_path) -> None:
    assert prepared(tmp_path, "msvd") == {
        "train": {"-4wsuPCjDBc_5_15": ("a squirrel eats", "an animal")},
        "val": {"b_BuSVZwq6M_1_9": ("a man runs",)},
        "test": {"rw9h_574HxE_1_9": ("one", "two", "2")},
    }


@pytest.mark.parametrize("flat", [False, True])
def test_lsmdc(tmp_path, flat, monkeypatch) -> None:
    if flat:
        monkeypatch.setitem(FILES, "lsmdc", {Path(file).name for file in FILES["lsmdc"]})
    assert prepared(tmp_path, "lsmdc") == {
        "train": {FLIGHT[0]: ("SOMEONE wakes.", 'He says "no.'), FLIGHT[1]: ("He stands.",)},
        "val": {VAL_CLIP: ("A field.",)},
        "test": {TEST_CLIP: ("A train.",)},
    }


@pytest.mark.parametrize(("variant", "end"), [(None, 30.0), ("31s", 31.0)])
def test_didemo(tmp_path, variant, end) -> None:
    splits = prepared(tmp_path, "didemo", variant=variant)
    assert splits == {split: {video: ("the cat appears it jumps",)} for split, video in MOMENTS.items()}
    assert {(c.start, c.end) for c in load_manifest(tmp_path / "out/manifest.jsonl")} == {(None, end)}


def test_activitynet(tmp_path) -> None:
    assert prepared(tmp_path, "activitynet", val=0) == {
        "train": {"v_QOlSCBRmfWY": ("A woman dances. She stops.",), "v_ehGHCYKzyZ8": ("Snow.",)},
        "val": {},
        "test": {"v_uqiMw7tQ1Cc": ("A man lifts weights.",)},
    }


def test_validation_is_cut_from_training_by_seed_alone(tmp_path) -> None:
    names = [f"video{i}" for i in range(40)]
    data = {"sentences": [{"video_id": name, "caption": f"caption of {name}"} for name in names]}
    arguments = write(
        tmp_path, "msrvtt", **{"MSRVTT_train.9k.csv": "\n".join(["video_id", *names]), "MSRVTT_data.json": data}
    )
    for name in names:
        (arguments[2] / f"{name}.mp4").touch()

    def splits(**options: int) -> dict[str, list[str]]:
        prepare(*arguments, **options)
        clips = load_manifest(arguments[-1])
        return {s: [c.id for c in clips if c.split == s] for s in ("train", "val", "test")}

    first = splits(val=10, seed=1)
    assert len(first["val"]) == 10 and sorted(first["train"] + first["val"]) == sorted(names)
    assert first["test"] == ["video7010", "video7020"]
    assert splits(val=10, seed=1) == first
    assert splits(val=10, seed=2)["val"] != first["val"]
    for name in first["val"][:3] + first["train"][:3]:
        (arguments[2] / f"{name}.mp4").unlink()
    fewer = splits(val=10, seed=1)
    assert fewer["val"] == first["val"][3:] and fewer["train"] == first["train"][3:]


def test_what_is_left_out_is_reported_by_name(tmp_path) -> None:
    arguments = write(tmp_path, "activitynet")
    (arguments[2] / "v_QOlSCBRmfWY.mp4").unlink()
    report = prepare(*arguments, val=0)
    assert report.splits["train"].missing == ("v_QOlSCBRmfWY",)
    assert report.splits["train"].uncaptioned == ("v_uncaptioned",)
    assert [(part.clips, part.captions) for part in report.splits.values()] == [(1, 1), (0, 0), (1, 1)]
    assert str(report).splitlines() == [
        f"activitynet: {arguments[-1]}",
        "split    clips  captions  missing  uncaptioned",
        "train        1         1        1            1",
        "val          0         0        0            0",
        "test         1         1        0            0",
        "train, without a file: v_QOlSCBRmfWY",
        "train, without a caption: v_uncaptioned",
    ]
    with pytest.raises(FileNotFoundError, match=r"videos: expected a file for 'v_QOlSCBRmfWY' \(train\)"):
        prepare(*arguments, val=0, strict=True)


def test_a_long_list_of_missing_videos_is_cut_in_the_table_only(tmp_path) -> None:
    names = [f"video{i}" for i in range(30)]
    sentences = [{"video_id": name, "caption": "a"} for name in names]
    changes = {"MSRVTT_train.9k.csv": "\n".join(["video_id", *names]), "MSRVTT_data.json": {"sentences": sentences}}
    report = prepare(*write(tmp_path, "msrvtt", **changes), val=0)
    assert len(report.splits["train"].missing) == 26
    assert str(report).splitlines()[-1].endswith("video13 and 16 more")


def test_the_folder_of_videos_is_walked_once_and_links_are_followed(tmp_path, monkeypatch) -> None:
    arguments = write(tmp_path, "lsmdc")
    movie = arguments[2] / "1001_Flight"
    movie.rename(tmp_path / "elsewhere")
    movie.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    walks: list[object] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda root, **options: walks.append(root) or walk(root, **options))
    assert prepare(*arguments).splits["train"].clips == 2
    assert walks == [arguments[2]]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch) -> None:
    arguments = write(tmp_path, "lsmdc")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "1001_Flight":
            raise PermissionError(f"no access to {path}")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"no access to .*1001_Flight"):
        prepare(*arguments)


class Call:
    """Pickles to a call of a function: what a malicious file does."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


def test_a_pickle_can_call_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        code = pickle.dumps({"video": Call(os.mkdir, "owned")}, protocol=protocol)
        (tmp_path / str(protocol)).mkdir()
        with pytest.raises(ValueError, match=r"raw-captions.pkl: .*of builtin types alone; refused: posix.mkdir"):
            prepare(*write(tmp_path / str(protocol), "msvd", **{"raw-captions.pkl": code}))
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "refused: EOFError"),
        (b"no pickle", "refused: "),
        (pickle.dumps({"a": [["b"]]})[:-3], "refused: "),
        (pickle.dumps(["a"]), "got list"),
        (pickle.dumps({"a": ["a cat"]}), r"got 'a': \['a cat'\]"),
        (pickle.dumps({1: [["a"]]}), r"got 1: \[\['a'\]\]"),
        (pickle.dumps({"a": [["b", 3]]}), "a: expected strings, got 3"),
    ],
)
def test_what_is_no_pickle_of_captions_is_refused(tmp_path, content, message) -> None:
    with pytest.raises(ValueError, match=rf"raw-captions\.pkl: .*{message}"):
        prepare(*write(tmp_path, "msvd", **{"raw-captions.pkl": content}))


@pytest.mark.parametrize(("name", "file"), [(n, f.format("9k")) for n, s in SOURCES.items() for f in s.files])
def test_an_absent_annotation_file_is_named_among_those_expected(tmp_path, name, file) -> None:
    with pytest.raises(FileNotFoundError) as error:
        prepare(*write(tmp_path, name, **{file: None}))
    assert str(error.value).endswith(f"for {name}; absent: {file}")
    assert all(other.format("9k") in str(error.value) for other in SOURCES[name].files)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("msrvtt", "MSRVTT_train.9k.csv", "video\na\n", "expected a column 'video_id', got video"),
        ("msrvtt", "MSRVTT_train.9k.csv", "", "expected a column 'video_id', got none"),
        ("msrvtt", "MSRVTT_train.9k.csv", b"video_id\n\xff\n", "expected text in UTF-8, got .*0xff"),
        ("msrvtt", "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo0", "every video once, got 'video0' more than"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\na\n", ":2: expected 2 columns, got more or fewer"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\na,b,c\n", ":2: expected 2 columns, got more or"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\na,b\na,c\n", "every video once, got 'a' more than"),
        ("msrvtt", "MSRVTT_data.json", "{", "expected JSON, got Expecting"),
        ("msrvtt", "MSRVTT_data.json", [], "expected a JSON dict, got list"),
        ("msrvtt", "MSRVTT_data.json", {"videos": []}, "expected a field 'sentences'"),
        (
            "msrvtt",
            "MSRVTT_data.json",
            {"sentences": [{"video_id": "video0", "text": ""}]},
            r"sentences\[0\]: expected a field 'caption' \(str\), got .*text",
        ),
        ("msvd", "test_list.txt", "a\nb\na\n", "every video once, got 'a' more than once"),
        ("lsmdc", "LSMDC16_annos_val.csv", "a\tb\n", ":1: expected 6 columns between tabs, got 2"),
        (
            "lsmdc",
            "LSMDC16_challenge_1000_publictect.csv",
            lsmdc_row(TEST_CLIP, "a") + lsmdc_row(TEST_CLIP, "b"),
            f"expected every clip once, got '{TEST_CLIP}' more than once",
        ),
        ("didemo", "val_list.txt", "a.mov\na.mov\n", "every video once, got 'a.mov' more than once"),
        ("didemo", "val_data.json", [{"description": "a"}], r"\[0\]: expected a field 'video' \(str\)"),
        ("didemo", "val_data.json", [{"video": MOMENTS["val"]}], r"\[0\]: expected a field 'description' \(str\)"),
        ("didemo", "val_data.json", {}, "expected a JSON list, got dict"),
        ("activitynet", "val_1.json", {"v_uqiMw7tQ1Cc": {"sentence": "a"}}, "v_uqiMw7tQ1Cc: expected a field 'senten"),
        ("activitynet", "val_1.json", {"v_uqiMw7tQ1Cc": paragraph(None)}, "sentences: expected strings, got None"),
        ("activitynet", "train_ids.json", ["v_a", "v_a"], "every video once, got 'v_a' more than once"),
        ("activitynet", "train_ids.json", [3], "expected strings, got 3"),
    ],
)
def test_annotations_of_another_format_are_named(tmp_path, name, file, content, message) -> None:
    with pytest.raises(ValueError, match=rf"{file}:? ?.*{message}"):
        prepare(*write(tmp_path, name, **{file: content}), val=0 if name in ("msrvtt", "activitynet") else None)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "msrvtt",
            "MSRVTT_train.9k.csv",
            "video_id\nvideo7020\nvideo0",
            "1 in both train and test, such as 'video7020'",
        ),
        ("msvd", "val_list.txt", "rw9h_574HxE_1_9", "1 in both val and test, such as 'rw9h_574HxE_1_9'"),
        ("lsmdc", "LSMDC16_annos_val.csv", lsmdc_row(FLIGHT[1], "a"), "1 in both train and val, such as '1001_Flight"),
        ("didemo", "test_list.txt", MOMENTS["train"], "1 in both train and test, such as '1@N00"),
        ("activitynet", "train_ids.json", ["v_uqiMw7tQ1Cc"], "1 in both train and test, such as 'v_uqi"),
    ],
)
def test_a_video_in_two_splits_is_refused(tmp_path, name, file, content, message) -> None:
    with pytest.raises(ValueError, match=f"annotations: expected no video in two splits, got {message}"):
        prepare(*write(tmp_path, name, **{file: content}))


def test_what_is_a_video_to_a_manifest_is_one_to_an_extraction(tmp_path) -> None:
    arguments = write(tmp_path, "msrvtt")
    videos, suffixes = sorted(arguments[2].iterdir()), [".ts", ".M2TS", ".webm", ".Mpg", ".3gp", ".wmv"]
    found = [path.rename(path.with_suffix(suffix)) for path, suffix in zip(videos, suffixes, strict=True)]
    assert not any(part.missing for part in prepare(*arguments, val=0).splits.values())
    assert list_videos([arguments[2]]) == [str(path) for path in found]


def test_a_folder_without_videos_or_with_other_videos_is_named(tmp_path) -> None:
    arguments = write(tmp_path, "msrvtt")
    for path in arguments[2].iterdir():
        path.unlink()
    (arguments[2] / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"videos: expected files ending in .*\.mp4, .* got none"):
        prepare(*arguments, val=0)
    (arguments[2] / "cat.mp4").touch()
    with pytest.raises(
        ValueError, match=r"videos: expected files named by ids such as 'video7010' .* such as 'cat.mp4'"
    ):
        prepare(*arguments, val=0)
    with pytest.raises(FileNotFoundError, match=r"videos: expected a folder, got .*absent"):
        prepare(arguments[0], arguments[1], tmp_path / "absent", arguments[3], val=0)
    assert not arguments[3].exists()


def test_a_video_in_two_files_is_named(tmp_path) -> None:
    arguments = write(tmp_path, "msrvtt")
    (arguments[2] / "again").mkdir()
    (arguments[2] / "again" / "video1.webm").touch()
    with pytest.raises(
        ValueError, match=r"videos: expected one file for 'video1', got .*video1\.(mp4|webm) and .*video1"
    ):
        prepare(*arguments, val=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kinetics", {}, "name: expected one of msrvtt, msvd, lsmdc, didemo, activitynet, got 'kinetics'"),
        ("msrvtt", {"variant": "8k"}, "variant: expected '9k' or '7k' for msrvtt, got '8k'"),
        ("msvd", {"variant": "9k"}, "variant: expected None for msvd, got '9k'"),
        ("msvd", {"val": 5}, "val: expected None, because msvd has a validation split of its own; got 5"),
        ("msrvtt", {}, "val: expected 0 to 2 of the training videos, got 500"),
        ("msrvtt", {"val": 3}, "val: expected 0 to 2 of the training videos, got 3"),
        ("msrvtt", {"val": -1}, "val: expected 0 to 2 of the training videos, got -1"),
        ("msrvtt", {"val": True}, "val: expected 0 to 2 of the training videos, got True"),
        ("msrvtt", {"val": 1, "seed": 0.5}, "seed: expected an integer, got 0.5"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, name, options, message) -> None:
    _, *paths = write(tmp_path, name if name in SOURCES else "msvd")
    with pytest.raises(ValueError, match=message):
        prepare(name, *paths, **options)


def test_protocols() -> None:
    assert {name: protocol_of(name) for name in SOURCES} == {
        "msrvtt": "diagonal",
        "msvd": "group_max",
        "lsmdc": "diagonal",
        "didemo": "diagonal",
        "activitynet": "diagonal",
    }
    assert {source.protocol for source in SOURCES.values()} <= set(PROTOCOLS)
    with pytest.raises(ValueError, match="name: expected one of msrvtt"):
        protocol_of("kinetics")
